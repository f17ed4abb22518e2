"""The bytes of a Zarr shard and of a Parquet fragment, made in memory before any is written."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from schemas.arrays import ArraySpec
from schemas.base import Frozen
from schemas.rows import arrow_schema

TINY = 256 * 1024
"""A shard's array below this many bytes is one Zarr chunk; above it every map is its own."""


def array_shape(
    spec: ArraySpec, shards: int, capacity: int, targets: Sequence[str]
) -> tuple[int, ...]:
    """``(example, target, *dims)``, or ``(example, *dims)`` where the target does not matter."""
    middle = (len(targets),) if spec.per_target else ()
    return (shards * capacity, *middle, *spec.shape)


def fill_value(spec: ArraySpec) -> float | int:
    """What an unwritten place reads as."""
    return -1 if spec.dtype == "int32" else float("nan")


def shard_key(label: str, spec: ArraySpec, shard: int) -> str:
    """Where the Zarr shard of one array lies in the run."""
    zeros = ["0"] * (len(spec.shape) + spec.per_target)
    return f"maps.zarr/{label}/{spec.name}/" + ".".join(["c", str(shard), *zeros])


def group() -> bytes:
    """A Zarr group's ``zarr.json``."""
    memory = MemoryStore()
    zarr.create_group(memory)
    return _stored(memory, "zarr.json")


def array(spec: ArraySpec, shards: int, capacity: int, targets: Sequence[str]) -> bytes:
    """An array's ``zarr.json``; all its places read as unwritten."""
    memory = MemoryStore()
    _create(memory, spec, shards, capacity, targets)
    return _stored(memory, "one/zarr.json")


def _create(
    memory: MemoryStore, spec: ArraySpec, shards: int, capacity: int, targets: Sequence[str]
) -> zarr.Array:
    shape = array_shape(spec, shards, capacity, targets)
    shard = (capacity, *shape[1:])
    tiny = int(np.prod(shard)) * np.dtype(spec.dtype).itemsize <= TINY
    dims = ("example", *(("target",) if spec.per_target else ()), *spec.dims)
    return zarr.create_array(
        memory,
        name="one",
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


def zarr_shard(spec: ArraySpec, values: np.ndarray) -> bytes:
    """The bytes of one Zarr shard, exactly as ``array[a:b] = values`` would write them."""
    memory = MemoryStore()
    targets = ("",) * values.shape[1] if spec.per_target else ()
    _create(memory, spec, 1, len(values), targets)[:] = values
    return _stored(memory, "one/" + ".".join(["c", *["0"] * values.ndim]))


def _stored(memory: MemoryStore, key: str) -> bytes:
    blob = sync(memory.get(key, default_buffer_prototype()))
    if blob is None:
        raise RuntimeError(f"zarr wrote nothing at key {key}")
    return blob.to_bytes()


def grown(metadata: bytes, places: int) -> bytes | None:
    """An array's ``zarr.json`` with more places along its first axis; None if it has them."""
    data = json.loads(metadata)
    if data["shape"][0] >= places:
        return None
    data["shape"][0] = places
    return json.dumps(data, indent=2).encode()


def fragment(table: str, rows: Sequence[Frozen], metadata: dict[str, str]) -> bytes:
    """A Parquet file of a table's rows; every page carries a checksum."""
    schema = arrow_schema(table, metadata)
    return parquet(pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema))


def parquet(table: pa.Table) -> bytes:
    """An Arrow table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()
