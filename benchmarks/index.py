"""Book-keeping at scale: planning, resuming and querying, with a model that costs nothing.

    python benchmarks/index.py [--examples 1000000] [--shards 10000] [--record]

Plans a run over a VQA questions file, resumes one with finished shards, merges its index, and
queries it with pandas alone. Each step has a process of its own, so its peak memory is its own.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from against_captum import machine, put_section

from pipeline.plan import _todo, make_plan
from pipeline.recipe import parse
from schemas.example import Example
from schemas.rows import arrow_schema
from schemas.run import RunRecord
from schemas.shard import Shard, Task, partition
from workers import encoding
from workers.compact import compact
from workers.store import Store

SIZE = 64
"""Examples a shard."""
LABELS = tuple(f"method{i}" for i in range(8))
ROWS = SIZE * len(LABELS) * 2
"""Map rows a shard: two targets."""


def write_questions(root: Path, examples: int) -> None:
    """An official questions file, three questions an image, and empty image files."""
    folder = root / "images" / "val2014"
    folder.mkdir(parents=True)
    for image in range(-(-examples // 3)):
        (folder / f"COCO_val2014_{image:012d}.jpg").touch()
    records = (
        json.dumps({"image_id": i // 3, "question_id": i, "question": f"What is thing {i}?"})
        for i in range(examples)
    )
    with (root / "questions.json").open("w") as file:
        file.write('{"data_subtype": "val2014", "questions": [')
        for i, record in enumerate(records):
            file.write(record if i == 0 else "," + record)
        file.write("]}")


def plan(root: Path) -> None:
    dataset = {"name": "vqa", "root": str(root), "questions": "questions.json"}
    make_plan(parse({"dataset": dataset, "model": "demo", "methods": ["center"]}, "scale"), None)


def shards_of(count: int) -> list[Shard]:
    asked = range(count * SIZE)
    return partition(
        [Example(question_id=i, image_id=i, image="a.jpg", question="what?") for i in asked], SIZE
    )


def write_index(root: Path, count: int) -> None:
    """A run's maps fragments as its workers would have left them; values drawn anew in each."""
    Store(root).create(
        RunRecord(
            recipe={},
            dataset="",
            model="",
            targets=("predicted", "truth"),
            shard_size=SIZE,
            capacity=SIZE,
            shards=count,
            examples=count * SIZE,
            images=count * SIZE,
        )
    )
    (root / "maps").mkdir()
    round_name = Task(shard=shards_of(1)[0], labels=LABELS).round
    metadata = {"attempt": "a", "labels": json.dumps(LABELS), "version": "2"}
    schema, rng = arrow_schema("maps", metadata), np.random.default_rng(0)
    for shard in range(count):
        table = pa.table(_columns(schema, shard, round_name, rng), schema=schema)
        path = root / "maps" / f"part-{shard:07d}-{round_name}.parquet"
        path.write_bytes(encoding.parquet(table))


def _columns(
    schema: pa.Schema, shard: int, round_name: str, rng: np.random.Generator
) -> dict[str, pa.Array]:
    ids = np.tile(np.arange(shard * SIZE, (shard + 1) * SIZE), ROWS // SIZE)
    special: dict[str, Any] = {
        "question_id": ids,
        "image_id": ids,
        "ordinal": ids,
        "shard": np.full(ROWS, shard),
        "method": np.repeat(LABELS, SIZE * 2),
        "target": np.tile(np.repeat(["predicted", "truth"], SIZE), len(LABELS)),
        "status": np.where(rng.random(ROWS) < 0.05, "degenerate", "ok"),
        "round": np.full(ROWS, round_name),
    }
    kinds: dict[pa.DataType, Callable[[], Any]] = {
        pa.int64(): lambda: rng.integers(0, 2**32, ROWS),
        pa.float64(): lambda: rng.random(ROWS),
        pa.string(): lambda: rng.choice(["yes", "no", "red"], ROWS),
    }
    return {f.name: pa.array(special.get(f.name, kinds[f.type]()), f.type) for f in schema}


def resume(root: Path, count: int) -> Callable[[], None]:
    """What a driver does once it has planned: list what is committed, and what is left."""
    shards = shards_of(count)

    def list_left() -> None:
        assert _todo(shards, list(LABELS), Store(root)) == []

    return list_left


def query(root: Path) -> None:
    chosen = [("method", "==", "method3"), ("status", "==", "degenerate")]
    columns = ["question_id", "target", "ordinal", "mean"]
    assert len(pd.read_parquet(root / "maps", filters=chosen, columns=columns))


def _measure(step: Callable[..., Any], arguments: tuple, results: Any) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    if callable(prepared := step(*arguments)):
        start, cpu = time.perf_counter(), time.process_time()
        prepared()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.send((time.perf_counter() - start, time.process_time() - cpu, peak))


def measured(name: str, step: Callable[..., Any], *arguments: object) -> str:
    """A table row: a step in a new process, imports left out of its time."""
    context = multiprocessing.get_context("spawn")
    results, own = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(step, arguments, own))
    process.start()
    own.close()  # so that the end of the process is the end of the pipe
    try:
        wall, cpu, peak = results.recv()
    except EOFError:
        raise SystemExit(f"{name}: failed, as told above") from None
    process.join()
    row = f"| {name} | {wall:.2f} | {cpu:.2f} | {peak / 1e9:.2f} |"
    print(row, flush=True)
    return row


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        data.mkdir()
        write_questions(data, chosen.examples)
        rows = [measured(f"plan {chosen.examples:,} examples", plan, data)]
        write_index(run, chosen.shards)
        finished = f"{chosen.shards:,} finished shards"
        rows.append(measured(f"resume, {finished}", resume, run, chosen.shards))
        total = f"{chosen.shards * ROWS:,} rows"
        rows.append(measured(f"compact, {total}", compact, Store(run)))
        rows.append(measured(f"resume, {finished}, compacted", resume, run, chosen.shards))
        rows.append(measured(f"pandas query by method and status, {total}", query, run))
    title = "Book-keeping"
    head = ["| step | seconds | CPU seconds | peak memory, GB |", "| --- | ---: | ---: | ---: |"]
    text = "\n".join([f"## {title}", "", *head, *rows, "", f"{machine()}", ""])
    if chosen.record:
        put_section(title, text)


if __name__ == "__main__":
    main()
