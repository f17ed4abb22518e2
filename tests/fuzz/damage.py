"""Bytes that were a real file once: flipped, cut, spliced, stretched, absurd numbers in them."""

import struct
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], int | bytes]
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 100_000, 2**31 - 1, 2**31, 2**32 - 1)
LONG = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FORMATS = ("<H", ">H", "<I", ">I", "<Q", ">Q")
SIZES = {"H": 2**16, "I": 2**32, "Q": 2**64}
HEADER = 256
"""Where damage does most: half of it lands among the first bytes, a quarter among the last."""


@st.composite
def damaged(draw: Draw, seeds: Sequence[bytes], tokens: Sequence[bytes] = (b"\0",)) -> bytes:
    """One of the seeds with one to four things done to it; ``tokens`` mean something there."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        change = draw(st.sampled_from(CHANGES))
        data = change(draw, data, seeds, tokens)
    return data


def _place(draw: Draw, data: bytes) -> int:
    where = draw(st.integers(0, 3))
    if where == 0:
        return max(0, len(data) - draw(st.integers(0, min(HEADER, len(data)))))
    return draw(st.integers(0, min(len(data), HEADER if where < 3 else len(data))))


def _flip(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = _place(draw, data)
        changed[at : at + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(changed)


def _cut(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    return data[: _place(draw, data)]


def _drop(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(draw, data)
    return data[:at] + data[at + draw(st.integers(1, 64)) :]


def _insert(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(draw, data)
    return data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]


def _repeat(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(draw, data)
    block = data[at : at + draw(st.integers(1, 32))]
    return data[:at] + block * draw(st.sampled_from((2, 3, 100))) + data[at:]


def _token(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at, over = _place(draw, data), draw(st.booleans())
    token = draw(st.sampled_from(tokens))
    return data[:at] + token + data[at + len(token) * over :]


def _number(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    form = draw(st.sampled_from(FORMATS))
    number = draw(st.sampled_from(NUMBERS + LONG)) % SIZES[form[1]]
    at, packed = _place(draw, data), struct.pack(form, number)
    return data[:at] + packed + data[at + len(packed) :]


def _splice(draw: Draw, data: bytes, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(seeds))
    return data[: _place(draw, data)] + other[_place(draw, other) :]


CHANGES = (_flip, _cut, _drop, _insert, _repeat, _token, _number, _splice)
