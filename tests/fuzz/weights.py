"""Weight files whose headers lie."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.tangle import odd, tangled, written

Draw = Callable[[st.SearchStrategy], Any]
DTYPES = ("F32", "F64", "I64", "BF16", "F8_E4M3", "BOOL", "C64", "F4", "X9", "", None)
LENGTHS = (0, 1, 2, 7, 100_000_001, 2**31, 2**63, 2**64 - 1)
KEYS = ("__metadata__", "dtype", "shape", "data_offsets", "weight", "config", "format")
ZEROS = 2**28
"""Bytes a bomb unpacks to."""


def parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: str, body: bytes, length: int | None = None) -> bytes:
    packed = header.encode(errors="surrogatepass")
    return struct.pack("<Q", len(packed) if length is None else length) + packed + body


@st.composite
def safetensors(draw: Draw, seed: bytes) -> bytes:
    """A sound file whose header says something else: lengths, types, shapes, offsets, settings."""
    header, body = parted(seed)
    change = draw(st.sampled_from((_header, _tensor, _tensor, _metadata, _length)))
    return change(draw, header, body)


def _header(draw: Draw, header: dict[str, Any], body: bytes) -> bytes:
    return joined(written(draw(tangled([header], KEYS))), body)


def _tensor(draw: Draw, header: dict[str, Any], body: bytes) -> bytes:
    name = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
    tensor, size = dict(header[name]), len(body)
    offset = st.sampled_from((0, 1, 4, size, size + 1, 2**40, 2**64 - 1, -1))
    side = st.sampled_from((0, 1, 3, 2**31, 2**62, 2**64 - 1, -1))
    changes = {
        "dtype": st.sampled_from(DTYPES),
        "shape": st.one_of(st.lists(side, max_size=4), odd()),
        "data_offsets": st.one_of(st.lists(offset, max_size=3), odd()),
    }
    for key in draw(st.sets(st.sampled_from(sorted(changes)), min_size=1)):
        tensor[key] = draw(changes[key])
    return joined(written({**header, name: tensor}), body)


def _metadata(draw: Draw, header: dict[str, Any], body: bytes) -> bytes:
    metadata = dict(header["__metadata__"])
    config = written(draw(tangled([json.loads(metadata["config"])])))
    return joined(written({**header, "__metadata__": {**metadata, "config": config}}), body)


def _length(draw: Draw, header: dict[str, Any], body: bytes) -> bytes:
    length = draw(st.one_of(st.sampled_from(LENGTHS), st.integers(0, 10_000)))
    return joined(json.dumps(header), body, length)


@st.composite
def archives(draw: Draw, seed: bytes) -> bytes:
    """A sound ``torch.save`` zip whose members are swapped, emptied, packed or doubled."""
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(members) - 1))
        name, data = members[at]
        other = draw(st.sampled_from(members))
        change = draw(st.sampled_from(("empty", "swap", "rename", "double", "half", "byte")))
        members[at] = {
            "empty": (name, b""),
            "swap": (name, other[1]),
            "rename": (other[0], data),
            "double": (name, data * 2),
            "half": (name, data[: len(data) // 2]),
            "byte": (name, _changed(draw, data)),
        }[change]
    return packed(members, draw(st.booleans()))


def _changed(draw: Draw, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]


def packed(members: list[tuple[str, bytes]], compressed: bool) -> bytes:
    """A zip of these members; a name may occur twice, and as a path out of the archive."""
    sink = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in dict(members).items():
            archive.writestr(name, data)
    return sink.getvalue()


def bomb() -> bytes:
    """A zip of some hundred KiB with one member of ``ZEROS`` zero bytes."""
    sink, block = io.BytesIO(), bytes(2**24)
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(ZEROS // len(block)):
                file.write(block)
        archive.writestr("archive/version", "3\n")
    return sink.getvalue()
