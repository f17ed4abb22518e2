"""Whether a run is what it says: every row once, every map the one its row describes."""

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipeline.dataset import Root, Run
from pipeline.run import stored_config, stored_layout
from schemas.run import Definition
from schemas.shard import Shard, Task
from workers import encoding
from workers.errors import UserError
from workers.explain import Explainer
from workers.lease import holder
from workers.ledger import Ledger
from workers.store import Store, fragment_key

SHOWN = 3
"""Problems of one kind that are kept as text."""
TOLERANCE = 1e-5
"""Of a map's largest value: a map computed again may take another way through the engine."""


@dataclass
class Check:
    """One question asked of the whole run."""

    name: str
    checked: int = 0
    problems: int = 0
    first: list[str] = field(default_factory=list)
    shards: set[int] = field(default_factory=set)
    """Where computing again would mend it."""

    def problem(self, text: str, shard: int | None = None) -> None:
        self.problems += 1
        if len(self.first) < SHOWN:
            self.first.append(text)
        if shard is not None:
            self.shards.add(shard)


@dataclass(frozen=True)
class Verdict:
    """All checks, and who was writing meanwhile."""

    checks: list[Check]
    driver: str | None

    @property
    def problems(self) -> int:
        return sum(check.problems for check in self.checks)

    @property
    def shards(self) -> list[int]:
        """Shards to compute again (``retry --shard``)."""
        return sorted(set().union(*(check.shards for check in self.checks)))


def verify(root: Root, sample: int = 0, seed: int = 0) -> Verdict:
    """Read all of a run and recompute ``sample`` of its maps.

    Writes nothing, so it is safe beside a driver at work: what is committed meanwhile is checked or
    not, and what is on its way is not called an orphan.
    """
    store = Store(root)
    store.record()
    driver = holder(store.objects)
    checks = [_fragments(store), _arrays(store)]
    if not any(check.problems for check in checks):
        before, decided = _moving(store), store.settled_labels("explain")
        run = _read(root)
        moving = before | _moving(store)
        still = {shard: labels for shard, labels in decided.items() if shard not in moving}
        checks += [_examples(run, still), _maps(run, driver is not None)]
        checks += [_rows_twice(run, still), _references(run, moving)]
        checks.append(_orphans(store, driver is not None))
        if sample:
            checks.append(_recomputed(run, sample, seed))
    return Verdict(checks, str(driver) if driver else None)


def _moving(store: Store) -> set[int]:
    """Shards of which some rows are hidden until they are published."""
    return {shard for shard, _ in store.unsettled()}


def _read(root: Root) -> Run:
    """A run's tables, read in such an order that what rows refer to is read after them.

    A shard that is committed meanwhile then has its examples and failures at least.
    """
    run = Run(root)
    for table in ("metrics", "words", "maps", "failures", "examples"):
        getattr(run, table)
    return run


def _fragments(store: Store) -> Check:
    """Every Parquet page against its checksum, every schema against ours."""
    check = Check("fragments readable")
    for table in ("examples", "maps", "words", "metrics", "failures", "timings"):
        schema = encoding.arrow_schema(table)
        manifest = store.manifest(table)
        for name in [*store.fragments(table), *(manifest.files if manifest else ())]:
            check.checked += 1
            shard = fragment_key(name)[0] if name.startswith("part-") else None
            try:
                stored = store.read_fragment(f"{table}/{name}").schema
            except FileNotFoundError:
                continue  # compacted or replaced since it was listed
            except UserError as error:
                check.problem(str(error), shard)
                continue
            if not stored.equals(schema):
                check.problem(f"{table}/{name}: its columns are not those of a {table} row", shard)
    return check


def _arrays(store: Store) -> Check:
    """Every array's shape, type and names against its definition."""
    check = Check("array metadata")
    record, places = store.record(), store.shards * store.record().capacity
    for label, spec in _specs(store):
        check.checked += 1
        path = f"{label}/{spec.name}"
        try:
            array = store.arrays()[path]
        except (KeyError, FileNotFoundError, ValueError) as error:
            check.problem(f"maps.zarr/{path} cannot be opened: {error}")
            continue
        expected = encoding.array_shape(spec, 1, record.capacity, record.targets)[1:]
        found = (array.shape[1:], str(array.dtype), array.shape[0] >= places)  # type: ignore[union-attr]
        if found != (expected, spec.dtype, True):
            check.problem(
                f"maps.zarr/{path} has shape {array.shape} and type {array.dtype}, not "  # type: ignore[union-attr]
                f"{(places, *expected)} and {spec.dtype}"
            )
    return check


