"""A run whose maps cost nothing, and faults at every write of it.

    python -m tests.faults PLACE STEP [SCENE ...]

Every ``STEP``-th pair of a write and a way to fail, each in a process of its own; a line of JSON
for each. Maps are drawn, everything else is the pipeline's own: leases, commits, retries, growth,
compaction. ``PLACE`` is a folder, or ``s3://bucket/prefix``.
"""

import errno
import gc
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
import obstore

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.executors.base import Job
from pipeline.plan import _todo, retry_tasks
from pipeline.verify import verify
from schemas.arrays import ArraySpec
from schemas.config import RunConfig
from schemas.example import Example
from schemas.report import Report
from schemas.rows import ExampleRow, FailureRow, MapRow, MetricRow, WordRow
from schemas.run import Definition, Part, RunRecord
from schemas.shard import Task, partition
from workers import encoding
from workers.crashes import Crashes
from workers.errors import UserError
from workers.ledger import timing_row
from workers.objects import OUTAGE, TEMPORARY, Bucket, Folder, Objects
from workers.store import Store

# --- the run -------------------------------------------------------------------------------------

GRID = ArraySpec(name="map", dims=("y", "x"), shape=(3, 2))
TOP = ArraySpec(name="top", dims=("y", "x"), shape=(3, 2), dtype="int32", per_target=False)
IMAGE = Definition(
    label="m", name="m", parameters={}, kind="image", primary="map", arrays=(GRID, TOP)
)
LATER = IMAGE.model_copy(update={"label": "n", "arrays": (GRID,)})
WORDS = Definition(label="w", name="w", parameters={}, kind="words")
SCORED = Definition(label="k", name="k", parameters={}, kind="metric")
EXAMPLES = [Example(question_id=q, image_id=q, image="x", question="q") for q in range(5)]
SHARDS = partition(EXAMPLES, 2)
FAILS = 1
"""The question that fails until it is tried again."""
CONFIG = RunConfig.model_validate(
    {
        "dataset": {"name": "d"},
        "model": {"name": "m"},
        "methods": {"m": {}},
        "resources": {"executor": "local"},
    }
)
RECORD = RunRecord(
    recipe={}, dataset="d", model="m", targets=("predicted",), shard_size=2, capacity=2,
    shards=2, examples=4, images=4,
)  # fmt: skip
PART = Part(dataset="d", shards=1, examples=1, images=1, recipe={})


class Drawing:
    """Explains a task by values drawn from the seed of each question."""

    def __init__(self, root: str) -> None:
        self.store = Store(root)
        self.crashes = Crashes(self.store.objects)

    def run(self, task: Task) -> Report:
        attempt, number = self.store.attempt("explain", task), task.shard.number
        if not attempt.decided:
            self.crashes.breadcrumb(number, None)
            drawn = {q.question_id: self._draw(task, q.question_id) for q in task.shard.examples}
            bad = [q for q, values in drawn.items() if values is None]
            for label, spec in self._specs(task):
                attempt.add_array(label, spec, self._shard(task, spec, drawn))
            if self.store.brings_examples(task):
                attempt.add_rows("examples", [_example(task, e) for e in task.shard.examples])
            if "w" in task.labels:
                attempt.add_rows("words", [_words(task, q) for q in drawn])
            attempt.add_rows("failures", [_failure(task, q) for q in bad])
            attempt.add_rows("timings", [timing_row(task, "explain", 0.0, len(bad), attempt.name)])
            attempt.commit([row for q in drawn for row in self._rows(task, q, drawn)])
        self.crashes.finished(number)
        return Report(shard=number, examples=2, failed=0, seconds=0.0)

    def _specs(self, task: Task) -> list[tuple[str, ArraySpec]]:
        known = self.store.definitions(["image"])
        return [(n, s) for n in task.labels if n in known for s in known[n].arrays]

    def _draw(self, task: Task, question_id: int) -> np.ndarray | None:
        if question_id == FAILS and task.retry is None and "m" in task.labels:
            return None
        return np.random.default_rng(question_id).normal(size=(3, 2)).astype(np.float32)

    def _shard(
        self, task: Task, spec: ArraySpec, drawn: dict[int, np.ndarray | None]
    ) -> np.ndarray:
        whole = np.full((2, *(1,) * spec.per_target, 3, 2), encoding.fill_value(spec), spec.dtype)
        for place, values in enumerate(drawn.values()):
            if values is not None:
                whole[place] = _as(spec, values)
        return whole

    def _rows(
        self, task: Task, question_id: int, drawn: dict[int, np.ndarray | None]
    ) -> Iterator[MapRow]:
        values = drawn[question_id]
        for label in {label for label, _ in self._specs(task)}:
            own = sorted(
                (spec for name, spec in self._specs(task) if name == label), key=lambda s: s.name
            )
            yield _map(task, question_id, label, values, own)


