"""Maps as a page stores them: a byte a place, at most 48 x 48, with the range they stand for."""

import base64
import zlib
from dataclasses import dataclass

import numpy as np

from workers.metrics.resampling import axis_weights, separable

SIDES = (48, 40, 32, 24, 16)
"""Longest sides that are tried, the finest that fits the page's size first."""
CLIPPED = 32 * 32
"""Places above which the range ends at the 99.5th percentile: a few would hide the rest."""


@dataclass(frozen=True)
class Packed:
    """A map, quantised."""

    data: bytes
    """Row by row: int8 from -127 where signed, else uint8 from 0 to 255."""
    height: int
    width: int
    signed: bool
    top: float
    """The magnitude that 127 or 255 stands for, in the map's own units."""
    mean: float
    """Mean magnitude, in the map's own units."""


def pack(values: np.ndarray, side: int, signed: bool) -> Packed:
    """A map ``(y, x)`` of finite values, each axis averaged by area down to ``side`` places."""
    small = shrink(values, side)
    magnitudes = np.abs(small)
    top = float(np.percentile(magnitudes, 99.5) if small.size > CLIPPED else magnitudes.max())
    top = top or float(magnitudes.max())
    steps = 127 if signed else 255
    scaled = np.clip(small / (top or 1.0), -1 if signed else 0, 1) * steps
    data = np.round(scaled).astype(np.int8 if signed else np.uint8).tobytes()
    height, width = small.shape
    return Packed(data, height, width, signed, top, float(magnitudes.mean()))


def shrink(values: np.ndarray, side: int) -> np.ndarray:
    """Area averages over at most ``side`` places along each axis, float32."""
    height, width = (min(length, side) for length in values.shape)
    if (height, width) == values.shape:
        return values.astype(np.float32)
    rows, columns = axis_weights(values.shape[0], height), axis_weights(values.shape[1], width)
    return separable(values, rows, columns)


def blob(packed: list[Packed]) -> str:
    """Maps one after the other, deflated without header, in base64."""
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = squeeze.compress(b"".join(p.data for p in packed)) + squeeze.flush()
    return base64.b64encode(data).decode()