def _specs(store: Store) -> Iterator[tuple[str, encoding.ArraySpec]]:
    for label, definition in store.definitions(["image"]).items():
        for spec in definition.arrays:
            yield label, spec


def _examples(run: Run, decided: Mapping[int, set[str]]) -> Check:
    """One row an example, at the place its shard gives it."""
    check = Check("examples")
    rows, capacity = run.examples, run.record.capacity
    check.checked = len(rows)
    for row in rows[rows.duplicated("question_id")].itertuples():
        check.problem(f"question {row.question_id} has more than one row in examples", row.shard)
    for row in rows[rows.duplicated("ordinal")].itertuples():
        check.problem(f"ordinal {row.ordinal} belongs to more than one example", row.shard)
    for row in rows[rows.ordinal // capacity != rows.shard].itertuples():
        check.problem(f"question {row.question_id}: ordinal {row.ordinal} is outside its shard")
    for shard in decided.keys() - set(rows.shard):
        check.problem(f"shard {shard} has maps and no examples", shard)
    return check


def _maps(run: Run, at_work: bool) -> Check:
    """Every stored map against the checksum in its row; an unstored one is unwritten."""
    check = Check("maps and checksums")
    definitions = run.store.definitions(["image"])
    for (shard, label), rows in run.maps.groupby(["shard", "method"]):
        check.checked += len(rows)
        definition = definitions.get(label)
        if definition is None:
            check.problem(f"{label}: rows of a method without a definition")
            continue
        found = _map_problems(run, definition, rows, int(shard))
        if found and at_work:  # a retry may have replaced rows and maps since the rows were read
            fresh = run.store.read_shard("maps", int(shard)).to_pandas()
            found = _map_problems(run, definition, fresh[fresh.method == label], int(shard))
        for text in found:
            check.problem(text, int(shard))
    return check


def _map_problems(run: Run, definition: Definition, rows: pd.DataFrame, shard: int) -> list[str]:
    label, capacity = definition.label, run.record.capacity
    try:
        arrays = run.store.read_arrays(definition, shard)
    except (ValueError, OSError, RuntimeError) as error:
        return [f"{label}, shard {shard}: cannot be read: {error}"]
    texts = ((row, _map_problem(definition, arrays, row, capacity)) for row in rows.itertuples())
    return [f"{label}, question {row.question_id}: {text}" for row, text in texts if text]


def _map_problem(
    definition: Definition, arrays: dict[str, np.ndarray], row: Any, capacity: int
) -> str | None:
    place, target = row.ordinal % capacity, row.target_index
    own = {
        spec.name: arrays[spec.name][(place, target) if spec.per_target else (place,)]
        for spec in definition.arrays
    }
    if row.status == "failed":
        primary = own[definition.primary or ""]
        return None if np.isnan(primary).all() else "failed, and yet there is a map"
    found = 0
    for name in sorted(own):
        found = zlib.crc32(own[name].tobytes(), found)
    if found == row.checksum:
        return None
    lost = np.isnan(own[definition.primary or ""]).all()
    return "its map is missing" if lost else "its map is not the one the row describes"


def _rows_twice(run: Run, decided: Mapping[int, set[str]]) -> Check:
    """No explanation and no metric twice; every committed label has its rows."""
    check = Check("rows exactly once")
    for table, key in (
        ("maps", ["question_id", "method", "target"]),
        ("words", ["question_id", "method", "target"]),
        ("metrics", ["question_id", "method", "target", "metric", "annotator"]),
    ):
        rows = getattr(run, table)
        check.checked += len(rows)
        for row in rows[rows.duplicated(key)].itertuples():
            what = f"question {row.question_id}, {row.method}, {row.target}"
            check.problem(f"{table}: more than one row for {what}", row.shard)
    _without_rows(run, decided, check)
    return check


def _without_rows(run: Run, decided: Mapping[int, set[str]], check: Check) -> None:
    both = pd.concat([run.maps[["question_id", "method"]], run.words[["question_id", "method"]]])
    present = both.drop_duplicates().groupby("method").question_id.apply(set).to_dict()
    asked = run.explained.groupby("shard").question_id.apply(set).to_dict()
    for shard, labels in decided.items():
        for label in labels:
            missing = asked.get(shard, set()) - present.get(label, set())
            if missing:
                text = f"{label}: no row for question {min(missing)} of shard {shard}"
                check.problem(f"{text} ({len(missing)} in all)", shard)


def _references(run: Run, moving: Collection[int]) -> Check:
    """Every row belongs to an example, and every failed row to a recorded failure."""
    check = Check("cross references")
    known = set(run.examples.question_id)
    for table in ("maps", "words", "metrics"):
        rows = getattr(run, table)
        check.checked += len(rows)
        for row in rows[~(rows.question_id.isin(known) | rows.shard.isin(moving))].itertuples():
            check.problem(f"{table}: question {row.question_id} is not in examples", row.shard)
    places = run.examples.set_index("question_id").ordinal
    there = run.maps[run.maps.question_id.isin(known)]
    moved = there[there.question_id.map(places) != there.ordinal]
    for row in moved.itertuples():
        check.problem(f"maps: question {row.question_id} points at another's place", row.shard)
    told = set(run.failures.question_id)
    for row in run.maps[run.maps.status == "failed"].itertuples():
        if row.question_id not in told and row.shard not in moving:
            check.problem(f"maps: question {row.question_id} failed without a recorded reason")
    return check


def _orphans(store: Store, at_work: bool) -> Check:
    """Objects that no committed row leads to. Of a driver at work some are on their way."""
    check = Check("orphans")
    explained = {fragment_key(name) for name in store.covered("maps")}
    decided = explained | {fragment_key(name) for name in store.covered("metrics")}
    shards = {shard for shard, _ in explained}
    for key in store.objects.sizes(""):
        check.checked += 1
        if at_work or not (text := _orphan(key, decided, shards)):
            continue
        check.problem(f"{key}: {text}")
    return check


def _orphan(key: str, decided: set[tuple[int, str]], shards: set[int]) -> str | None:
    folder, _, name = key.partition("/")
    if folder == "stage":
        return "left by an attempt that never committed; `compact` removes it"
    if folder in {"examples", "words", "failures", "timings"} and name.startswith("part-"):
        return None if fragment_key(name) in decided else "rows of a task that never committed"
    chunk = name.rpartition("/")[2]
    if folder == "maps.zarr" and chunk.startswith("c."):
        return None if int(chunk.split(".")[1]) in shards else "maps of a shard never committed"
    return None


def _recomputed(run: Run, sample: int, seed: int) -> Check:
    """Maps from scratch: same model, same images, largest difference to what is stored."""
    good = run.maps[run.maps.status != "failed"]
    chosen = good.sample(min(sample, len(good)), random_state=seed)
    check = Check("maps recomputed")
    config = stored_config(run.root)
    shards = {shard.number: shard for shard in stored_layout(config, run.store).shards}
    explainer = Explainer(config, run.store.root_anywhere)
    for (number, question_id), rows in chosen.groupby(["shard", "question_id"]):
        fresh = _explain_one(explainer, shards[int(number)], int(question_id), set(rows.method))
        for stored, row in zip(run.fetch(rows), rows.itertuples(), strict=True):
            check.checked += 1
            again = fresh(row)
            worst = float(np.abs(again - stored).max() / max(np.abs(stored).max(), 1e-12))
            if not worst <= TOLERANCE:
                text = f"differs by {worst:.1e} of its largest value"
                what = f"{row.method}, question {question_id}, {row.target}"
                check.problem(f"{what}: {text}", int(number))
    return check


def _explain_one(
    explainer: Explainer, shard: Shard, question_id: int, labels: set[str]
) -> Callable[[Any], np.ndarray]:
    """An example's maps computed again, by the index row that tells of the stored one."""
    image = next(e.image_id for e in shard.examples if e.question_id == question_id)
    own = tuple(e for e in shard.examples if e.image_id == image)
    alone = shard.model_copy(update={"examples": own})
    task = Task(shard=alone, labels=tuple(sorted(labels)))
    ledger = Ledger(task, explainer.model, explainer.methods, explainer.targets, explainer.inexact)
    explainer.fill(ledger)
    scales = {(r.question_id, r.method, r.target): r.scale for r in ledger.maps}

    def fetch(row: Any) -> np.ndarray:
        label, name = row.array.split("/")
        place = ledger.positions[question_id]
        values = ledger.arrays[label, name][place, row.target_index].astype(np.float32)
        return np.multiply(values, scales[question_id, label, row.target], dtype=np.float32)

    return fetch
