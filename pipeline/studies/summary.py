"""Means over questions, with intervals that treat the questions of one image as one cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import stats

from schemas.base import Frozen

_BLOCK = 4_000_000
"""Resampling weights held at once."""


class Bootstrap(Frozen):
    """A percentile bootstrap that resamples whole clusters (Davison and Hinkley 1997, section 3.8).

    The clusters are images: questions of one image share its features and its difficulty, so an
    interval from independent questions would be too narrow. The percentiles are widened as
    Student's t is wider than a normal (Hesterberg 2015, section 4.2, "expanded percentile"), with
    the effective number of clusters for n, since plain ones cover less than they say below some
    hundred clusters and where clusters differ in size.
    """

    resamples: int = Field(default=2000, ge=1)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = 0

    def intervals(self, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Bounds ``(2, k)`` of the k column means of ``values (n, k)``; ``clusters (n,)``.

        NaN values are left out. All columns see the same resamples; one in which a column has no
        value is left out for it, and a column with values in fewer than two clusters has no bounds.
        """
        return self.bounds(self.resampled(values, clusters), effective_clusters(values, clusters))

    def resampled(self, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Column means of every resample ``(resample, k)``, for statistics of several means.

        NaN where a resample has no value of a column, and throughout a column with values in fewer
        than two clusters.
        """
        totals = Totals.of(values, *_codes(clusters))
        means = np.concatenate([totals.means(w) for w in self._weights(totals.clusters)])
        means[:, totals.effective <= 1] = np.nan
        return means

    def differences(
        self, values: np.ndarray, first: np.ndarray, clusters: np.ndarray
    ) -> np.ndarray:
        """Bounds ``(2, k)`` of the differences of column means: rows where ``first (n,)``, minus
        the others. Whole clusters are drawn, with their rows of either kind."""
        codes, count = _codes(clusters)
        one = Totals.of(values[first], codes[first], count)
        two = Totals.of(values[~first], codes[~first], count)
        draws = [one.means(w) - two.means(w) for w in self._weights(count)]
        return self.bounds(np.concatenate(draws), np.minimum(one.effective, two.effective))

    def bounds(self, statistics: np.ndarray, effective: np.ndarray | None = None) -> np.ndarray:
        """Bounds ``(2, k)`` of statistics ``(resample, k)``; NaN for all-NaN columns.

        ``effective (k,)``: clusters behind each; fewer than two give no bounds. Without it the
        percentiles are not widened.
        """
        known = ~np.isnan(statistics).all(axis=0)
        tail = np.full(len(known), (1 - self.level) / 2)
        if effective is not None:
            known &= effective > 1
            tail[known] = self._tail(effective[known])
        ordered = np.sort(statistics[:, known], axis=0)
        bounds = np.full((2, len(known)), np.nan)
        tail = tail[known]
        bounds[:, known] = _quantile(ordered, tail), _quantile(ordered, 1 - tail)
        return bounds

    def _tail(self, effective: np.ndarray) -> np.ndarray:
        """Share of the draws below the lower bound, for so many clusters."""
        quantile = stats.t.ppf((1 - self.level) / 2, effective - 1)
        return stats.norm.cdf(quantile * np.sqrt(effective / (effective - 1)))

    def _weights(self, clusters: int) -> Iterator[np.ndarray]:
        """How often each cluster is drawn: blocks ``(resample, cluster)``."""
        if clusters == 0:
            yield np.empty((self.resamples, 0))
            return
        rng = np.random.default_rng(self.seed)
        block = max(1, _BLOCK // clusters)
        for start in range(0, self.resamples, block):
            size = min(block, self.resamples - start)
            drawn = rng.integers(clusters, size=(size, clusters))
            drawn += clusters * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * clusters)
            yield counts.reshape(size, clusters).astype(float)


@dataclass(frozen=True)
class Totals:
    """Sums and counts of k columns within each cluster, from which any resample's means follow."""

    sums: np.ndarray
    """``(cluster, k)``."""
    counts: np.ndarray
    """``(cluster, pattern)``: columns with values in the same rows share one."""
    pattern: np.ndarray
    """``(k,)``: which counts are a column's."""

    @classmethod
    def of(cls, values: np.ndarray, codes: np.ndarray, clusters: int) -> Self:
        """``values (n, k)``, NaN left out, of clusters ``codes (n,)`` below ``clusters``."""
        used = ~np.isnan(values)
        found: dict[bytes, int] = {}
        pattern = [found.setdefault(column.tobytes(), len(found)) for column in used.T]
        _, first = np.unique(pattern, return_index=True)
        sums = _cluster_sums(np.where(used, values, 0), codes, clusters)
        counts = _cluster_sums(used[:, first].astype(np.float64), codes, clusters)
        return cls(sums, counts, np.array(pattern, dtype=int))

    @property
    def clusters(self) -> int:
        return len(self.sums)

    @property
    def effective(self) -> np.ndarray:
        """``(k,)``: how many equally large clusters weigh as much; 0 where there is no value."""
        squares = (self.counts**2).sum(axis=0)
        total = self.counts.sum(axis=0) ** 2
        return np.divide(total, squares, out=np.zeros(len(squares)), where=squares > 0)[
            self.pattern
        ]

    def means(self, weights: np.ndarray) -> np.ndarray:
        """Column means ``(resample, k)``, NaN where a resample has none of a column's values."""
        n = (weights @ self.counts)[:, self.pattern]
        return np.divide(weights @ self.sums, n, out=np.full(n.shape, np.nan), where=n > 0)


def effective_clusters(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """``(k,)``: how many equally large clusters weigh as much as those with a column's values."""
    return Totals.of(values, *_codes(clusters)).effective


def _codes(clusters: np.ndarray) -> tuple[np.ndarray, int]:
    """Clusters numbered from 0, and how many there are."""
    names, codes = np.unique(clusters, return_inverse=True)
    return codes, len(names)


def _cluster_sums(values: np.ndarray, codes: np.ndarray, clusters: int) -> np.ndarray:
    """``values (n, k)`` summed within each cluster -> ``(cluster, k)``."""
    sums = np.empty((clusters, values.shape[1]))
    for column, total in zip(values.T, sums.T, strict=True):
        total[:] = np.bincount(codes, column, clusters)
    return sums


def _quantile(ordered: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The quantile ``share (k,)`` of each column of sorted draws, linear between two, NaNs last."""
    last = (~np.isnan(ordered)).sum(axis=0) - 1
    place = share * np.maximum(last, 0)
    below = np.floor(place).astype(int)
    columns = np.arange(ordered.shape[1])
    low, high = ordered[below, columns], ordered[np.minimum(below + 1, last), columns]
    return low + (place - below) * (high - low)


def summarise(values: pd.DataFrame, keys: list[str], bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a group of ``keys``: mean, standard error, interval, median and counts.

    ``values`` has one row a (group, question) with columns ``question_id, image_id, value``; a NaN
    value is a question without a usable value, which enters no mean and is counted. The standard
    error is that of independent questions, as the papers print it; the interval is clustered.
    """
    groups = values.groupby(keys, sort=True, observed=True)["value"]
    table = groups.agg(mean="mean", standard_error="sem", median="median", n_used="count", n="size")
    table["n_degenerate"] = table.pop("n") - table["n_used"]
    wide = values.pivot(index=["image_id", "question_id"], columns=keys, values="value")
    wide = wide[table.index]
    clusters = wide.index.get_level_values("image_id").to_numpy()
    low, high = bootstrap.intervals(wide.to_numpy(float), clusters)
    table.insert(2, "ci_low", low)
    table.insert(3, "ci_high", high)
    return table.reset_index()
