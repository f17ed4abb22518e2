"""The store: the only module that writes a run. Layout and commit protocol in ARCHITECTURE.md.

A worker stages everything one task yields under ``stage/<task>.<attempt>/``, then links the
deciding Parquet fragment into place: that link is the commit, first writer wins. Only then are the
staged files moved to their final places, a step that anyone may redo.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from schemas.arrays import ArraySpec
from schemas.base import Frozen
from schemas.fidelity import Fidelity
from schemas.rows import TABLES, arrow_schema
from workers.errors import UserError

VERSION = "1"
DECIDING = {"explain": "maps", "evaluate": "metrics"}
"""The table whose fragment decides that a task of a stage is done."""
TINY = 256 * 1024
"""A shard's array below this many bytes is one Zarr chunk; above it every map is its own."""


class RunRecord(Frozen):
    """``run.json``: what a run is. Written once; a run with another record is refused."""

    version: str = VERSION
    recipe: dict
    """The configuration the run was created with."""
    dataset: str
    """Digest of the dataset's records."""
    model: str
    """Digest of the model's weights and preprocessing."""
    targets: tuple[str, ...]
    shard_size: int
    shards: int
    capacity: int
    examples: int
    images: int


class Definition(Frozen):
    """``definitions/<kind>/<label>.json``: a method's or metric's parameters, written once."""

    label: str
    name: str
    parameters: dict
    kind: str
    """``image``, ``words`` or ``metric``."""
    primary: str | None = None
    arrays: tuple[ArraySpec, ...] = ()


