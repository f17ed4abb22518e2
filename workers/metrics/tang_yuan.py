"""The eight similarity metrics of Tang and Yuan, *Evaluating Interpretability Techniques with
Human Attention in Visual Question Answering*, section 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from workers.metrics.base import Metric, Scores, pairs
from workers.metrics.ranks import Ranked, degenerate, rank, spearman
from workers.metrics.resampling import magnitudes

EMPTY_OVERLAP = "empty_overlap"
"""The two regions share no pixel, so ``ty_f1_nonempty`` leaves the pair out."""


@dataclass(frozen=True)
class Prepared(Ranked):
    """One map over its ``side * side`` pixels."""

    weights: np.ndarray
    """``(pixel,)`` >= 0, of sum 1."""
    region: np.ndarray
    """bool ``(pixel,)``: the highest pixels."""
    area: int
    """How many pixels the region has."""
    exact: np.ndarray
    """bool ``(pixel,)``: the region of always k pixels."""


class TangYuan(Metric):
    """Soft and discretised similarity of two maps at 448 x 448.

    Absolute values are resized; every metric but the intersection then sees only their order,
    which the paper's range and z-score scaling leave as it is, so they are not applied.
    ``ty_intersection`` is the sum of products of the range-scaled maps, each of sum 1 (a z-score
    has sum 0 and cannot have total weight 1).

    On two binary regions Dice equals F1; the paper's columns differ, which fits an F1 that leaves
    out empty overlaps: ``ty_f1`` counts those as 0, ``ty_f1_nonempty`` leaves them out. The names
    that end in ``_exact`` are of regions of always k pixels, whatever ``ties`` says; there
    precision, recall, F1 and Dice are one number, ``ty_f1_exact``.
    All are ``degenerate_model`` or ``degenerate_human`` where a map is constant.
    """

    names: ClassVar[tuple[str, ...]] = (
        "ty_rank",
        "ty_intersection",
        "ty_disc_intersection",
        "ty_iou",
        "ty_precision",
        "ty_recall",
        "ty_f1",
        "ty_dice",
        "ty_f1_nonempty",
        "ty_disc_intersection_exact",
        "ty_iou_exact",
        "ty_f1_exact",
        "ty_f1_nonempty_exact",
    )
    side: int = Field(default=448, ge=2)
    """Pixels along each axis."""
    top: float = Field(default=0.1, gt=0, le=1)
    """Share of the pixels that form the region: k = ``round(top * side**2)``."""
    ties: Literal["above_minimum", "exact_k"] = "above_minimum"
    """``above_minimum``: at most k pixels, none at the map's minimum, so a map with few non-zero
    pixels is not padded with arbitrary zeros (inferred: the paper's precision and recall differ).
    ``exact_k``: always k pixels. In both, of the pixels tied at the edge the first in row-major
    order enter."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Added to every denominator."""

    def prepare(self, maps: Sequence[np.ndarray]) -> list[Prepared]:
        values = magnitudes(maps, self.side)
        prepared = []
        for ranked, row in zip(rank(values), values, strict=True):
            region, exact = self.regions(row)
            area = int(np.count_nonzero(region))
            prepared.append(
                Prepared(ranked.ranks, ranked.constant, self.weights(row), region, area, exact)
            )
        return prepared

    def weights(self, values: np.ndarray) -> np.ndarray:
        """``(pixel,)`` scaled to range 0..1, then to sum 1."""
        shifted = values.astype(np.float64) - values.min()
        shifted /= shifted.max() + self.epsilon
        return shifted / (shifted.sum() + self.epsilon)

    def regions(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k highest of ``(pixel,)`` as bool masks: ties by the field's rule, and exactly k."""
        k = self.pixels(values.size)
        edge = np.partition(values, -k)[-k]
        above = values > edge
        exact = above.copy()
        exact[np.flatnonzero(values == edge)[: k - np.count_nonzero(above)]] = True
        return exact if self.ties == "exact_k" or edge > values.min() else above, exact

    def pixels(self, size: int) -> int:
        """k of a map of ``size`` pixels."""
        return max(1, round(self.top * size))

    def score(self, model: Sequence[Prepared], human: Sequence[Prepared]) -> dict[str, Scores]:
        compared: list[tuple[Prepared, Prepared]] = pairs(model, human)
        shared = np.array([np.count_nonzero(m.region & h.region) for m, h in compared])
        model_areas = np.array([m.area for m, _ in compared])
        human_areas = np.array([h.area for _, h in compared])
        values = {
            "ty_rank": spearman(compared),
            "ty_intersection": np.array([m.weights @ h.weights for m, h in compared]),
            **self.overlaps(shared, model_areas, human_areas),
        }
        faults = degenerate(compared)
        scores = {name: Scores.where(value, faults) for name, value in values.items()}
        nonempty = Scores.where(values["ty_f1"], {**faults, EMPTY_OVERLAP: shared == 0})
        return {**scores, "ty_f1_nonempty": nonempty, **self.exact(compared, faults)}

    def exact(
        self, compared: Sequence[tuple[Prepared, Prepared]], faults: dict[str, np.ndarray]
    ) -> dict[str, Scores]:
        """The discretised metrics on regions of always k pixels."""
        shared = np.array([np.count_nonzero(m.exact & h.exact) for m, h in compared])
        areas = np.full(len(shared), self.pixels(self.side**2))
        values = self.overlaps(shared, areas, areas)
        names = ("ty_disc_intersection", "ty_iou", "ty_f1")
        scores = {f"{name}_exact": Scores.where(values[name], faults) for name in names}
        nonempty = Scores.where(values["ty_f1"], {**faults, EMPTY_OVERLAP: shared == 0})
        return {**scores, "ty_f1_nonempty_exact": nonempty}

    def overlaps(
        self, shared: np.ndarray, model: np.ndarray, human: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The discretised metrics from pixel counts ``(n,)`` of the overlap and the two regions."""
        precision = shared / (model + self.epsilon)
        recall = shared / (human + self.epsilon)
        return {
            "ty_disc_intersection": shared.astype(np.float64),
            "ty_iou": shared / (model + human - shared + self.epsilon),
            "ty_precision": precision,
            "ty_recall": recall,
            "ty_f1": 2 * precision * recall / (precision + recall + self.epsilon),
            "ty_dice": 2 * shared / (model + human + self.epsilon),
        }

    def conventions(self) -> str:
        return (
            f"abs; area down, bilinear up to {self.side}x{self.side}; average ranks; "
            f"top {self.top:g}, ties {self.ties} (exact_k in *_exact); epsilon {self.epsilon:g}"
        )
