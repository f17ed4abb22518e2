"""Two workers against one: occlusion of the embedded world's scenes, each worker with one thread.

    python benchmarks/two_workers.py [--scenes 160] [--repeats 3] [--engine auto] [--record]

Rates come from the runs' own timings, from the end of each worker's first shard to the end of its
last: start-up and the idle end are left out. Seconds on the wall count only on a machine with two
idle cores. What bears other work is CPU seconds: two workers are worth 2 x (CPU an example of one
alone / CPU an example of one beside another) x (share of its time that a worker works).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import yaml
from against_captum import machine, put_section

from pipeline.dataset import Run
from pipeline.recipe import read_recipe
from workers import catalog

COMMAND = Path(__file__).parents[1] / "run_pipeline.py"


class Measured(NamedTuple):
    """One run."""

    rate: float
    """Examples a second, all workers together."""
    cpu: float
    """A worker's CPU seconds an example."""
    busy: float
    """Share of a worker's time that lies in shards."""


def recipe(folder: Path, scenes: int, engine: str) -> Path:
    """A recipe file, its scenes drawn."""
    path = folder / "recipe.yaml"
    data = {
        "dataset": {"name": "shapes", "root": str(folder / "world"), "scenes": scenes},
        "model": "demo",
        "methods": ["occlusion"],
        "store": {"shard_size": 12},
        "resources": {"threads": 1, "device": "cpu", "engine": engine},
    }
    path.write_text(yaml.safe_dump(data))
    list(catalog.dataset(read_recipe(path).dataset).examples())
    return path


def measure(path: Path, out: Path, workers: int) -> Measured:
    command = [sys.executable, COMMAND, "run", path, "--out", out]
    command += ["--set", f"resources.workers={workers}"]
    run = psutil.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    clocks: dict[int, list[tuple[float, float]]] = {}
    while run.poll() is None:
        look(run, clocks)
        time.sleep(0.5)  # looking at ten processes takes milliseconds of the workers' cores
    if run.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {run.returncode}")
    timings = Run(out).timings
    each = [
        one_worker(rows.sort_values("started"), clocks[pid]) for pid, rows in timings.groupby("pid")
    ]
    rates, cpu, busy = zip(*each, strict=True)
    return Measured(sum(rates), statistics.mean(cpu), statistics.mean(busy))


def look(run: psutil.Process, clocks: dict[int, list[tuple[float, float]]]) -> None:
    """Note time and CPU seconds of every process of a run."""
    with suppress(psutil.NoSuchProcess):
        for process in run.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                spent = sum(process.cpu_times()[:2])  # user and system
                clocks.setdefault(process.pid, []).append((time.time(), spent))


def one_worker(rows: pd.DataFrame, clock: list[tuple[float, float]]) -> Measured:
    """A worker from the end of its first shard to the end of its last."""
    ends = (rows.started + rows.seconds).to_numpy()
    later, span = rows.iloc[1:], ends[-1] - ends[0]
    times, spent = zip(*clock, strict=True)
    first, last = np.interp([ends[0], ends[-1]], times, spent)
    examples = later.examples.sum()
    return Measured(examples / span, (last - first) / examples, later.seconds.sum() / span)


def worth(one: Measured, two: Measured) -> float:
    """Two workers by one, from CPU seconds."""
    return 2 * one.cpu / two.cpu * two.busy / one.busy


def report(pairs: list[tuple[Measured, Measured]], scenes: int, engine: str) -> tuple[str, str]:
    wall = [two.rate / one.rate for one, two in pairs]
    cpu = [worth(one, two) for one, two in pairs]
    title = "Two workers against one"
    rows = [
        f"| {workers} | {statistics.median(m.rate for m in runs):.1f} "
        f"| {1e3 * statistics.median(m.cpu for m in runs):.1f} ms "
        f"| {statistics.median(m.busy for m in runs):.1%} |"
        for workers, runs in enumerate(zip(*pairs, strict=True), 1)
    ]
    lines = [
        f"Occlusion of {scenes} scenes of the embedded world, {3 * scenes} examples, one thread a "
        f"worker, engine {engine}.",
        "",
        "| workers | examples/s | CPU of a worker an example | of its time at work |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"- by the wall: **{statistics.median(wall):.2f}** (median of {len(wall)} pairs, "
        f"{min(wall):.2f} to {max(wall):.2f}), which counts on an idle machine only",
        f"- by CPU seconds and time at work, whatever else runs: **{statistics.median(cpu):.2f}** "
        f"({min(cpu):.2f} to {max(cpu):.2f})",
        f"- `python benchmarks/two_workers.py`; {machine()}; load {os.getloadavg()[0]:.1f}",
    ]
    return title, "\n".join([f"## {title}", "", *lines, ""])


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", default="auto", choices=("auto", "incremental", "plain"))
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = recipe(root, chosen.scenes, chosen.engine)
        measure(path, root / "first", 1)  # measures and compiles what is kept
        pairs = [
            (measure(path, root / f"one{k}", 1), measure(path, root / f"two{k}", 2))
            for k in range(chosen.repeats)
        ]
    title, text = report(pairs, chosen.scenes, chosen.engine)
    print(text)
    if chosen.record:
        put_section(title, text)


if __name__ == "__main__":
    main()
