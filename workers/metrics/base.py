"""What a metric is: a protocol that prepares maps once and scores batches of pairs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from schemas.base import Frozen

OK = "ok"


@dataclass(frozen=True)
class Scores:
    """``values (n,)`` and ``statuses (n,)``; a value is NaN exactly where its status is not ok."""

    values: np.ndarray
    statuses: list[str]


class Metric(Frozen, ABC):
    """A comparison protocol of a paper, possibly with several named values.

    ``prepare`` depends on one map alone, so a human map is prepared once for ten methods.
    """

    names: ClassVar[tuple[str, ...]]
    """The values it yields, for instance ``("rank_correlation",)``."""

    @abstractmethod
    def prepare(self, maps: Sequence[np.ndarray]) -> object:
        """A batch of n signed maps ``(h, w)`` of any sizes -> the protocol's prepared batch."""

    @abstractmethod
    def score(self, model: object, human: object) -> dict[str, Scores]:
        """Two prepared batches of equal length, compared pair by pair."""

    @abstractmethod
    def conventions(self) -> str:
        """Resize rule, size, ties and other choices, as one short string stored with each value."""
