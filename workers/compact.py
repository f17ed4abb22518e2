"""Many small fragments of a table into a few large files, one a method, at any point of a run.

A generation is published under its final names first and then claimed by its manifest; from then on
readers of ours take it in place of the fragments that the manifest covers, which are deleted last.
A crash at any point leaves either the fragments or the manifest in force, and ``clean`` the rest.
A tool that reads the folder without our code may see rows twice between the two, for seconds.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.rows import TABLES, arrow_schema
from schemas.run import Manifest
from workers.store import Store, fragment_key

ROW_GROUP = 2**15
"""Rows that are read or left out together."""
FILE = 2**23
"""Rows after which a method's next file begins: a bucket takes 5 GB in one PUT."""


@dataclass
class _Writer:
    """One method's file; rows wait until a row group is full."""

    path: Path
    schema: pa.Schema
    rows: int = 0
    waiting: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = {"compression": "zstd", "write_page_checksum": True}
        self.file = pq.ParquetWriter(self.path, self.schema, **options)

    def add(self, rows: pa.Table) -> None:
        self.waiting.append(rows)
        self.rows += len(rows)
        if sum(map(len, self.waiting)) >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.file.write_table(pa.concat_tables(self.waiting), row_group_size=ROW_GROUP)
        self.waiting = []

    def close(self) -> None:
        self.flush()
        self.file.close()


def compact(store: Store) -> dict[str, int]:
    """Merge every table's fragments; table -> fragments merged. Only the one driver may call it."""
    clean(store)
    return {table: merged for table in TABLES if (merged := _compact_table(store, table))}


def recompact(store: Store) -> dict[str, int]:
    """Compact again where compacted rows have been replaced since: readers without our code would
    take both. Only the one driver may call it."""
    return compact(store) if any(store.overridden(table) for table in TABLES) else {}


def clean(store: Store) -> None:
    """Delete what a compaction has replaced, and what one that was cut off has left."""
    for table in TABLES:
        manifest = store.manifest(table)
        files = set(manifest.files) if manifest else set()
        for name in store.objects.names(table):
            old = name.startswith("_compact-") and name != _manifest_name(manifest)
            unclaimed = name.startswith("compact-") and name not in files
            if old or unclaimed:
                store.objects.delete(f"{table}/{name}")
        if manifest is not None:
            _delete_covered(store, table, manifest)


def _delete_covered(store: Store, table: str, manifest: Manifest) -> None:
    """All but those that a retry has written since."""
    replaced = store.overridden(table)
    for name in store.fragments(table):
        if name in manifest.covers and name not in replaced:
            store.objects.delete(f"{table}/{name}")


def _compact_table(store: Store, table: str) -> int:
    loose = store.settled(table)
    if not loose:
        return 0
    old = store.manifest(table)
    generation = old.generation + 1 if old else 1
    # before the rows: one replaced in between is not covered, and its loose fragment counts
    covers = {**(old.covers if old else {}), **_attempts(store, table, loose)}
    manifest = Manifest(
        generation=generation,
        files=tuple(_write(store, table, generation, loose)),
        covers=covers,
        rounds={**(old.rounds if old else {}), **_rounds(store, table, loose)},
    )
    data = manifest.model_dump_json().encode()
    store.objects.put(f"{table}/{_manifest_name(manifest)}", data)
    clean(store)
    return len(loose)


def _write(store: Store, table: str, generation: int, loose: list[str]) -> Iterator[str]:
    """Stream all rows into files of one method each, put in place when full; yields the names."""
    schema = arrow_schema(table)
    with tempfile.TemporaryDirectory() as folder:
        names = (f"compact-{generation:05d}-{n:04d}.parquet" for n in count())
        writers: dict[str, _Writer] = {}
        for batch in store.dataset(table, loose).to_batches(batch_size=ROW_GROUP):
            for key, rows in _by_method(pa.Table.from_batches([batch], schema=schema)):
                if key not in writers:
                    writers[key] = _Writer(Path(folder) / next(names), schema)
                writers[key].add(rows)
                if writers[key].rows >= FILE:
                    yield _put(store, table, writers.pop(key))
        for writer in writers.values():
            yield _put(store, table, writer)


def _put(store: Store, table: str, writer: _Writer) -> str:
    writer.close()
    store.objects.put(f"{table}/{writer.path.name}", writer.path.read_bytes())
    writer.path.unlink()
    return writer.path.name


def _by_method(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    if "method" not in rows.column_names:
        yield "", rows
        return
    for method in rows["method"].unique():
        mine = pa.compute.equal(rows["method"], method) if method.is_valid else None
        chosen = rows.filter(pa.compute.is_null(rows["method"]) if mine is None else mine)
        yield str(method), chosen


def _attempts(store: Store, table: str, names: list[str]) -> dict[str, str]:
    return {name: store.attempt_of(table, name) or "" for name in names}


def _rounds(store: Store, table: str, names: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        round_name = fragment_key(name)[1]
        if round_name not in found:
            found[round_name] = store.labels(round_name, table, name)
    return found


def _manifest_name(manifest: Manifest | None) -> str | None:
    return None if manifest is None else f"_compact-{manifest.generation:05d}.json"
