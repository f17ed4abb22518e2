"""A report on a large finished run: time and memory of every study and of the page.

    python benchmarks/report.py [--scenes 3334] [--study all] [--at FOLDER] [--record]

Draws a run that nobody computed: the embedded world's questions, ten methods of images and two of
words, two targets, ten metrics and three annotators, in the project's own layout, with random
numbers for maps and metrics (5.9 million metric rows at 10,000 questions). The report runs in a
process of its own. ``--at`` keeps the run for another time.
"""

import json
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from against_captum import machine, put_section
from index import measured

from pipeline.plan import make_plan
from pipeline.recipe import parse
from pipeline.report.document import report
from schemas.rows import arrow_schema
from schemas.run import Definition
from schemas.shard import Shard, Task
from workers import encoding
from workers.store import Store

METHODS: dict[str, Any] = {
    "occlusion": {"grid": 16},
    "sliding": {"method": "occlusion", "window": 24, "stride": 12},
    "saliency": {},
    "guided_backprop": {},
    "deconvnet": {},
    "grad_cam": {},
    "guided_grad_cam": {},
    "attention": {},
    "word_occlusion": {},
    "word_gradient": {},
}
METRICS = (
    *("rank_correlation", "ty_rank", "ty_intersection", "ty_disc_intersection", "ty_iou"),
    *("ty_precision", "ty_recall", "ty_f1", "ty_dice", "ty_f1_nonempty"),
)
ANNOTATORS = 3
SIZE = 64
Columns = dict[str, Any]


def draw_run(root: Path, scenes: int) -> None:
    """A finished run; every shard has the same maps, by hard links, but rows of its own."""
    dataset = {"name": "shapes", "root": str(root / "world"), "scenes": scenes}
    resources = {"executor": "local", "engine": "plain"}
    sections = {"dataset": dataset, "model": "demo", "methods": METHODS, "resources": resources}
    config = parse({**sections, "store": {"shard_size": SIZE}}, "benchmark")
    plan = make_plan(config, None)
    store = Store(root / "run")
    store.create(plan.record)
    store.define(plan.definitions)
    rng = np.random.default_rng(0)
    methods = [d for d in plan.definitions if d.kind != "metric"]
    for shard in plan.shards:
        _write_rows(root / "run", shard, methods, rng)
    for definition in methods:
        _write_maps(root / "run", definition, len(plan.shards), plan.record.capacity, rng)


def _write_maps(
    run: Path, definition: Definition, shards: int, capacity: int, rng: np.random.Generator
) -> None:
    for spec in definition.arrays:
        shape = encoding.array_shape(spec, 1, capacity, ("predicted", "truth"))
        values = rng.normal(size=shape).astype(spec.dtype)
        first = run / encoding.shard_key(definition.label, spec, 0)
        first.parent.mkdir(parents=True, exist_ok=True)
        first.write_bytes(encoding.zarr_shard(spec, values))
        for shard in range(1, shards):
            (run / encoding.shard_key(definition.label, spec, shard)).hardlink_to(first)


def _write_rows(
    run: Path, shard: Shard, methods: list[Definition], rng: np.random.Generator
) -> None:
    images = [d for d in methods if d.kind == "image"]
    words = [d for d in methods if d.kind == "words"]
    explain = Task(shard=shard, labels=tuple(d.label for d in methods))
    names = ("rank_correlation", "tang_yuan")
    labels = tuple(f"{m}:{label}" for m in names for label in (*(d.label for d in images), "human"))
    evaluate = Task(shard=shard, labels=labels)
    _write(run, "examples", explain, _examples(shard, rng))
    _write(run, "maps", explain, _maps(shard, images, rng))
    _write(run, "words", explain, _words(shard, words, rng))
    _write(run, "metrics", evaluate, _metrics(shard, images, rng))
    timing = {"stage": ["explain"], "labels": [list(explain.labels)], "host": ["here"]}
    _write(run, "timings", explain, timing | {"examples": [len(shard.examples)]})


def _write(run: Path, table: str, task: Task, columns: Columns) -> None:
    """A fragment; columns that no report reads are alike in all rows."""
    metadata = {"attempt": "a", "labels": json.dumps(task.labels), "version": "2"}
    schema = arrow_schema(table, metadata)
    rows = len(next(iter(columns.values())))
    columns = {"shard": np.full(rows, task.shard.number), "round": [task.round] * rows} | columns
    alike = {pa.int64(): 1, pa.float64(): 1.0, pa.string(): "x", pa.bool_(): True}
    data = [
        pa.array(columns.get(field.name, [alike.get(field.type)] * rows), field.type)
        for field in schema
    ]
    path = run / table / f"part-{task.shard.number:07d}-{task.round}.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoding.parquet(pa.table(data, schema=schema)))


def _examples(shard: Shard, rng: np.random.Generator) -> Columns:
    examples, n = shard.examples, len(shard.examples)
    correct = _correct([e.question_id for e in examples])
    return {
        "question_id": [e.question_id for e in examples],
        "image_id": [e.image_id for e in examples],
        "image": [e.image for e in examples],
        "question": [e.question for e in examples],
        "tokens": [e.question.lower().rstrip("?").split() for e in examples],
        "answers": [list(e.answers) for e in examples],
        "answer_type": [e.answer_type for e in examples],
        "prediction": [e.truth if c else "other" for e, c in zip(examples, correct, strict=True)],
        "truth": [e.truth for e in examples],
        "confidence": rng.random(n),
        "correct": correct,
        "accuracy": correct.astype(float),
        "status": ["ok"] * n,
        "reason": [None] * n,
        "frame": [[0.0, 0.0, 1.0, 1.0]] * n,
        "image_height": [96] * n,
        "image_width": [96] * n,
        "ordinal": list(shard.ordinals),
    }