def _as(spec: ArraySpec, values: np.ndarray) -> np.ndarray:
    return values if spec.dtype == "float32" else (values * 1000).astype(np.int32)


def _place(task: Task, question_id: int) -> dict[str, Any]:
    shard = task.shard.number
    return {
        "question_id": question_id,
        "image_id": question_id,
        "shard": shard,
        "round": task.round,
    }


def _example(task: Task, example: Example) -> ExampleRow:
    unknown = dict.fromkeys(set(ExampleRow.model_fields), None)
    ordinal = task.shard.number * 2 + example.question_id % 2
    known = {**_place(task, example.question_id), "ordinal": ordinal, "status": "ok"}
    return ExampleRow(**{**unknown, **known, "image": "x", "question": "q", "answers": []})


def _words(task: Task, question_id: int) -> WordRow:
    return WordRow(
        **_place(task, question_id), method="w", target="predicted", answer=None, tokens=["q"],
        importances=[float(question_id)], top_answers=None, score="logit", status="ok",
        reason=None, seconds=None,
    )  # fmt: skip


def _failure(task: Task, question_id: int) -> FailureRow:
    return FailureRow(
        **_place(task, question_id), stage="decode", method=None, error="E", message="m",
        traceback="",
    )  # fmt: skip


def _map(
    task: Task, question_id: int, label: str, values: np.ndarray | None, specs: list[ArraySpec]
) -> MapRow:
    checksum = 0
    for spec in specs if values is not None else ():
        checksum = zlib.crc32(_as(spec, values).tobytes(), checksum)
    return MapRow(
        **_place(task, question_id), method=label, target="predicted", answer=None,
        array=f"{label}/map", ordinal=task.shard.number * 2 + question_id % 2, target_index=0,
        score="logit", status="failed" if values is None else "ok", reason=None, minimum=None,
        maximum=None, mean=None, approximation=None, fidelity=None, scale=1.0,
        checksum=None if values is None else checksum, seconds=None, device="cpu",
    )  # fmt: skip


class Scoring:
    """Evaluates a task by a number for each question."""

    def __init__(self, root: str) -> None:
        self.store = Store(root)

    def run(self, task: Task) -> Report:
        attempt = self.store.attempt("evaluate", task)
        if not attempt.decided:
            attempt.add_rows("timings", [timing_row(task, "evaluate", 0.0, 0, attempt.name)])
            attempt.commit([self._row(task, e.question_id) for e in task.shard.examples])
        return Report(shard=task.shard.number, examples=2, failed=0, seconds=0.0)

    def _row(self, task: Task, question_id: int) -> MetricRow:
        rows = self.store.read_shard("maps", task.shard.number).to_pylist()
        (checksum,) = {r["checksum"] for r in rows if r["question_id"] == question_id}
        return MetricRow(
            **_place(task, question_id), method="m", target="predicted", metric="k", annotator=0,
            value=float(checksum or 0), status="ok", conventions="",
        )  # fmt: skip


def explain(root: str) -> None:
    """The first two shards, as ``run`` does it."""
    store = Store(root)
    store.create(RECORD)
    with stages.drive(store) as driver:
        store.accept_images(["images"])
        store.define([IMAGE, WORDS, SCORED])
        _work(driver, _todo(SHARDS[:2], ["m", "w"], store))


def _work(driver: stages.Driver, tasks: list[Task]) -> None:
    root = driver.store.root_anywhere
    driver.work("explain", Job(Drawing, (root,), lambda task: task), tasks, CONFIG)


def evaluate(root: str) -> None:
    """What has no metrics yet, or maps of another time than its metrics."""
    store = Store(root)
    with stages.drive(store) as driver:
        stale, done = store.stale(), store.committed("evaluate")
        tasks = [
            Task(shard=s, labels=("k:m",), retry=tuple(e.question_id for e in s.examples))
            if s.number in done
            else Task(shard=s, labels=("k:m",))
            for s in SHARDS[:2]
            if s.number in stale or s.number not in done
        ]
        job = Job(Scoring, (store.root_anywhere,), lambda task: task, accelerated=False)
        driver.work("evaluate", job, tasks, CONFIG)
        for shard in stale:
            store.evaluated(shard)


def retry(root: str) -> None:
    """What has failed."""
    store = Store(root)
    with stages.drive(store) as driver:
        tasks = retry_tasks(store, SHARDS, ())
        for task in tasks:
            Crashes(store.objects).forgive(task.shard.number)
        _work(driver, tasks)


def grow(root: str) -> None:
    """Another shard, and another method."""
    store = Store(root)
    with stages.drive(store) as driver:
        if len(store.parts()) == 1:
            store.grow(PART)
        store.define([LATER])
        _work(driver, _todo(SHARDS, ["m", "w", "n"], store))


