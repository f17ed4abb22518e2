"""Where the tokens of an image lie that is cut into tiles (Idefics3, SmolVLM)."""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Tiles row by row, each of ``side * side`` tokens row by row, and behind them as many tokens
    of a thumbnail of the whole image. Of an image that is not cut (no rows) it is all."""

    rows: int
    columns: int
    side: int

    @property
    def cells(self) -> tuple[int, int]:
        """A cell of the map is a tile's token."""
        return max(1, self.rows) * self.side, max(1, self.columns) * self.side

    def cover(self) -> Tensor | None:
        """The tokens that each cell lies in, ``(level, cell)``: its tile's and the thumbnail's, of
        which each has ``rows * columns`` cells. None where every token is a cell."""
        if not self.rows:
            return None
        height, width = self.cells
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        tile, own = y // self.side * self.columns + x // self.side, self.side**2
        inside = y % self.side * self.side + x % self.side
        small = y // self.rows * self.side + x // self.columns
        return torch.stack([tile * own + inside, self.rows * self.columns * own + small]).flatten(1)


def tiles_of(tokens: int, parts: int, grid: tuple[int, int]) -> Tiles | None:
    """Of an image with so many tokens in equal parts, its tiles in a grid of rows and columns; None
    where they do not add up."""
    side = isqrt(tokens // parts)
    if grid[0] * grid[1] + 1 != parts or side * side * parts != tokens:
        return None
    return Tiles(*grid, side)
