"""Parquet fragments with other columns, types, footers and notes than the store writes."""

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]
TYPES = (
    pa.int8(),
    pa.int64(),
    pa.uint64(),
    pa.float32(),
    pa.string(),
    pa.binary(),
    pa.bool_(),
    pa.list_(pa.int32()),
    pa.struct([("a", pa.int64())]),
    pa.dictionary(pa.int32(), pa.string()),
    pa.timestamp("ns"),
    pa.decimal128(38, 2),
    pa.null(),
)
NOTES = (b"", b"null", b"[1]", b'"a"', b"{}", b"[", b"\xff\xfe", b'["' + b"a" * 5000 + b'"]')
"""What stands where the store keeps its labels and its attempt."""


@st.composite
def fragments(draw: Draw, seed: bytes) -> bytes:
    """A readable file, changed in one to three places."""
    table = pq.read_table(io.BytesIO(seed))
    for _ in range(draw(st.integers(1, 3))):
        table = draw(st.sampled_from(CHANGES))(draw, table)
    sink = io.BytesIO()
    codec = draw(st.sampled_from(("zstd", "snappy", "none", "gzip")))
    pq.write_table(table, sink, compression=codec)
    return sink.getvalue()


def _column(draw: Draw, table: pa.Table) -> int:
    return draw(st.integers(0, max(0, table.num_columns - 1)))


def _dropped(draw: Draw, table: pa.Table) -> pa.Table:
    return table.remove_column(_column(draw, table)) if table.num_columns > 1 else table


def _retyped(draw: Draw, table: pa.Table) -> pa.Table:
    if not table.num_columns:
        return table
    at, kind = _column(draw, table), draw(st.sampled_from(TYPES))
    values = pa.nulls(table.num_rows, kind)
    return table.set_column(at, pa.field(table.schema.names[at], kind), values)


def _renamed(draw: Draw, table: pa.Table) -> pa.Table:
    names = list(table.schema.names)
    if names:
        names[_column(draw, table)] = draw(st.sampled_from(("", "shard", "a.b", "é\0", *names)))
    return table.rename_columns(names)


def _texted(draw: Draw, table: pa.Table) -> pa.Table:
    if not table.num_columns:
        return table
    at = _column(draw, table)
    values = pa.array([draw(st.sampled_from(("", "x", "9" * 50, "\0")))] * table.num_rows)
    return table.set_column(at, table.schema.names[at], values)


def _emptied(draw: Draw, table: pa.Table) -> pa.Table:
    return table.slice(0, draw(st.integers(0, 1)))


def _doubled(draw: Draw, table: pa.Table) -> pa.Table:
    return pa.concat_tables([table] * draw(st.sampled_from((2, 50))))


def _noted(draw: Draw, table: pa.Table) -> pa.Table:
    notes = dict(table.schema.metadata or {})
    key = draw(st.sampled_from((b"labels", b"attempt", b"version", b"pandas")))
    if draw(st.booleans()):
        notes[key] = draw(st.sampled_from(NOTES))
    else:
        notes.pop(key, None)
    return table.replace_schema_metadata(notes or None)


CHANGES = (_dropped, _retyped, _retyped, _renamed, _texted, _emptied, _doubled, _noted)