def compact(root: str) -> None:
    stages.compact(root)


@dataclass(frozen=True)
class Scene:
    """A command that is disturbed, and those before it that are not."""

    name: str
    act: Callable[[str], None]
    before: tuple[Callable[[str], None], ...]


SCENES = (
    Scene("run", explain, ()),
    Scene("evaluate", evaluate, (explain,)),
    Scene("retry", retry, (explain, evaluate)),
    Scene("evaluate again", evaluate, (explain, evaluate, retry)),
    Scene("compact", compact, (explain, evaluate)),
    Scene("retry compacted", retry, (explain, evaluate, compact)),
    Scene("grow compacted", grow, (explain, evaluate, compact)),
    Scene("compact again", compact, (explain, evaluate, compact, retry, grow)),
)

# --- what a reader sees --------------------------------------------------------------------------

Contents = dict[str, str]
"""Row -> everything in it, and the map it describes."""
UNLIKE = {"seconds", "device", "started", "host", "pid", "attempt"}


def contents(root: str) -> Contents:
    """All rows that a reader sees, each with its map; a map that is not its row's is an error."""
    if not Store(root).exists:
        return {}
    run, found = Run(root), {}
    for table in ("metrics", "words", "maps", "failures", "examples"):
        for row in getattr(run, table).to_dict("records"):
            key = "/".join([table, *(str(row.get(k)) for k in ("question_id", "method", "metric"))])
            assert key not in found, f"{key} twice"
            kept = {k: v for k, v in row.items() if k not in UNLIKE}
            found[key] = json.dumps(kept, default=str, sort_keys=True)
    for (_, label), rows in run.maps.groupby(["shard", "method"]):
        _check_maps(run, label, rows.to_dict("records"))
    return found


def _check_maps(run: Run, label: str, rows: list[dict[str, Any]]) -> None:
    definition = run.store.definitions(["image"])[label]
    stored = run.store.read_arrays(definition, rows[0]["shard"])
    for row in rows:
        place = row["ordinal"] % 2
        if row["status"] == "failed":
            assert np.isnan(stored["map"][place]).all(), f"{row}: failed, and there is a map"
            continue
        checksum = 0
        for name in sorted(stored):
            checksum = zlib.crc32(stored[name][place].tobytes(), checksum)
        assert checksum == row["checksum"], f"{row}: another map, or none"


def assert_between(seen: Contents, before: Contents, after: Contents) -> None:
    """Every row is one of before or of after, and rows of both that are missing are missing with
    all of their shard's round: its retry is decided and not yet published."""
    for key, row in seen.items():
        assert row in (before.get(key), after.get(key)), f"{key} is of no whole state: {row}"
    gone = {_round(before[key]) for key in before.keys() & after.keys() - seen.keys()}
    assert not gone & {_round(row) for row in seen.values()}, f"only a part of {gone} is gone"


def _round(row: str) -> tuple[int, str]:
    stored = json.loads(row)
    return stored["shard"], stored["round"]


# --- copies --------------------------------------------------------------------------------------


def clone(source: str, target: str) -> None:
    """A run's place again. Files are never changed in place, so names of the same ones do."""
    if "://" not in source:
        if Path(source).exists():
            shutil.copytree(source, target, copy_function=os.link)
        return
    a, b = Bucket(source), Bucket(target)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: b.put(key, a.read(key)), a.sizes("")))


def remove(root: str) -> None:
    """What a case has left; the server looks at every object when it lists some."""
    if "://" in root:
        Bucket(root).delete_folder("")
    else:
        shutil.rmtree(root, ignore_errors=True)


# --- faults --------------------------------------------------------------------------------------

WRITES = ("put", "put_new", "move", "delete", "delete_folder")
DEATHS = ("die before", "die during", "die after")
ERRORS = ("disk full", "denied", "answer lost")
LASTING = ("disk full", "denied")
"""From their write on until the cause is mended; the others strike once."""


