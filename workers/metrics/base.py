"""What a metric is: named values of a map, by itself or beside a human map.

A third kind asks the model too: ``workers/checks``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from schemas.base import Frozen

OK = "ok"
DEGENERATE_MODEL = "degenerate_model"
"""The model's map is constant on the protocol's grid (also where both are)."""
DEGENERATE_HUMAN = "degenerate_human"
"""The human map is constant on the protocol's grid."""


@dataclass(frozen=True)
class Scores:
    """``values (n,)`` and ``statuses (n,)``; a value is NaN exactly where its status is not ok."""

    values: np.ndarray
    statuses: list[str]
    points: Sequence[Sequence[float] | None] | None = None
    """Of each value the curve that it sums up, where it is such a value."""

    @classmethod
    def where(cls, values: np.ndarray, faults: Mapping[str, np.ndarray]) -> Self:
        """``values`` except where a fault's mask ``(n,)`` holds; the first fault named wins."""
        statuses = np.select(list(faults.values()), list(faults), default=OK)
        return cls(np.where(statuses == OK, values, np.nan), statuses.tolist())

    def only(self, i: int) -> "Scores":
        """The i-th alone."""
        points = None if self.points is None else [self.points[i]]
        return Scores(self.values[i : i + 1], [self.statuses[i]], points)


def pairs(model: Sequence[Any], human: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Prepared maps pair by pair; a single one stands against every map of the other side."""
    n = max(len(model), len(human))
    sides = [list(side) * n if len(side) == 1 else side for side in (model, human)]
    return list(zip(*sides, strict=True))


class Measure(Frozen, ABC):
    """One or more named values of every map; its fields are the choices a paper leaves open."""

    names: ClassVar[tuple[str, ...]]
    """The values it yields, for instance ``("rank_correlation",)``; one that ends in ``_*`` stands
    for all that begin so."""

    @abstractmethod
    def conventions(self) -> str:
        """Resize rule, size, ties and other choices, as one short string stored with each value."""


class Metric(Measure):
    """A comparison protocol of a paper, possibly with several named values.

    ``prepare`` depends on one map alone, so a human map is prepared once for ten methods.
    """

    @abstractmethod
    def prepare(self, maps: Sequence[np.ndarray]) -> list[Any]:
        """n signed maps ``(h, w)`` of any sizes -> n prepared maps, in the protocol's own form."""

    @abstractmethod
    def score(self, model: Sequence[Any], human: Sequence[Any]) -> dict[str, Scores]:
        """n prepared maps against n others, pair by pair, or against a single one."""


class MapMetric(Measure):
    """A property of a map alone: no human map and no model is needed."""

    @abstractmethod
    def score(self, maps: Sequence[np.ndarray]) -> dict[str, Scores]:
        """n signed maps ``(h, w)`` of any sizes."""
