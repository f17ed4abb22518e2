"""The plan of an occlusion sweep: which rectangle of the canvas each pass paints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from workers.errors import UserError

Interval = tuple[int, int]
"""Half-open, ``[start, end)``, in pixels of the canvas."""


class Window(NamedTuple):
    """Half-open pixel intervals ``[top, bottom)`` and ``[left, right)``."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Windows:
    """Every interval of ``rows`` with every interval of ``columns``, in row-major order."""

    rows: tuple[Interval, ...]
    columns: tuple[Interval, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> Window:
        row, column = divmod(index, len(self.columns))
        return Window(*self.rows[row], *self.columns[column])

    def __iter__(self) -> Iterator[Window]:
        return (Window(*row, *column) for row, column in product(self.rows, self.columns))


class Request(NamedTuple):
    """What a method will ask of the engine: its windows, and how far they may grow where that is
    limited."""

    windows: Windows
    bound: float | None = None


def grid_windows(height: int, width: int, grid: int) -> Windows:
    """The ``grid x grid`` cells; each pixel lies in exactly one.

    A side of n pixels is cut at ``floor(i * n / grid)``: where the grid does not divide it, cells
    differ by one pixel.
    """
    if not 1 <= grid <= min(height, width):
        raise UserError(
            f"occlusion: a grid of {grid} does not fit an input of {height} x {width} pixels, "
            f"whose cells need at least one pixel each; choose a grid of 1 to {min(height, width)}."
        )
    rows, columns = (
        tuple(pairwise(i * side // grid for i in range(grid + 1))) for side in (height, width)
    )
    return Windows(rows, columns)


def strided_windows(
    height: int, width: int, size: tuple[int, int], stride: tuple[int, int]
) -> Windows:
    """Windows of ``size (height, width)`` at multiples of ``stride (down, right)``, as many as
    reach the end; the last one is cut there (Captum's Occlusion; the sliding square is that of
    Zeiler and Fergus 2014, section 4.2)."""
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise UserError(
            f"occlusion: a window of {size[0]} x {size[1]} pixels does not fit an input of "
            f"{height} x {width}; choose a window of 1 x 1 to {height} x {width}."
        )
    if not (1 <= stride[0] <= size[0] and 1 <= stride[1] <= size[1]):
        raise UserError(
            f"occlusion: a stride of {stride[0]} x {stride[1]} pixels with a window of {size[0]} x "
            f"{size[1]} leaves pixels that are never painted; choose a stride of 1 x 1 to "
            f"{size[0]} x {size[1]}."
        )
    rows, columns = (
        tuple((start, min(start + window, side)) for start in range(0, side - window + step, step))
        for side, window, step in zip((height, width), size, stride, strict=True)
    )
    return Windows(rows, columns)


def spread(windows: Windows, values: Tensor) -> Tensor:
    """Of each pixel the mean value of the windows that cover it, as Captum's Occlusion has it:
    ``values (n, *windows.shape)`` -> ``(n, y, x)``."""
    rows, columns = (_cover(side).to(values) for side in (windows.rows, windows.columns))
    total = torch.einsum("nij,iy,jx->nyx", values, rows, columns)
    return total / torch.outer(rows.sum(0), columns.sum(0))


def _cover(intervals: Sequence[Interval]) -> Tensor:
    """``(interval, pixel)``, 1 inside and 0 outside, up to where the last one ends."""
    pixels = torch.arange(intervals[-1][1])
    starts, ends = torch.tensor(intervals).T[:, :, None]
    return (starts <= pixels) & (pixels < ends)


def paint(canvas: Tensor, windows: Sequence[Window], fill: Tensor) -> Tensor:
    """A copy of ``canvas (3, y, x)`` for each window, where it shows ``fill (3, y, x)``, another
    whole canvas -> ``(n, 3, y, x)``."""
    if canvas.device.type == "cuda":
        return _paint_at_once(canvas, windows, fill)
    painted = canvas.repeat(len(windows), 1, 1, 1)
    for image, (top, bottom, left, right) in zip(painted, windows, strict=True):
        image[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
    return painted


def _paint_at_once(canvas: Tensor, windows: Sequence[Window], fill: Tensor) -> Tensor:
    """One launch for all windows, and no waiting for what they are."""
    table = torch.tensor(windows).pin_memory().to(canvas.device, non_blocking=True)
    top, bottom, left, right = table.T[:, :, None, None]
    y, x = (torch.arange(side, device=canvas.device) for side in canvas.shape[1:])
    inside = (top <= y[:, None]) & (y[:, None] < bottom) & (left <= x) & (x < right)
    return torch.where(inside[:, None], fill, canvas)
