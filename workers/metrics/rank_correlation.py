"""Rank correlation with human attention (Das et al. 2016; Goyal et al. 2016, Table 1).

Absolute values, both maps scaled to 14 x 14, Spearman's rho over the 196 cells.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from workers.metrics.base import Metric, Scores, pairs
from workers.metrics.ranks import Ranked, degenerate, rank, spearman
from workers.metrics.resampling import magnitudes


class RankCorrelation(Metric):
    """Spearman's rho between ``|map|`` and human map on a coarse grid.

    The papers name neither the resize rule nor the treatment of ties; here area averages
    downwards, bilinear (``align_corners=False``) upwards, and average ranks. They also normalise
    the scaled maps, which changes no rank and is left out. A constant map has no rank
    correlation: status ``degenerate_model`` or ``degenerate_human``.
    """

    names: ClassVar[tuple[str, ...]] = ("rank_correlation",)
    side: int = Field(default=14, ge=2)
    """Cells along each axis of the grid."""

    def prepare(self, maps: Sequence[np.ndarray]) -> list[Ranked]:
        return rank(magnitudes(maps, self.side))

    def score(self, model: Sequence[Ranked], human: Sequence[Ranked]) -> dict[str, Scores]:
        compared = pairs(model, human)
        return {"rank_correlation": Scores.where(spearman(compared), degenerate(compared))}

    def conventions(self) -> str:
        return f"abs; area down, bilinear up to {self.side}x{self.side}; average ranks"
