"""Means over questions, with intervals that treat the questions of one image as one cluster."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from pydantic import Field

from schemas.base import Frozen

_BLOCK = 4_000_000
"""Resampling weights held at once."""


class Bootstrap(Frozen):
    """A percentile bootstrap that resamples whole clusters (Davison and Hinkley 1997, section 3.8).

    The clusters are images: questions of one image share its features and its difficulty, so an
    interval from independent questions would be too narrow.
    """

    resamples: int = Field(default=2000, ge=1)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = 0

    def intervals(self, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Bounds ``(2, k)`` of the k column means of ``values (n, k)``; ``clusters (n,)``.

        NaN values are left out. All columns see the same resamples; one in which a column has no
        value is left out for it, and a column with values in fewer than two clusters has no bounds.
        """
        return self.bounds(self.resampled(values, clusters))

    def resampled(self, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
        """Column means of every resample ``(resample, k)``, for statistics of several means.

        NaN where a resample has no value of a column, and throughout a column with values in fewer
        than two clusters.
        """
        if not values.size:
            return np.full((1, values.shape[1]), np.nan)
        names, codes = np.unique(clusters, return_inverse=True)
        used = ~np.isnan(values)
        sums = _cluster_sums(np.where(used, values, 0), codes, len(names))
        counts = _cluster_sums(used.astype(np.float64), codes, len(names))
        counts[:, (counts > 0).sum(axis=0) < 2] = 0
        return np.concatenate([_means(w, sums, counts) for w in self._weights(len(names))])

    def bounds(self, statistics: np.ndarray) -> np.ndarray:
        """Percentile bounds ``(2, k)`` of statistics ``(resample, k)``; NaN for all-NaN columns."""
        bounds = np.full((2, statistics.shape[1]), np.nan)
        known = ~np.isnan(statistics).all(axis=0)
        tail = (1 - self.level) / 2
        if known.any():
            bounds[:, known] = np.nanquantile(statistics[:, known], [tail, 1 - tail], axis=0)
        return bounds

    def _weights(self, clusters: int) -> Iterator[np.ndarray]:
        """How often each cluster is drawn: blocks ``(resample, cluster)``."""
        rng = np.random.default_rng(self.seed)
        block = max(1, _BLOCK // clusters)
        for start in range(0, self.resamples, block):
            size = min(block, self.resamples - start)
            yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size).astype(float)


def _cluster_sums(values: np.ndarray, codes: np.ndarray, clusters: int) -> np.ndarray:
    """``values (n, k)`` summed within each cluster -> ``(cluster, k)``."""
    return np.stack([np.bincount(codes, column, clusters) for column in values.T], axis=1)


def _means(weights: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Column means ``(resample, k)``, NaN where a resample has none of a column's values."""
    n = weights @ counts
    return np.divide(weights @ sums, n, out=np.full(n.shape, np.nan), where=n > 0)


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
