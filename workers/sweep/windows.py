"""The plan of an occlusion sweep: which rectangle of the canvas each pass paints."""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from workers.errors import UserError


class Window(NamedTuple):
    """Half-open pixel intervals ``[top, bottom)`` and ``[left, right)``."""

    top: int
    bottom: int
    left: int
    right: int


def grid_windows(height: int, width: int, grid: int) -> list[Window]:
    """The ``grid x grid`` cells in row-major order; each pixel lies in exactly one.

    A side of n pixels is cut at ``floor(i * n / grid)``: where the grid does not divide it, cells
    differ by one pixel.
    """
    if not 1 <= grid <= min(height, width):
        raise UserError(
            f"occlusion: a grid of {grid} does not fit an input of {height} x {width} pixels, "
            f"whose cells need at least one pixel each; choose a grid of 1 to {min(height, width)}."
        )
    rows, columns = (
        list(pairwise(i * side // grid for i in range(grid + 1))) for side in (height, width)
    )
    return [Window(*row, *column) for row, column in product(rows, columns)]


def paint(canvas: Tensor, windows: Sequence[Window], colour: Sequence[float]) -> Tensor:
    """One copy of ``canvas (3, y, x)`` a window, the window filled -> ``(n, 3, y, x)``."""
    painted = canvas.repeat(len(windows), 1, 1, 1)
    patch = torch.tensor(colour, dtype=canvas.dtype, device=canvas.device)[:, None, None]
    for image, (top, bottom, left, right) in zip(painted, windows, strict=True):
        image[:, top:bottom, left:right] = patch
    return painted