class Store:
    """One run's folder. ``create`` makes it; workers and readers open it by its path."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # --- identity -------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return (self.root / "run.json").exists()

    def record(self) -> RunRecord:
        """The run's identity; a folder without one is not a run."""
        path = self.root / "run.json"
        if not path.exists():
            raise UserError(
                f"{self.root} is not a run: it has no run.json. Make one with "
                f"`python run_pipeline.py run RECIPE --out {self.root}`."
            )
        return RunRecord.model_validate_json(path.read_text())

    def create(self, record: RunRecord) -> None:
        """Claim the folder for this run, or check that it is this run's already."""
        if self.exists:
            self._refuse_other(record)
        elif self.root.exists() and any(self.root.iterdir()):
            raise UserError(
                f"{self.root} is not empty and is not a run: choose another --out, or empty it."
            )
        _write_once(self.root / "run.json", _pretty(record))
        for table in TABLES:
            (self.root / table).mkdir(exist_ok=True)
        _make_group(self.root / "maps.zarr")

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
                "Choose another --out, or go back to the recipe in its run.json."
            )

    def define(self, definitions: Iterable[Definition]) -> None:
        """Record methods and metrics; the same label with other parameters is refused."""
        definitions = list(definitions)
        for new in definitions:
            self._refuse_changed(new)
        for new in definitions:
            self._create_arrays(new)
            _write_once(self._definition(new.kind, new.label), _pretty(new))

    def _refuse_changed(self, new: Definition) -> None:
        path = self._definition(new.kind, new.label)
        if not path.exists():
            return
        stored = Definition.model_validate_json(path.read_text())
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
        found = {}
        for kind in kinds:
            for path in sorted(self._definition(kind, "x").parent.glob("*.json")):
                definition = Definition.model_validate_json(path.read_text())
                found[definition.label] = definition
        return found

    def record_fidelity(self, measured: Iterable[Fidelity]) -> None:
        """What was measured before the first map; it stays as it is."""
        for fidelity in measured:
            _write_once(self.root / "fidelity" / f"{fidelity.label}.json", _pretty(fidelity))

    def fidelity(self) -> dict[str, Fidelity]:
        """Label -> measured fidelity, of the methods that are not exact."""
        files = sorted((self.root / "fidelity").glob("*.json"))
        found = [Fidelity.model_validate_json(path.read_text()) for path in files]
        return {fidelity.label: fidelity for fidelity in found}

    def _definition(self, kind: str, label: str) -> Path:
        return self.root / "definitions" / kind / f"{label}.json"

    def _create_arrays(self, definition: Definition) -> None:
        """Array metadata, written by the driver alone and before any worker starts."""
        record = self.record()
        for spec in definition.arrays:
            path = self.root / "maps.zarr" / definition.label / spec.name
            if not (path / "zarr.json").exists():
                _make_group(path.parent)
                _array(path, spec, record.shards, record.capacity, record.targets)

    # --- progress -------------------------------------------------------------------------------

    def committed(self, stage: str) -> dict[int, set[str]]:
        """Shard -> labels done, read off the names of the deciding fragments."""
        done: dict[int, set[str]] = {}
        rounds: dict[str, tuple[str, ...]] = {}
        for path in self._fragments(stage):
            shard, name = fragment_key(path)
            if name not in rounds:
                metadata = pq.read_schema(path).metadata
                rounds[name] = tuple(json.loads(metadata[b"labels"]))
            done.setdefault(shard, set()).update(rounds[name])
        return done

    def _fragments(self, stage: str) -> Iterator[Path]:
        return (self.root / DECIDING[stage]).glob("part-*.parquet")

    def has_examples(self, shard: int) -> bool:
        """Whether an earlier round has committed the shard's example rows."""
        return any((self.root / "examples").glob(f"part-{shard:07d}-*.parquet"))

    def read_shard(self, table: str, shard: int) -> pa.Table:
        """All committed rows of one shard."""
        paths = sorted((self.root / table).glob(f"part-{shard:07d}-*.parquet"))
        empty = arrow_schema(table).empty_table()
        return pa.concat_tables([empty, *(pq.read_table(path) for path in paths)])

    def recover(self) -> int:
        """Finish what committed attempts left staged, drop what uncommitted ones left.

        Only the one driver calls it, before any worker runs. Returns the publishes redone.
        """
        redone = 0
        for staged in sorted((self.root / "stage").glob("*.*")):
            stage, shard, round_name, attempt = staged.name.replace(".", "-").split("-")
            deciding = self.root / DECIDING[stage] / f"part-{shard}-{round_name}.parquet"
            if deciding.exists() and _attempt_of(deciding) == attempt:
                _publish(staged, self.root)
                redone += 1
            else:
                shutil.rmtree(staged)
        return redone

    def discard(self, shard: int) -> None:
        """Un-commit a shard, so that it is computed again: deciding fragments go first."""
        for table in ("maps", "metrics", "examples", "words", "failures"):
            for path in sorted((self.root / table).glob(f"part-{shard:07d}-*.parquet")):
                path.unlink()

    def attempt(self, stage: str, shard: int, labels: Sequence[str]) -> "Attempt":
        """A new attempt at one task."""
        return Attempt(self.root, stage, shard, tuple(labels))

    # --- an example that kills its process ----------------------------------------------------

    def breadcrumb(self, shard: int, image_id: int | None) -> None:
        """Note that a worker is at a shard, and at which image if only one can be to blame for its
        death; the note survives it."""
        path = self._crumb(shard)
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if image_id is None else str(image_id))

    def finished(self, shard: int) -> None:
        """The worker has left the shard alive."""
        self._crumb(shard).unlink(missing_ok=True)

    def interrupted(self, shard: int) -> bool:
        """Whether a worker has died at the shard."""
        return self._crumb(shard).exists()

    def last_image(self, shard: int) -> int | None:
        """The image a dead worker was at, if that is known."""
        text = self._crumb(shard).read_text() if self.interrupted(shard) else ""
        return int(text) if text else None

    def _crumb(self, shard: int) -> Path:
        return self.root / "stage" / f"crumb-{shard:07d}"

    def count_crash(self, shard: int, image_id: int) -> int:
        """Note that a worker process died at an image; how often that has happened."""
        path = self.root / "stage" / f"crash-{shard:07d}-{image_id}"
        with path.open("ab") as file:
            file.write(b".")
        return path.stat().st_size

    def record_bad(self, rows: Sequence[Frozen]) -> None:
        """Failures of records that never became examples; written once."""
        if rows:
            table = _parquet("failures", rows, {"version": VERSION})
            _write_once(self.root / "failures" / "dataset.parquet", table)


