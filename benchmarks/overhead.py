"""What a whole run costs beyond the bare engine: decoding, Ray, Zarr and Parquet.

    python benchmarks/overhead.py [--scenes 40] [--record]

Occlusion of the embedded world's scenes by a run with one Ray worker, and by a loop that calls the
same method on scenes already in memory. Each is run with n and with 4 n scenes in turn; the
difference is what 3 n scenes cost, start-up left out. CPU seconds are those of the driver, of Ray's
own processes and of the worker; unlike seconds on the wall they bear other work on the machine.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import yaml
from against_captum import machine, put_section

from pipeline.recipe import read_recipe
from schemas.config import RunConfig
from schemas.shard import by_image
from workers import catalog
from workers.fidelity import engine_options
from workers.images import decode
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.sweep.engine import Engine

COMMAND = Path(__file__).parents[1] / "run_pipeline.py"
LONGER = 4
"""How many times as many scenes the longer of two runs has."""


class Spent(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float

    def beyond(self, other: "Spent") -> "Spent":
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


def recipe(scenes: int, folder: Path) -> Path:
    """A recipe file, its scenes drawn."""
    folder.mkdir()
    path = folder / "recipe.yaml"
    data = {
        "dataset": {"name": "shapes", "root": str(folder / "world"), "scenes": scenes},
        "model": "demo",
        "methods": ["occlusion"],
        "resources": {"workers": 1},
    }
    path.write_text(yaml.safe_dump(data))
    list(catalog.dataset(read_recipe(path).dataset).examples())
    return path


def bare(path: Path) -> Spent:
    """The loop over decoded scenes; a scene keeps what was computed for it, and is let go."""
    scenes = prepared(read_recipe(path))
    wall, cpu = time.perf_counter(), time.process_time()
    for scene in scenes:
        Occlusion().explain(scene())
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def prepared(config: RunConfig) -> list[Callable[[], Scene]]:
    model = catalog.model_spec(config.model).build(torch.device("cpu"))
    engine = Engine(model, engine_options(config))
    return [
        partial(
            Scene,
            model=model,
            canvas=model.prepare(decode(asked[0].image, config.limits))[0],
            questions=[model.tokenise(e.question) for e in asked],
            question_ids=[e.question_id for e in asked],
            truths=[model.answer_index(e.truth) for e in asked],
            batch=config.resources.batch,
            engine=engine,
        )
        for asked in by_image(list(catalog.dataset(config.dataset).examples())).values()
    ]


def whole(path: Path, out: Path) -> Spent:
    """The run with all its processes, its start included."""
    start = time.perf_counter()
    command = [sys.executable, str(COMMAND), "run", str(path), "--out", str(out)]
    run = psutil.Popen(command, stdout=subprocess.DEVNULL)
    cpu: dict[psutil.Process, float] = {}
    while run.poll() is None:
        cpu |= cpu_of_tree(run)
        time.sleep(0.1)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    return Spent(time.perf_counter() - start, sum(cpu.values()))


def cpu_of_tree(root: psutil.Process) -> dict[psutil.Process, float]:
    """Seconds of each process that lives."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found[process] = sum(process.cpu_times()[:2])  # user and system
    return found


def pair(few: Path, many: Path, out: Path, loop_first: bool) -> tuple[Spent, Spent]:
    """Of the scenes that many has and few has not: by the loop, by the run. Which is first changes
    from pair to pair, for the machine's speed changes too."""
    before = by_loop(few, many) if loop_first else None
    run = whole(many, out / "many").beyond(whole(few, out / "few"))
    return before or by_loop(few, many), run


def by_loop(few: Path, many: Path) -> Spent:
    return bare(many).beyond(bare(few))


def overhead(kind: str, loops: Sequence[float], runs: Sequence[float]) -> str:
    extra = [run / loop - 1 for loop, run in zip(loops, runs, strict=True)]
    return (
        f"- {kind}: {statistics.median(loops):.1f} s by the bare loop, "
        f"{statistics.median(runs):.1f} s by a run with one Ray worker: "
        f"{statistics.median(extra):+.1%} (median of {len(extra)}, {min(extra):+.1%} to "
        f"{max(extra):+.1%})"
    )


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        few, many = (recipe(n * chosen.scenes, root / f"{n}") for n in (1, LONGER))
        bare(few)  # measures and compiles what is kept
        pairs = [pair(few, many, root / f"out{i}", i % 2 == 0) for i in range(chosen.repeats)]
    loops, runs = (list(zip(*column, strict=True)) for column in zip(*pairs, strict=True))
    title = "Overhead of a whole run over the bare engine"
    text = "\n".join(
        [
            f"## {title}",
            "",
            f"Occlusion of {(LONGER - 1) * chosen.scenes} scenes of the embedded world, three "
            "questions each.",
            "",
            overhead("CPU of all processes", loops[1], runs[1]),
            overhead("wall", loops[0], runs[0]),
            f"- {machine()}; load {os.getloadavg()[0]:.1f}",
            "",
        ]
    )
    print(text)
    if chosen.record:
        put_section(title, text)


if __name__ == "__main__":
    main()
