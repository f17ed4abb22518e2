"""The store: the only module that writes a run. Layout and commit protocol in ARCHITECTURE.md.

A worker stages everything one task yields under ``stage/<task>.<attempt>/``, then creates the
deciding Parquet fragment: that is the commit, first writer wins. Only then are the staged objects
moved to their final places, a step that anyone may redo. A retry decides by a mark of its own and
replaces the fragment as the last thing it publishes.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import zarr
from pydantic import ValidationError

from schemas.arrays import ArraySpec
from schemas.base import Frozen
from schemas.fidelity import Fidelity
from schemas.rows import arrow_schema
from schemas.run import VERSION, Definition, Manifest, Part, RunRecord
from schemas.shard import Task
from workers import encoding
from workers.errors import UserError
from workers.lease import check_fence
from workers.objects import PROBE, Objects, check_first_writer_wins, open_objects

DECIDING = {"explain": "maps", "evaluate": "metrics"}
"""The table whose fragment decides that a task of a stage is done."""
MARK = "commit-"
"""So begin the names below ``stage/`` by which a retry decides."""
DAMAGED = "`python run_pipeline.py verify {}` lists all damage and how to compute it again."
COMPACTED = (
    "It holds a method's rows of many shards: put it back from a copy of the run, or make the run "
    "anew in another --out."
)
"""Remedies for a file of rows that cannot be read."""
Record = TypeVar("Record", bound=Frozen)


class Store:
    """One run's place, by path or ``s3://`` URL. Drivers, workers and readers open it by that."""

    def __init__(self, root: Path | str) -> None:
        self.objects: Objects = open_objects(root)
        self.root = str(root)
        self._rounds: dict[str, tuple[str, ...]] = {}
        self._record: RunRecord | None = None

    @property
    def root_anywhere(self) -> str:
        """The run's place as another process finds it, whatever its working folder."""
        return str(self.objects.local or self.root)

    # --- identity -------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return self.objects.exists("run.json")

    def record(self) -> RunRecord:
        """The run's identity, read once; a place without one is not a run."""
        if self._record is None:
            try:
                self._record = self._load("run.json", RunRecord)
            except FileNotFoundError:
                raise UserError(
                    f"{self.root} is not a run: it has no run.json. Make one with "
                    f"`python run_pipeline.py run RECIPE --out {self.root}`."
                ) from None
        return self._record

    def parts(self) -> list[Part]:
        """What the run began with, and what it has grown by since."""
        later = [self._load(f"parts/{name}", Part) for name in self.objects.names("parts")]
        return [self.record().first, *later]

    def images(self) -> list[str]:
        """Digest of the image files of every part, as the last driver has accepted them."""
        keys = [f"images/{name}" for name in self.objects.names("images")]
        return [self.objects.read(key).decode() for key in keys]

    def accept_images(self, digests: Sequence[str]) -> None:
        """Record the image files that the run goes on with."""
        stored = self.images()
        for number, digest in enumerate(digests):
            if stored[number : number + 1] != [digest]:
                self.objects.put(f"images/part-{number:04d}", digest.encode())

    @property
    def shards(self) -> int:
        """Shards of all parts."""
        return sum(part.shards for part in self.parts())

    def _load(self, key: str, kind: type[Record]) -> Record:
        try:
            return kind.model_validate_json(self.objects.read(key))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{self.root}/{key} is damaged, or another version wrote it: {where}: "
                f"{first['msg']} ({error.error_count()} errors). Put back a copy, or make a new "
                "run; `verify` tells what else is damaged."
            ) from None

    def create(self, record: RunRecord) -> None:
        """Claim the place for this run, or check that it is this run's already."""
        if self.exists:
            self._refuse_other(record)
        else:
            self._try()
        if not self.exists and not self.objects.put_new("run.json", _pretty(record)):
            self._refuse_other(record)
        self._make_group("")

    def _try(self) -> None:
        """A first look and write, which tell whether the place is one for a run."""
        try:
            if self._taken():
                raise UserError(
                    f"{self.root} is not empty and is not a run: choose another --out, or empty it."
                )
            check_first_writer_wins(self.objects)
        except OSError as error:
            if not error.strerror:
                raise
            raise UserError(
                f"{self.root}: no run can be made there: {error.strerror}. Choose another --out."
            ) from error

    def _taken(self) -> bool:
        """Whether more lies here than a submitted job's plan, or a creation that was cut off."""
        probes = all(name.startswith(PROBE) for name in self.objects.children("stage"))
        return bool({*self.objects.children("")} - {"submitted", "stage"}) or not probes

    def _refuse_other(self, record: RunRecord) -> None:
        stored = self.record()
        fields = ("version", "dataset", "model", "targets", "shard_size", "capacity", "shards")
        different = [f for f in fields if getattr(stored, f) != getattr(record, f)]
        if different:
            values = ", ".join(
                f"{f} (stored {_short(getattr(stored, f))}, now {_short(getattr(record, f))})"
                for f in different
            )
            raise UserError(
                f"{self.root} holds another run: it differs in {values}. "
                "Choose another --out, or go back to the recipe in its run.json. "
                "(A dataset may grow at its end only.)"
            )

    def grow(self, part: Part) -> None:
        """Add examples, in shards of their own after the run's last; places for them first."""
        for definition in self.definitions(["image"]).values():
            self._create_arrays(definition, part.shards)
        self._write_once(f"parts/part-{len(self.parts()):04d}.json", _pretty(part))

    def define(self, definitions: Iterable[Definition]) -> None:
        """Record methods and metrics; the same label with other parameters is refused."""
        definitions = list(definitions)
        for new in definitions:
            self._refuse_changed(new)
        for new in definitions:
            self._create_arrays(new)
            self._write_once(_definition(new.kind, new.label), _pretty(new))

    def _refuse_changed(self, new: Definition) -> None:
        key = _definition(new.kind, new.label)
        if not self.objects.exists(key):
            return
        stored = self._load(key, Definition)
        if stored != new:
            old, now = stored.model_dump(mode="json"), new.model_dump(mode="json")
            differ = {
                k: (old["parameters"].get(k), now["parameters"].get(k))
                for k in sorted({*old["parameters"], *now["parameters"]})
                if old["parameters"].get(k) != now["parameters"].get(k)
            }
            changes = ", ".join(f"{k} was {a!r} and is now {b!r}" for k, (a, b) in differ.items())
            raise UserError(
                f"{self.root} holds {new.label} with other parameters: "
                f"{changes or 'its arrays or its class changed'}. Give the new variant a label of "
                f"its own (`{new.label}_2: {{method: {new.name}, ...}}`), or choose another --out."
            )

    def definitions(self, kinds: Sequence[str]) -> dict[str, Definition]:
        """Label -> definition of every recorded method or metric of these kinds."""
        keys = [
            f"definitions/{kind}/{name}"
            for kind in kinds
            for name in self.objects.names(f"definitions/{kind}")
        ]
        found = [self._load(key, Definition) for key in keys]
        return {definition.label: definition for definition in found}

    def record_fidelity(self, measured: Iterable[Fidelity]) -> None:
        """What was measured before the first map; it stays as it is."""
        for fidelity in measured:
            self._write_once(f"fidelity/{fidelity.label}.json", _pretty(fidelity))

    def fidelity(self) -> dict[str, Fidelity]:
        """Label -> measured fidelity, of the methods that are not exact."""
        names = self.objects.names("fidelity")
        found = [self._load(f"fidelity/{name}", Fidelity) for name in names]
        return {fidelity.label: fidelity for fidelity in found}

    def _create_arrays(self, definition: Definition, more: int = 0) -> None:
        """Array metadata, written by the driver alone and before any worker starts."""
        record, shards = self.record(), self.shards + more
        for spec in definition.arrays:
            path = f"{definition.label}/{spec.name}"
            key = f"maps.zarr/{path}/zarr.json"
            if not self.objects.exists(key):
                self._make_group(f"{definition.label}/")
                data = encoding.array(spec, shards, record.capacity, record.targets)
                self.objects.put(key, data)
            elif larger := encoding.grown(self.objects.read(key), shards * record.capacity):
                self.objects.put(key, larger)

    def _make_group(self, path: str) -> None:
        self._write_once(f"maps.zarr/{path}zarr.json", encoding.group())

    @cached_property
    def zarr_store(self) -> Any:
        """``maps.zarr`` as a Zarr store."""
        return self.objects.zarr("maps.zarr")

    def arrays(self) -> zarr.Group:
        """``maps.zarr``, to read."""
        return zarr.open_group(self.zarr_store, mode="r")

    def _write_once(self, key: str, data: bytes) -> None:
        if not self.objects.exists(key):
            self.objects.put_new(key, data)

    # --- rows -----------------------------------------------------------------------------------

    def fragments(self, table: str) -> list[str]:
        """Names of a table's loose fragments."""
        return [n for n in self.objects.names(table) if n.startswith("part-")]

    def manifest(self, table: str) -> Manifest | None:
        """What has been compacted, if anything."""
        names = [n for n in self.objects.names(table) if n.startswith("_compact-")]
        return self._load(f"{table}/{max(names)}", Manifest) if names else None

    def committed(self, stage: str) -> dict[int, set[str]]:
        """Shard -> labels done, read off the names of the deciding fragments."""
        table = DECIDING[stage]
        return self._labels_of(table, self.covered(table))

    def finished(self, stage: str) -> int:
        """Shards that have every label there is: of all methods that are defined, or of all scores
        that any shard has."""
        done = self.committed(stage)
        every = self.definitions(["image", "words"]) if stage == "explain" else ()
        wanted = set(every).union(*done.values())
        return sum(wanted <= labels for labels in done.values())

    def _labels_of(self, table: str, names: Iterable[str]) -> dict[int, set[str]]:
        done: dict[int, set[str]] = {}
        for name in names:
            shard, round_name = fragment_key(name)
            done.setdefault(shard, set()).update(self.labels(round_name, table, name))
        return done

    def covered(self, table: str) -> set[str]:
        """Names of all fragments of a table, loose or compacted."""
        loose = self.fragments(table)  # before the manifest, which is written before they go
        manifest = self.manifest(table)
        return {*loose, *(manifest.covers if manifest else ())}

    def labels(self, round_name: str, table: str, name: str | None = None) -> tuple[str, ...]:
        """The labels of a round, from a fragment's metadata or the manifest; read once."""
        if round_name not in self._rounds:
            manifest = self.manifest(table)
            self._rounds.update(manifest.rounds if manifest else {})
        if round_name not in self._rounds:
            names = [name] if name else self.fragments(table)
            one = next(n for n in names if fragment_key(n)[1] == round_name)
            self._rounds[round_name] = tuple(json.loads(self._metadata(table, one)[b"labels"]))
        return self._rounds[round_name]

    def attempt_of(self, table: str, name: str) -> str | None:
        """The attempt that wrote a fragment, loose or compacted; None if there is none."""
        try:
            return self._metadata(table, name)[b"attempt"].decode()
        except FileNotFoundError:
            manifest = self.manifest(table)
            return manifest.covers.get(name) if manifest else None

    def _metadata(self, table: str, name: str) -> dict[bytes, bytes]:
        with self._undamaged(key := f"{table}/{name}"):
            return pq.read_schema(pa.BufferReader(self.objects.read(key))).metadata or {}

    def read_fragment(self, key: str) -> pa.Table:
        """A Parquet object with its checksums checked."""
        with self._undamaged(key):
            data = pa.BufferReader(self.objects.read(key))
            return pq.read_table(data, page_checksum_verification=True)

    @contextmanager
    def _undamaged(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            remedy = COMPACTED if "/compact-" in key else DAMAGED.format(self.root)
            raise UserError(f"{self.root}/{key} is damaged: {error}. {remedy}") from None

    def overridden(self, table: str) -> set[str]:
        """Compacted fragments that a later loose one replaces."""
        return self._overridden(table, self.fragments(table), self.manifest(table))

    def _overridden(self, table: str, loose: Iterable[str], manifest: Manifest | None) -> set[str]:
        covers = manifest.covers if manifest else {}
        twice = covers.keys() & set(loose)
        return {n for n in twice if self.attempt_of(table, n) != covers[n]}

    def settled(self, table: str) -> list[str]:
        """Names of the loose fragments of attempts that are published in full.

        The fragment that decides comes before the maps it tells of; one whose publishing is going
        on, or was cut off, is left out until a driver has finished it.
        """
        names = self.fragments(table)
        hidden = self.unsettled()  # listed later: what has left the stage by then is in place
        return [name for name in names if fragment_key(name) not in hidden]

    def settled_labels(self, stage: str) -> dict[int, set[str]]:
        """``committed``, of attempts that are published in full."""
        table = DECIDING[stage]
        names = self.covered(table)
        hidden = self.unsettled()
        return self._labels_of(table, (n for n in names if fragment_key(n) not in hidden))

    def dataset(self, table: str, loose: Sequence[str] | None = None) -> ds.Dataset:
        """All published rows of a table, each once, also while it is being compacted.

        ``loose`` are the loose fragments to read, those that are settled unless they are given.
        """
        names = self.fragments(table) if loose is None else loose
        hidden = self.unsettled()
        manifest = self.manifest(table)  # after the names, as in ``covered``
        covers = manifest.covers if manifest else {}
        replaced = self._overridden(table, names, manifest)
        fresh = [n for n in names if n not in covers or n in replaced]
        if loose is None:
            fresh = [n for n in fresh if fragment_key(n) not in hidden]
            if table == "failures" and self.objects.exists("failures/dataset.parquet"):
                fresh.append("dataset.parquet")
        files = manifest.files if manifest else ()
        left_out = {fragment_key(n) for n in covers if n in replaced or fragment_key(n) in hidden}
        if not left_out:
            return self._open(table, [*fresh, *files])
        kept = self._open(table, files).filter(~_among(left_out))
        return ds.dataset([kept.to_table(), self._open(table, fresh).to_table()])

    def _open(self, table: str, names: Sequence[str]) -> ds.Dataset:
        schema = arrow_schema(table)
        if not names:
            return ds.dataset(schema.empty_table())
        paths = [f"{table}/{name}" for name in names]
        files = self.objects.arrow()
        return ds.dataset(paths, schema=schema, format="parquet", filesystem=files)

    def brings_examples(self, task: Task) -> bool:
        """Whether a commit brings the example rows: a shard's first one does, and a retry."""
        number = task.shard.number
        loose = self.objects.starting("examples", f"part-{number:07d}-")
        return task.retry is not None or not (loose or number in self._compacted_examples)

    @cached_property
    def _compacted_examples(self) -> set[int]:
        """Shards whose example rows are compacted; nothing is compacted beside a worker."""
        manifest = self.manifest("examples")
        return {fragment_key(name)[0] for name in manifest.covers} if manifest else set()

    def read_shard(self, table: str, shard: int) -> pa.Table:
        """All committed rows of one shard."""
        start = f"part-{shard:07d}-"
        loose = self.objects.starting(table, start)
        tables = [self.read_fragment(f"{table}/{name}") for name in loose]
        manifest = self.manifest(table)
        if manifest is not None:
            own = self._open(table, manifest.files).filter(ds.field("shard") == shard)
            rounds = pa.array([fragment_key(name)[1] for name in loose], pa.string())
            tables.append(own.to_table(filter=~ds.field("round").isin(rounds)))
        empty = arrow_schema(table).empty_table()
        return pa.concat_tables([empty, *(t.replace_schema_metadata(None) for t in tables)])

    def read_arrays(self, definition: Definition, shard: int) -> dict[str, np.ndarray]:
        """A method's arrays of one shard, ``(capacity, [target,] *dims)``."""
        capacity = self.record().capacity
        group = self.arrays()
        places = slice(shard * capacity, (shard + 1) * capacity)
        return {
            spec.name: np.asarray(group[f"{definition.label}/{spec.name}"][places])  # type: ignore[index]
            for spec in definition.arrays
        }

    # --- commits --------------------------------------------------------------------------------

    def attempt(self, stage: str, task: Task) -> "Attempt":
        """A new attempt at one task."""
        return Attempt(self, stage, task)

    def recover(self) -> int:
        """Finish what committed attempts left staged; drop what lost against another attempt.

        Only the one driver calls it. What is staged for a task that nobody has committed stays: it
        may be a living worker's of a driver that is gone. Returns the publishes redone.
        """
        redone = 0
        for staged in self.staged():
            task, attempt = _staged_by(staged)
            winner, marks = self._winner(task), self._marks(task.name)
            if attempt == winner or attempt in marks.values():
                self.publish(staged, [mark for mark, own in marks.items() if own == attempt])
                redone += 1
            elif winner is not None and not marks:
                self.objects.delete_folder(f"stage/{staged}")
        self._forget_marks()
        return redone

    def _winner(self, task: "StagedTask") -> str | None:
        return self.attempt_of(DECIDING[task.stage], task.fragment)

    def unsettled(self) -> set[tuple[int, str]]:
        """Shards and rounds that an attempt has decided and not yet published in full."""
        staged = [_staged_by(name) for name in self.staged()]
        tables = {DECIDING[task.stage] for task, _ in staged}
        decided = {name for table in tables for name in self.covered(table)}
        retries = [r for r in self._decided_retries().values() if r[1] != self._winner(r[0])]
        known = [(task, attempt) for task, attempt in staged if task.fragment in decided]
        publishing = [(task, attempt) for task, attempt in known if attempt == self._winner(task)]
        return {task.key for task, _ in [*publishing, *retries]}

    def _decided_retries(self) -> dict[str, tuple["StagedTask", str]]:
        """Key of every mark -> its task, and the retry that it has decided for."""
        found = {}
        for name in self.objects.starting("stage", MARK):
            with suppress(FileNotFoundError):  # its retry is published by now
                attempt = self.objects.read(f"stage/{name}").decode()
                found[f"stage/{name}"] = (_staged_by(name.removeprefix(MARK))[0], attempt)
        return found

    def _forget_marks(self) -> None:
        """Of retries whose rows are in place: they were published up to their mark."""
        for key, (task, attempt) in self._decided_retries().items():
            if attempt == self._winner(task):
                self.objects.delete(key)

    def staged(self) -> list[str]:
        """Names of the attempts that have something staged."""
        names = self.objects.children("stage")
        return [n for n in names if "." in n and not n.startswith(MARK)]

    def drop_staged(self, since: float) -> None:
        """Delete what attempts have staged that can no longer commit, and what was being written
        when this driver began: no other is at work."""
        unsettled = self.unsettled()
        for staged in self.staged():
            if _staged_by(staged)[0].key not in unsettled:
                self.objects.delete_folder(f"stage/{staged}")
        for probe in self.objects.starting("stage", PROBE):
            self.objects.delete(f"stage/{probe}")
        self.objects.delete_unfinished(since)

    def _marks(self, task: str) -> dict[str, str]:
        """Keys of the marks that retries of a task have decided by, with the winning attempts."""
        keys = [f"stage/{name}" for name in self.objects.starting("stage", f"{MARK}{task}.")]
        return {key: self.objects.read(key).decode() for key in keys}

    def publish(self, staged: str, marks: Sequence[str] = ()) -> None:
        """Move an attempt's objects to their final places, arrays before the rows about them.

        Only the attempt that committed is published, so replacing an older object is safe.
        """
        keys = sorted(self.objects.sizes(f"stage/{staged}"), key=_arrays_first)
        for key in keys:
            with suppress(FileNotFoundError):  # its own worker, or another driver, is at it too
                self.objects.move(key, key.removeprefix(f"stage/{staged}/"))
        self.objects.delete_folder(f"stage/{staged}")
        for mark in marks:
            self.objects.delete(mark)

    def record_bad(self, rows: Sequence[Frozen]) -> None:
        """Failures of records that never became examples: those that are bad now."""
        key = "failures/dataset.parquet"
        if rows:
            self.objects.put(key, encoding.fragment("failures", rows, {"version": VERSION}))
        elif self.objects.exists(key):
            self.objects.delete(key)

    # --- shards whose metrics are out of date ---------------------------------------------------

    def stale(self) -> set[int]:
        """Shards with maps that have been computed again since they were evaluated."""
        return {int(name) for name in self.objects.names("stale")}

    def mark_stale(self, shard: int) -> None:
        self.objects.put(f"stale/{shard:07d}", b"")

    def evaluated(self, shard: int) -> None:
        """The shard's metrics are those of its maps again."""
        self.objects.delete(f"stale/{shard:07d}")


class StagedTask(NamedTuple):
    """What a name below ``stage/`` tells."""

    stage: str
    shard: str
    round_name: str

    @property
    def name(self) -> str:
        return "-".join(self)

    @property
    def fragment(self) -> str:
        return f"part-{self.shard}-{self.round_name}.parquet"

    @property
    def key(self) -> tuple[int, str]:
        return int(self.shard), self.round_name


def _staged_by(name: str) -> tuple[StagedTask, str]:
    """``<stage>-<shard>-<round>.<attempt>`` -> the task and the attempt."""
    task, attempt = name.split(".")
    return StagedTask(*task.split("-")), attempt


class Attempt:
    """Everything one task writes: staged first, then committed, then published."""

    def __init__(self, store: Store, stage: str, task: Task) -> None:
        self.store, self.stage, self.task = store, stage, task
        self.objects = store.objects
        self.name = uuid.uuid4().hex[:12]
        self.fragment = f"part-{task.shard.number:07d}-{task.round}.parquet"
        self.of = f"{stage}-{task.shard.number:07d}-{task.round}"
        self.folder = f"{self.of}.{self.name}"

    @property
    def decided(self) -> bool:
        """Whether some attempt at this task has committed: its report may have been lost."""
        first_time = self.task.retry is None
        return first_time and self.objects.exists(f"{DECIDING[self.stage]}/{self.fragment}")

    def add_array(self, label: str, spec: ArraySpec, values: np.ndarray) -> None:
        """Stage the Zarr shard of one array: ``values`` is ``(capacity, [target,] *dims)``."""
        key = encoding.shard_key(label, spec, self.task.shard.number)
        self._stage(key, encoding.zarr_shard(spec, values))

    def add_rows(self, table: str, rows: Sequence[Frozen]) -> None:
        """Stage a table's fragment; an empty one only to replace another."""
        if rows or self.task.retry is not None:
            self._stage(f"{table}/{self.fragment}", self._parquet(table, rows))

    def commit(self, rows: Sequence[Frozen]) -> bool:
        """Create the deciding fragment, then publish. False: another attempt was first."""
        check_fence(self.objects, self.task.driver)
        if self.task.retry is not None:
            return self._replace(rows)
        key = f"{DECIDING[self.stage]}/{self.fragment}"
        if not self.objects.put_new(key, self._parquet(DECIDING[self.stage], rows)):
            self.objects.delete_folder(f"stage/{self.folder}")
            return False
        self.store.publish(self.folder)
        return True

    def _replace(self, rows: Sequence[Frozen]) -> bool:
        """Decide by a mark which retry of the committed attempt counts; the fragment follows."""
        deciding = DECIDING[self.stage]
        self._stage(f"{deciding}/{self.fragment}", self._parquet(deciding, rows))
        if self.stage == "explain":
            self.store.mark_stale(self.task.shard.number)
        mark = f"stage/{MARK}{self.of}.{self.store.attempt_of(deciding, self.fragment)}"
        if not self.objects.put_new(mark, self.name.encode()):
            self.objects.delete_folder(f"stage/{self.folder}")
            return False
        self.store.publish(self.folder, [mark])
        return True

    def _stage(self, key: str, data: bytes) -> None:
        self.objects.put(f"stage/{self.folder}/{key}", data)

    def _parquet(self, table: str, rows: Sequence[Frozen]) -> bytes:
        metadata = {
            "attempt": self.name,
            "labels": json.dumps(self.task.labels),
            "version": VERSION,
        }
        return encoding.fragment(table, rows, metadata)


def fragment_key(name: str) -> tuple[int, str]:
    """``part-<shard>-<round>.parquet`` -> shard number and round name."""
    _, shard, round_name = name.removesuffix(".parquet").split("-")
    return int(shard), round_name


def _among(fragments: Iterable[tuple[int, str]]) -> ds.Expression:
    """Rows of these shards and rounds."""
    expression = ds.scalar(False)
    for shard, round_name in fragments:
        expression |= (ds.field("shard") == shard) & (ds.field("round") == round_name)
    return expression


def _arrays_first(key: str) -> tuple[int, str]:
    """Maps, then the rows beside them, then the deciding rows."""
    table = key.split("/")[2]
    order = {"maps.zarr": 0, "maps": 2, "metrics": 2}
    return order.get(table, 1), key


def _definition(kind: str, label: str) -> str:
    return f"definitions/{kind}/{label}.json"


def _pretty(record: Frozen) -> bytes:
    return record.model_dump_json(indent=2).encode()


def _short(value: object) -> str:
    return str(value)[:12]