def _correct(question_ids: Any) -> np.ndarray:
    """Three answers in five."""
    return np.asarray(question_ids) % 5 < 3


def _explained(rows: Columns) -> Columns:
    """Without the truth of right answers, which is what was predicted."""
    values = {name: np.asarray(column) for name, column in rows.items()}
    kept = (values["target"] != "truth") | ~_correct(values["question_id"])
    return {name: column[kept] for name, column in values.items()}


def _repeated(shard: Shard, methods: list[str], times: int = 1) -> Columns:
    """Rows for every method, target and example, each so many times."""
    examples = shard.examples
    n = len(examples) * times
    targets = np.tile(np.repeat(["predicted", "truth"], n), len(methods))
    return {
        "question_id": np.tile(
            np.repeat([e.question_id for e in examples], times), 2 * len(methods)
        ),
        "image_id": np.tile(np.repeat([e.image_id for e in examples], times), 2 * len(methods)),
        "method": np.repeat(methods, 2 * n),
        "target": targets,
    }


def _maps(shard: Shard, methods: list[Definition], rng: np.random.Generator) -> Columns:
    rows = _repeated(shard, [d.label for d in methods])
    arrays = [f"{d.label}/{d.primary}" for d in methods]
    n = len(rows["method"])
    rows = _explained(
        rows
        | {
            "array": np.repeat(arrays, n // len(methods)),
            "ordinal": np.tile(list(shard.ordinals), 2 * len(methods)),
            "target_index": (rows["target"] == "truth").astype(int),
            "minimum": rng.normal(-3, 0.1, n),
            "status": np.where(rng.random(n) < 0.01, "degenerate", "ok"),
        }
    )
    return rows | {"reason": [None] * len(rows["method"])}


def _words(shard: Shard, methods: list[Definition], rng: np.random.Generator) -> Columns:
    rows = _explained(_repeated(shard, [d.label for d in methods]))
    words = {e.question_id: len(e.question.rstrip("?").split()) for e in shard.examples}
    lengths = [words[i] for i in rows["question_id"]]
    importances = [rng.normal(size=length).tolist() for length in lengths]
    tokens = [["word"] * length for length in lengths]
    return rows | {
        "importances": importances,
        "tokens": tokens,
        "top_answers": tokens,
        "status": ["ok"] * len(lengths),
        "reason": [None] * len(lengths),
    }


def _metrics(shard: Shard, methods: list[Definition], rng: np.random.Generator) -> Columns:
    each = _repeated(shard, [d.label for d in methods], ANNOTATORS)
    each["annotator"] = np.tile(np.arange(ANNOTATORS), len(each["method"]) // ANNOTATORS)
    each = _explained(each)
    people = _repeated(shard, ["human", "shuffled_human"], ANNOTATORS)
    own = people["target"] == "predicted"
    people = {name: values[own] for name, values in people.items()}
    people["target"] = np.full(len(people["target"]), "human")
    people["annotator"] = np.tile(np.arange(ANNOTATORS), len(people["method"]) // ANNOTATORS)
    rows = {name: np.concatenate([each[name], people[name]]) for name in each}
    n = len(rows["method"])
    strength = {label: i / 20 for i, label in enumerate(dict.fromkeys(rows["method"]))}
    means = np.tile([strength[label] for label in rows["method"]], len(METRICS))
    status = np.where(rng.random(n * len(METRICS)) < 0.01, "degenerate_model", "ok")
    values = np.where(status == "ok", rng.normal(means, 0.3), np.nan)
    return {name: np.tile(values, len(METRICS)) for name, values in rows.items()} | {
        "metric": np.repeat(METRICS, n),
        "value": pa.array(values, pa.float64(), from_pandas=True),
        "status": status,
    }


def make(run: Path, out: Path, studies: list[str]) -> None:
    """What is measured; each study's own seconds are printed."""
    written = report(run, out, studies)
    print(f"page {written.bytes / 1e6:.1f} MB", flush=True)


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=3334, help="three questions each")
    parser.add_argument("--study", nargs="*", default=["all"])
    parser.add_argument("--at", type=Path, help="where the run is, or is to be kept")
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = chosen.at or Path(folder)
        if not (root / "run" / "run.json").exists():
            draw_run(root, chosen.scenes)
        rows = ds.dataset(root / "run" / "metrics").count_rows()
        name = f"report, {3 * chosen.scenes:,} questions, {rows:,} metric rows"
        row = measured(name, make, root / "run", Path(folder) / "report", chosen.study)
    title = "Report"
    head = ["| step | seconds | CPU seconds | peak memory, GB |", "| --- | ---: | ---: | ---: |"]
    if chosen.record:
        put_section(title, "\n".join([f"## {title}", "", *head, row, "", f"{machine()}", ""]))


if __name__ == "__main__":
    main()
