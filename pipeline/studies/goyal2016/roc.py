"""Area under the ROC curve, with intervals for questions that share images."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata


@dataclass(frozen=True)
class Area:
    """``value``; ``parts (n,)``, each example's influence on it: their sum over all examples is 0,
    the sum of squares over clusters its variance."""

    value: float
    parts: np.ndarray

    def error(self, clusters: np.ndarray) -> float:
        """Standard error with ``clusters (n,)`` sampled as wholes (Obuchowski 1997; DeLong et al.
        1988 where each example is its own cluster). NaN for a single cluster."""
        _, codes = np.unique(clusters, return_inverse=True)
        count = codes.max() + 1
        if count < 2:
            return np.nan
        sums = np.bincount(codes, self.parts)
        return float(np.sqrt(count / (count - 1) * (sums @ sums)))

    def plain_interval(self, clusters: np.ndarray, level: float) -> tuple[float, float]:
        """Symmetric: for a difference of areas."""
        half = norm.ppf((1 + level) / 2) * self.error(clusters)
        return self.value - half, self.value + half

    def interval(self, clusters: np.ndarray, level: float) -> tuple[float, float]:
        """On the logit scale, so that it stays inside 0..1; NaN where every pair is ordered right,
        or every pair wrong: there is nothing to estimate an error from."""
        error = self.error(clusters)
        if not 0 < self.value < 1 or not error > 0:
            return np.nan, np.nan
        logit = np.log(self.value / (1 - self.value))
        half = norm.ppf((1 + level) / 2) * error / (self.value * (1 - self.value))
        return float(1 / (1 + np.exp(half - logit))), float(1 / (1 + np.exp(-half - logit)))


def area(scores: np.ndarray, right: np.ndarray) -> Area:
    """Probability that a right example scores above a wrong one, ties counting half.

    ``scores (n,)``, ``right (n,)`` bool with both kinds.
    """
    overall = rankdata(scores)
    value, parts = 0.0, np.empty(len(scores))
    for own, sign in ((right, 1), (~right, -1)):
        others = len(scores) - own.sum()
        below = (overall[own] - rankdata(scores[own])) / others  # placement among the other kind
        placed = below if sign > 0 else 1 - below
        value = float(placed.mean())
        parts[own] = (placed - value) / own.sum()
    return Area(value, parts)


def difference(first: Area, second: Area) -> Area:
    """Of two scorings of the same examples: its influences are paired."""
    return Area(first.value - second.value, first.parts - second.parts)