class Attempt:
    """Everything one task writes: staged first, then committed, then published."""

    def __init__(self, root: Path, stage: str, shard: int, labels: tuple[str, ...]) -> None:
        self.root, self.stage, self.shard, self.labels = root, stage, shard, labels
        self.name = uuid.uuid4().hex[:12]
        self.fragment = f"part-{shard:07d}-{round_name(labels)}.parquet"
        self.folder = root / "stage" / f"{stage}-{shard:07d}-{round_name(labels)}.{self.name}"

    @property
    def decided(self) -> bool:
        """Whether some attempt at this task has committed: its report may have been lost."""
        return (self.root / DECIDING[self.stage] / self.fragment).exists()

    def add_array(self, label: str, spec: ArraySpec, values: np.ndarray) -> None:
        """Stage the Zarr shard of one array: ``values`` is ``(capacity, [target,] *dims)``."""
        key = ".".join(["c", str(self.shard), *["0"] * (values.ndim - 1)])
        self._stage(Path("maps.zarr") / label / spec.name / key, _encode(spec, values))

    def add_rows(self, table: str, rows: Sequence[Frozen]) -> None:
        """Stage a table's fragment; an empty one is not written."""
        if rows:
            self._stage(Path(table) / self.fragment, self._parquet(table, rows))

    def commit(self, rows: Sequence[Frozen]) -> bool:
        """Link the deciding fragment, then publish. False: another attempt was first."""
        table = DECIDING[self.stage]
        temporary = self.root / table / f".tmp-{self.fragment}-{self.name}"
        _write_synced(temporary, self._parquet(table, rows))
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(temporary, self.root / table / self.fragment)
        except FileExistsError:
            shutil.rmtree(self.folder)
            return False
        finally:
            temporary.unlink()
        _sync_folder(self.root / table)
        _publish(self.folder, self.root)
        return True

    def _stage(self, path: Path, data: bytes) -> None:
        staged = self.folder / path
        staged.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(staged, data)

    def _parquet(self, table: str, rows: Sequence[Frozen]) -> bytes:
        metadata = {"attempt": self.name, "labels": json.dumps(self.labels), "version": VERSION}
        return _parquet(table, rows, metadata)


def _parquet(table: str, rows: Sequence[Frozen], metadata: dict[str, str]) -> bytes:
    schema = arrow_schema(table, metadata)
    data = pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def round_name(labels: Iterable[str]) -> str:
    """A short name for a set of labels, part of the fragment's file name."""
    return hashlib.sha256("\n".join(sorted(labels)).encode()).hexdigest()[:10]


def fragment_key(path: Path) -> tuple[int, str]:
    """``part-<shard>-<round>.parquet`` -> shard number and round name."""
    _, shard, name = path.stem.split("-")
    return int(shard), name


def array_shape(
    spec: ArraySpec, shards: int, capacity: int, targets: Sequence[str]
) -> tuple[int, ...]:
    """``(example, target, *dims)``, or ``(example, *dims)`` where the target does not matter."""
    middle = (len(targets),) if spec.per_target else ()
    return (shards * capacity, *middle, *spec.shape)


def fill_value(spec: ArraySpec) -> float | int:
    """What an unwritten place reads as."""
    return -1 if spec.dtype == "int32" else float("nan")


def _array(
    where: object, spec: ArraySpec, shards: int, capacity: int, targets: Sequence[str]
) -> zarr.Array:
    shape = array_shape(spec, shards, capacity, targets)
    shard = (capacity, *shape[1:])
    tiny = int(np.prod(shard)) * np.dtype(spec.dtype).itemsize <= TINY
    dims = ("example", *(("target",) if spec.per_target else ()), *spec.dims)
    return zarr.create_array(
        where,
        shape=shape,
        dtype=spec.dtype,
        chunks=shard if tiny else (1, *shape[1:]),
        shards=shard,
        fill_value=fill_value(spec),
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=dims,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={"targets": list(targets)} if spec.per_target else {},
        config={"write_empty_chunks": True},
    )


def _encode(spec: ArraySpec, values: np.ndarray) -> bytes:
    """The bytes of one Zarr shard, exactly as ``array[a:b] = values`` would write them."""
    memory = zarr.storage.MemoryStore()
    targets = ("",) * values.shape[1] if spec.per_target else ()
    _array(memory, spec, 1, len(values), targets)[:] = values
    key = ".".join(["c", *["0"] * values.ndim])
    blob = sync(memory.get(key, default_buffer_prototype()))
    if blob is None:
        raise RuntimeError(f"zarr wrote no shard for {spec.name} at key {key}")
    return blob.to_bytes()


def _make_group(path: Path) -> None:
    if not (path / "zarr.json").exists():
        zarr.create_group(path, overwrite=False)


def _publish(staged: Path, root: Path) -> None:
    """Move staged files to their final places. Only the attempt that committed is published, so
    replacing an older file is safe: no committed row describes it."""
    folders = set()
    for path in sorted(p for p in staged.rglob("*") if p.is_file()):
        final = root / path.relative_to(staged)
        path.replace(final)
        folders.add(final.parent)
    for folder in folders:
        _sync_folder(folder)
    shutil.rmtree(staged)


def _attempt_of(fragment: Path) -> str:
    return pq.read_schema(fragment).metadata[b"attempt"].decode()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_once(path: Path, data: bytes) -> None:
    """Write a small file atomically unless it is there already."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    _write_synced(temporary, data)
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pretty(record: Frozen) -> bytes:
    return record.model_dump_json(indent=2).encode()


def _short(value: object) -> str:
    return str(value)[:12]