class Injected:
    """Counts the writes of a place and fails one. In a process that ends with its case."""

    def __init__(self, kind: type[Objects], number: int = 0, fault: str = "") -> None:
        self.number, self.fault, self.seen = number, fault, 0
        self.writes: list[str] = []
        for name in WRITES:
            setattr(kind, name, self._wrapped(name, getattr(kind, name)))

    def _wrapped(self, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(objects: Objects, *arguments: Any) -> Any:
            self.seen += 1
            self.writes.append(f"{name} {arguments[0]}")
            late = self.fault in LASTING and self.seen > self.number
            if self.seen != self.number and not late:
                return write(objects, *arguments)
            return self._fail(objects, name, partial(write, objects, *arguments))

        return wrapped

    def _fail(self, objects: Objects, name: str, write: Callable[[], Any]) -> Any:
        if self.fault == "die before":
            die()
        if self.fault == "denied":
            raise PermissionError(errno.EACCES, "Permission denied")
        if self.fault == "disk full":
            if name.startswith("delete"):
                return write()
            self._half(_refuse)
        if self.fault == "die during":
            self._half(die)
        result = write()
        if self.fault in ("die during", "die after"):
            die()
        if self.fault == "answer lost":
            raise OSError(errno.EIO, "Input/output error")
        return result

    def _half(self, then: Callable[[], None]) -> None:
        """From here on a file that is written keeps its first half, and then this happens."""
        real, remove, forget = os.fsync, shutil.rmtree, obstore.delete

        def fsync(descriptor: int) -> None:
            if os.path.isfile(f"/proc/self/fd/{descriptor}"):  # noqa: PTH113
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            then()
            real(descriptor)

        def rmtree(folder: Path, **options: Any) -> None:
            for path in [p for p in Path(folder).rglob("*") if p.is_file()][::2]:
                path.unlink()
            then()
            remove(folder, **options)

        def delete(store: Any, keys: Any) -> None:
            then()
            forget(store, keys)

        os.fsync, shutil.rmtree, obstore.delete = fsync, rmtree, delete  # type: ignore[assignment]


def _refuse() -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def die() -> NoReturn:
    """As SIGKILL: nothing is closed, released or written any more."""
    os._exit(9)


# --- cases ---------------------------------------------------------------------------------------


def child(work: Callable[[], Any]) -> Any:
    """What ``work`` gives in a process of its own; None where that has died."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(told) if told else None


def record(kind: type[Objects], scene: Scene, root: str) -> dict[str, Any]:
    """The writes of an undisturbed scene, and what a reader sees then."""
    injected = Injected(kind)
    scene.act(root)
    return {"writes": injected.writes, "after": contents(root)}


def disturb(kind: type[Objects], scene: Scene, root: str, number: int, fault: str) -> str:
    """How a scene ends in which one write fails."""
    Injected(kind, number, fault)
    try:
        scene.act(root)
    except (UserError, *OUTAGE) as error:
        return str(error)
    return "done"


def mend(scene: Scene, root: str, before: Contents, after: Contents) -> str:
    """Read what the fault has left, give the same command again, and read that."""
    assert_between(contents(root), before, after)
    scene.act(root)
    now = contents(root)
    assert now == after, sorted(set(now.items()) ^ set(after.items()))[:2]
    if "://" not in root:
        stages.compact(root)
        assert Store(root).objects.children("stage") == []
        assert not list(Path(root).rglob(f"{TEMPORARY}*"))
        verdict = verify(root)
        assert verdict.problems == 0, [check.first for check in verdict.checks if check.problems]
    return "mended"


def cases(
    kind: type[Objects], place: str, step: int, scenes: Sequence[Scene]
) -> Iterator[dict[str, Any]]:
    faults = (*DEATHS, *ERRORS) if kind is Folder else DEATHS
    turn = count()
    for scene in scenes:
        start = f"{place}/{scene.name.replace(' ', '-')}"
        before = child(partial(prepare, scene, start)) or {}
        child(partial(clone, start, f"{start}-after"))
        undisturbed = child(partial(record, kind, scene, f"{start}-after"))
        for number, write in enumerate(undisturbed["writes"], 1):
            for fault in faults:
                if next(turn) % step:
                    continue
                root = f"{start}-{number}-{fault.replace(' ', '-')}"
                child(partial(clone, start, root))
                ended = child(partial(disturb, kind, scene, root, number, fault))
                mended = child(partial(mend, scene, root, before, undisturbed["after"]))
                where = {"scene": scene.name, "write": write, "fault": fault}
                yield {**where, "ended": ended, "mended": mended}
                child(partial(remove, root))


def prepare(scene: Scene, root: str) -> Contents:
    for act in scene.before:
        act(root)
    return contents(root)


def warm_up() -> None:
    """Import and set up once what every one of many processes needs. No file is synced: that
    matters when a machine dies, not a process."""
    os.fsync = lambda descriptor: None
    with TemporaryDirectory() as folder:
        for act in SCENES[-1].before:
            act(f"{folder}/run")
        contents(f"{folder}/run")
        verify(f"{folder}/run")
    gc.freeze()


def main() -> None:
    place, step = sys.argv[1], int(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warm_up()
    chosen = [scene for scene in SCENES if scene.name in (sys.argv[3:] or (scene.name,))]
    for case in cases(Bucket if "://" in place else Folder, place, step, chosen):
        print(json.dumps(case), file=out, flush=True)
    os._exit(0)  # what was set up is not taken apart


if __name__ == "__main__":
    main()
