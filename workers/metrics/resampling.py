"""Scaling maps to a common grid: exact area averages downwards, bilinear interpolation upwards."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array

from workers.errors import BadExample


@lru_cache(maxsize=512)
def area_weights(size: int, start: float, stop: float, cells: int) -> csr_array:
    """Weights ``(cells, size)`` that average ``[start, stop)`` of an axis over equal cells.

    Pixel i covers ``[i, i + 1)`` and counts by the share of it that a cell covers.
    """
    edges = np.linspace(start, stop, cells + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = overlap.clip(min=0)
    return csr_array(overlap / overlap.sum(axis=1, keepdims=True))


@lru_cache(maxsize=512)
def bilinear_weights(size: int, cells: int) -> csr_array:
    """Weights ``(cells, size)`` of linear interpolation, ``align_corners=False``, clamped."""
    centre = ((np.arange(cells) + 0.5) * size / cells - 0.5).clip(0, size - 1)
    return csr_array((1 - np.abs(centre[:, None] - np.arange(size))).clip(min=0))


def axis_weights(size: int, cells: int) -> csr_array:
    """Area averaging when an axis shrinks, bilinear interpolation when it grows."""
    if cells < size:
        return area_weights(size, 0, size, cells)
    return bilinear_weights(size, cells)


def separable(values: np.ndarray, rows: csr_array, columns: csr_array) -> np.ndarray:
    """``rows @ values @ columns.T``, summed in float64 and rounded to float32.

    The rounding is what keeps a plateau a plateau: its float64 averages differ in the last bit,
    and ranks would order that noise.
    """
    return np.ascontiguousarray((columns @ (rows @ values.astype(np.float64)).T).T, np.float32)


def resize(values: np.ndarray, side: int) -> np.ndarray:
    """A map ``(h, w)`` -> float32 ``(side, side)``, each axis by its own rule."""
    height, width = values.shape
    if (height, width) == (side, side):
        return values.astype(np.float32)
    return separable(values, axis_weights(height, side), axis_weights(width, side))


def magnitudes(maps: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Signed maps ``(h, w)`` of any sizes -> ``|map|`` at one size, float32 ``(n, side * side)``.

    A map that is not two-dimensional, is empty or holds a non-finite value is a ``BadExample``.
    """
    grid = np.empty((len(maps), side * side), np.float32)
    for i, values in enumerate(maps):
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            raise BadExample(
                f"map {i} of {len(maps)}, shape {values.shape}, cannot be scored: a map must be a "
                "non-empty (h, w) array of finite values; compute it again"
            )
        grid[i] = resize(np.abs(values), side).ravel()
    return grid


def magnitude_stack(maps: np.ndarray, side: int) -> np.ndarray:
    """Finite signed maps ``(n, h, w)`` of one size -> what ``magnitudes`` makes of them, to the
    last bit (float32 ``(n, side * side)``), many times as fast."""
    n, height, width = maps.shape
    values = np.abs(maps)
    if (height, width) != (side, side):
        rows, columns = axis_weights(height, side), axis_weights(width, side)
        by_row = values.astype(np.float64).transpose(1, 0, 2).reshape(height, n * width)
        by_column = (rows @ by_row).reshape(side, n, width).transpose(2, 0, 1)
        scaled = columns @ by_column.reshape(width, side * n)
        values = scaled.reshape(side, side, n).transpose(2, 1, 0)
    return np.ascontiguousarray(values, np.float32).reshape(n, side * side)
