"""Localisation: do the maximum and the mass of a map lie where people look?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from workers.errors import BadExample
from workers.metrics.base import DEGENERATE_HUMAN, DEGENERATE_MODEL, Metric, Scores, pairs
from workers.metrics.resampling import axis_weights, separable


@dataclass(frozen=True)
class Located:
    """A map's magnitudes ``(h, w)``, as they stand."""

    values: np.ndarray

    @property
    def constant(self) -> bool:
        return float(np.ptp(self.values)) == 0


class Localisation(Metric):
    """The pointing game and its energy-based form, against a mask made of the human map.

    ``pointing_game``: 1 where the map's maximum lies inside the mask (Zhang et al. 2018, "Top-down
    Neural Attention by Excitation Backprop", section 4.1; their 15 pixels of tolerance are left
    out). Of several equal maxima the share inside counts, the hit to expect of one picked blindly.
    ``energy_inside``: the share of the map's mass inside the mask (Wang et al. 2020, "Score-CAM",
    section 4.2). The share of the image that the mask covers is what an uninformed map gets; the
    ``random`` baseline shows it.

    Magnitudes, as the agreement metrics. A pixel of the human map is inside where it is at least
    ``inside`` of the human map's largest: an exact mask of zeros and ones stays what it is. A
    maximum is the centre of its cell; for the mass each cell counts by the part of it that is
    inside. A constant map is degenerate on either side.
    """

    names: ClassVar[tuple[str, ...]] = ("pointing_game", "energy_inside")
    inside: float = Field(default=0.5, gt=0, le=1)

    def prepare(self, maps: Sequence[np.ndarray]) -> list[Located]:
        for values in maps:
            if values.ndim != 2 or not values.size or not np.isfinite(values).all():
                raise BadExample(
                    f"a map of shape {values.shape} cannot be scored: a map must be a non-empty "
                    "(h, w) array of finite values; compute it again"
                )
        return [Located(np.abs(values).astype(np.float64)) for values in maps]

    def score(self, model: Sequence[Located], human: Sequence[Located]) -> dict[str, Scores]:
        compared = pairs(model, human)
        faults = {
            DEGENERATE_MODEL: np.array([m.constant for m, _ in compared], bool),
            DEGENERATE_HUMAN: np.array([h.constant for _, h in compared], bool),
        }
        points = np.array([self._pointed(m.values, h.values) for m, h in compared])
        energies = np.array([self._energy(m.values, h.values) for m, h in compared])
        return {
            "pointing_game": Scores.where(points, faults),
            "energy_inside": Scores.where(energies, faults),
        }

    def _mask(self, human: np.ndarray) -> np.ndarray:
        return human >= self.inside * human.max()

    def _pointed(self, values: np.ndarray, human: np.ndarray) -> float:
        rows, columns = (
            ((2 * cells + 1) * size) // (2 * side)
            for cells, size, side in zip(
                np.nonzero(values == values.max()), human.shape, values.shape, strict=True
            )
        )
        return float(self._mask(human)[rows, columns].mean())

    def _energy(self, values: np.ndarray, human: np.ndarray) -> float:
        rows, columns = map(axis_weights, human.shape, values.shape)
        shares = separable(self._mask(human), rows, columns)
        total = values.sum()
        return float((values * shares).sum() / total) if total else 0.0

    def conventions(self) -> str:
        return (
            f"abs; mask: at least {self.inside:g} of the human map's maximum; equal maxima share; "
            "mask at the map's own resolution by area"
        )
