"""A run that is consistent and wrong: maps scaled, and the rows' checksums with them."""

import zlib

import numpy as np
import pyarrow as pa

from schemas.run import Definition
from workers import encoding
from workers.store import Store


def forge(store: Store, definition: Definition, shard: int, factor: np.float32) -> None:
    """Multiply a method's float maps of one shard; rows and bytes agree afterwards."""
    arrays = store.read_arrays(definition, shard)
    for spec in definition.arrays:
        arrays[spec.name] = arrays[spec.name] * factor
        data = encoding.zarr_shard(spec, arrays[spec.name])
        store.objects.put(encoding.shard_key(definition.label, spec, shard), data)
    (name,) = store.objects.starting("maps", f"part-{shard:07d}-")
    table = store.read_fragment(f"maps/{name}")
    capacity = store.record().capacity
    sums = [
        _checksum(definition, arrays, row, capacity)
        if row["method"] == definition.label
        else row["checksum"]
        for row in table.to_pylist()
    ]
    place = table.column_names.index("checksum")
    forged = table.set_column(place, "checksum", pa.array(sums, pa.int64()))
    store.objects.put(f"maps/{name}", encoding.parquet(forged))


def _checksum(
    definition: Definition, arrays: dict[str, np.ndarray], row: dict, capacity: int
) -> int:
    found = 0
    for spec in sorted(definition.arrays, key=lambda spec: spec.name):
        place = row["ordinal"] % capacity
        own = (place, row["target_index"]) if spec.per_target else (place,)
        found = zlib.crc32(arrays[spec.name][own].tobytes(), found)
    return found
