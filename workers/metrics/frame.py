"""Cutting a human map to the rectangle of the image that the model saw."""

import numpy as np
from scipy.sparse import csr_array

from schemas.frame import Frame
from workers.errors import UserError
from workers.metrics.resampling import area_weights, separable


def cut(human: np.ndarray, frame: Frame) -> np.ndarray:
    """The part of a human map ``(h, w)`` inside the frame, float32, at about its own resolution.

    A model with a centre crop never sees the border, which human maps cover. The rectangle is
    exact: it is divided into as many equal cells as it has pixels, rounded to whole ones, and each
    cell averages what it covers, so a border that runs through a pixel takes its share of it.
    """
    if not (frame.top < frame.bottom and frame.left < frame.right):
        raise UserError(
            f"frame rows {frame.top:g}..{frame.bottom:g}, columns {frame.left:g}..{frame.right:g} "
            "is empty: top must be below bottom and left below right; mend the model's frame"
        )
    height, width = human.shape
    rows = _window(height, frame.top, frame.bottom)
    return separable(human, rows, _window(width, frame.left, frame.right))


def _window(size: int, low: float, high: float) -> csr_array:
    start, stop = low * size, high * size
    return area_weights(size, start, stop, max(1, round(stop - start)))
