"""What a whole run costs beyond the bare engine: decoding, Ray, Zarr and Parquet.

    python benchmarks/overhead.py [--scenes 40] [--record]

Occlusion of the embedded world's scenes by a run with one Ray worker, and by a loop that calls the
same method on scenes already in memory. Each is run with n and with 3 n scenes in turn; the
difference is what 2 n scenes cost, start-up left out.
"""

import statistics
import tempfile
from argparse import ArgumentParser
from pathlib import Path

import torch
from against_captum import machine, put_section, timed

from pipeline import run as stages
from pipeline.recipe import parse
from schemas.config import RunConfig
from schemas.shard import by_image
from workers import catalog
from workers.fidelity import engine_options
from workers.images import decode
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.sweep.engine import Engine


def recipe(scenes: int, root: Path) -> RunConfig:
    return parse(
        {
            "dataset": {"name": "shapes", "root": str(root), "scenes": scenes},
            "model": "demo",
            "methods": ["occlusion"],
            "resources": {"workers": 1},
        },
        "overhead",
    )


def bare(config: RunConfig) -> float:
    """Seconds of the loop over prepared scenes."""
    model = catalog.model_spec(config.model).build(torch.device("cpu"))
    engine = Engine(model, engine_options(config))
    examples = list(catalog.dataset(config.dataset).examples())
    scenes = [
        Scene(
            model=model,
            canvas=model.prepare(decode(asked[0].image, config.limits))[0],
            questions=[model.tokenise(e.question) for e in asked],
            question_ids=[e.question_id for e in asked],
            truths=[model.answer_index(e.truth) for e in asked],
            engine=engine,
        )
        for asked in by_image(examples).values()
    ]
    return timed(lambda: [Occlusion().explain(scene) for scene in scenes])[0]


def whole(config: RunConfig, out: Path) -> float:
    """Seconds of the run, its start included."""
    return timed(lambda: stages.run(config, out))[0]


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    overheads, loops = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        few, many = (recipe(n * chosen.scenes, root / f"world{n}") for n in (1, 3))
        for i in range(chosen.repeats):
            loop = bare(many) - bare(few)
            run = whole(many, root / f"many{i}") - whole(few, root / f"few{i}")
            loops.append(loop)
            overheads.append(run / loop - 1)
    title = "Overhead of a whole run over the bare engine"
    text = "\n".join(
        [
            f"## {title}",
            "",
            f"- occlusion of {2 * chosen.scenes} scenes of the embedded world, three questions "
            f"each: {statistics.median(loops):.1f} s by the bare loop; a run with one Ray worker "
            f"takes {statistics.median(overheads):+.1%} (median of {len(overheads)}, "
            f"{min(overheads):+.1%} to {max(overheads):+.1%})",
            f"- {machine()}",
            "",
        ]
    )
    print(text)
    if chosen.record:
        put_section(title, text)


if __name__ == "__main__":
    main()
