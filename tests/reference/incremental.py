"""The incremental sweep's pieces again, literally: whole painted passes, and loops over
positions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Layer = Callable[[np.ndarray], np.ndarray]


@torch.inference_mode()
def features(
    trunk: Callable[[Tensor], Tensor],
    image: Tensor,
    fill: Tensor,
    windows: Sequence[tuple[int, int, int, int]],
) -> Tensor:
    """The trunk's output ``(window, channel, y, x)`` for ``image (3, y, x)`` that shows ``fill``
    inside each half-open window (top, bottom, left, right)."""
    painted = image.repeat(len(windows), 1, 1, 1)
    for canvas, (top, bottom, left, right) in zip(painted, windows, strict=True):
        for y in range(top, bottom):
            for x in range(left, right):
                canvas[:, y, x] = fill[:, y, x]
    return trunk(painted)


def convolution(weight: np.ndarray, stride: int, padding: int, dilation: int) -> Layer:
    """``y_o = sum_j w_j x_(o s - p + j d)``, zero outside the axis."""

    def layer(x: np.ndarray) -> np.ndarray:
        outputs = []
        for first in firsts(len(x), len(weight), stride, padding, dilation):
            taps = [first + j * dilation for j in range(len(weight))]
            outputs.append(sum(w * x[i] for w, i in zip(weight, taps, strict=True) if _in(i, x)))
        return np.array(outputs, dtype=float)

    return layer


def maximum(kernel: int, stride: int, padding: int, dilation: int) -> Layer:
    """``y_o = max_j x_(o s - p + j d)``, minus infinity outside the axis."""

    def layer(x: np.ndarray) -> np.ndarray:
        outputs = []
        for first in firsts(len(x), kernel, stride, padding, dilation):
            taps = [first + j * dilation for j in range(kernel)]
            outputs.append(max([x[i] for i in taps if _in(i, x)], default=-np.inf))
        return np.array(outputs, dtype=float)

    return layer


def firsts(size: int, kernel: int, stride: int, padding: int, dilation: int) -> range:
    """The first input each output position reads."""
    last = size + padding - ((kernel - 1) * dilation + 1)
    return range(-padding, last + 1, stride)


def _in(i: int, x: np.ndarray) -> bool:
    return 0 <= i < len(x)


def changed(layer: Layer, size: int, start: int, stop: int, generator: np.random.Generator) -> set:
    """Output positions that change when the inputs ``start <= i < stop`` fall or rise."""
    found: set[int] = set()
    for step in (-100, 100):
        before = generator.normal(size=size)
        after = before.copy()
        after[start:stop] += step + generator.normal(size=stop - start)
        found.update(np.flatnonzero(layer(before) != layer(after)).tolist())
    return found


def gather(
    clean: np.ndarray,
    windows: np.ndarray | None,
    table: np.ndarray,
    extent: tuple[int, int],
    skip: tuple[int, int],
    border: float,
) -> np.ndarray:
    """``clean (channel, y, x)`` with ``windows (n, channel, h, w)`` pasted at the last two columns
    of ``table (n, 4)``; cut from its first two columns, every ``skip``-th position ->
    ``(n, channel, *extent)``."""
    channels, height, width = clean.shape
    out = np.empty((len(table), channels, *extent))
    for n, (top, left, window_top, window_left) in enumerate(table):
        for r in range(extent[0]):
            for c in range(extent[1]):
                y, x = top + r * skip[0], left + c * skip[1]
                out[n, :, r, c] = border
                if 0 <= y < height and 0 <= x < width:
                    out[n, :, r, c] = clean[:, y, x]
                    if windows is not None and _covers(windows, y - window_top, x - window_left):
                        out[n, :, r, c] = windows[n, :, y - window_top, x - window_left]
    return out


def _covers(windows: np.ndarray, y: int, x: int) -> bool:
    return 0 <= y < windows.shape[2] and 0 <= x < windows.shape[3]
