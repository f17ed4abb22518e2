"""Sparsity: how few cells carry a map."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from workers.metrics.base import DEGENERATE_MODEL, MapMetric, Scores
from workers.metrics.resampling import magnitudes


class Sparsity(MapMetric):
    """The Gini index of a map's magnitudes, ``sum_i (2 i - n - 1) v_i / (n sum_i v_i)`` over cells
    sorted upwards (Chalasani et al. 2020, "Concise Explanations of Neural Networks", section 4.2;
    Quantus' ``Sparseness``): 0 where all cells are equal, near 1 where one holds everything.

    It depends on the number of cells, so all maps are first brought to one grid. A map that is
    constant there is ``degenerate_model``.
    """

    names: ClassVar[tuple[str, ...]] = ("sparsity",)
    side: int = Field(default=14, ge=2)
    """Cells along each axis of the grid."""

    def score(self, maps: Sequence[np.ndarray]) -> dict[str, Scores]:
        cells = np.sort(magnitudes(maps, self.side).astype(np.float64), axis=1)
        n, total = cells.shape[1], cells.sum(1)
        weights = 2 * np.arange(1, n + 1) - n - 1
        gini = cells @ weights / (n * np.where(total > 0, total, 1))
        return {"sparsity": Scores.where(gini, {DEGENERATE_MODEL: np.ptp(cells, axis=1) == 0})}

    def conventions(self) -> str:
        return f"abs; area down, bilinear up to {self.side}x{self.side}; Gini index"
