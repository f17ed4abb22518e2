"""Permutation test of a difference of means, with whole images as what is exchanged."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from pydantic import Field

from pipeline.studies.statistics.columns import Moments, as_columns, explained, reasons, too_few
from pipeline.studies.summary import Totals
from schemas.base import Frozen

_BLOCK = 4_000_000
"""Labels held at once."""
_SLACK = 1e-9
"""Relative: a permuted difference this close to the observed one counts as equal."""


class Permutations(Frozen):
    """How many, and from which seed."""

    resamples: int = Field(default=1999, ge=1)
    seed: int = 0

    def test(self, values: np.ndarray, first: np.ndarray, clusters: np.ndarray) -> pd.DataFrame:
        """Do rows where ``first (n,)`` and the others have one mean? ``values (n, k)``.

        Where all rows of a cluster are in one group, whole clusters change groups. Where the
        grouping varies within clusters (two questions about one image, one answered correctly),
        clusters with as many rows exchange their groupings as blocks, the order within a block
        being random: this keeps how much the values, and how much the groups, of one image
        resemble each other. Columns: ``difference, p, reason``; p is two-sided and counts the
        observed grouping itself (Phipson and Smyth 2010), so it is at least 1 / (resamples + 1).
        """
        values, first = as_columns(values), np.asarray(first, dtype=bool)
        one, two = Moments.of(values[first]), Moments.of(values[~first])
        difference = one.mean - two.mean
        exchange = Exchange(first, np.asarray(clusters))
        extreme = np.zeros(values.shape[1])
        counted = Counted(values)
        edge = np.abs(difference) * (1 - _SLACK)
        for labels in self._labels(exchange, len(values)):
            with np.errstate(invalid="ignore"):
                extreme += (~(np.abs(counted.differences(labels)) < edge)).sum(axis=0)
        frame = pd.DataFrame({"difference": difference, "p": (1 + extreme) / (1 + self.resamples)})
        least = np.minimum(one.n, two.n)
        constant = Moments.of(values).constant
        return explained(
            frame,
            reasons(
                len(frame),
                too_few(least, 1, "a permutation test"),
                (constant, "all values are equal; there is nothing to permute"),
            ),
            given=["difference"],
        )

    def _labels(self, exchange: "Exchange", rows: int) -> Iterator[np.ndarray]:
        """Permuted groupings: blocks ``(resample, row)`` of 0 and 1."""
        rng = np.random.default_rng(self.seed)
        block = max(1, _BLOCK // max(rows, 1))
        for start in range(0, self.resamples, block):
            yield exchange.draw(rng, min(block, self.resamples - start))


class Counted:
    """Columns whose mean difference under any grouping follows from two products."""

    def __init__(self, values: np.ndarray) -> None:
        self.totals = Totals.of(values, np.arange(len(values)), len(values))
        self.sums, self.counts = self.totals.sums.sum(axis=0), self.totals.counts.sum(axis=0)

    def differences(self, labels: np.ndarray) -> np.ndarray:
        """Means where a label is 1 minus means where it is 0: ``(resample, k)``, NaN where a
        group has no value."""
        pattern = self.totals.pattern
        sums, n = labels @ self.totals.sums, labels @ self.totals.counts
        rest = (self.counts - n)[:, pattern]
        n = n[:, pattern]
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / n - (self.sums - sums) / rest


class Exchange:
    """Which groupings are as likely as the observed one, if groups do not matter."""

    def __init__(self, first: np.ndarray, clusters: np.ndarray) -> None:
        _, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        share = np.bincount(codes, first, len(sizes)) / np.maximum(sizes, 1)
        self.first, self.codes, self.sizes, self.share = first.astype(float), codes, sizes, share
        self.whole = bool(np.isin(share, (0, 1)).all())
        """Every cluster lies in one group."""
        order = np.argsort(codes, kind="stable")
        starts = np.cumsum(sizes) - sizes
        self.strata = [
            order[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)
        ]
        """Rows of the clusters of each size: ``(cluster, size)``."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """``(count, row)`` of 0 and 1."""
        if self.whole:
            return rng.permuted(np.tile(self.share, (count, 1)), axis=1)[:, self.codes]
        labels = np.empty((count, len(self.first)))
        for rows in self.strata:
            order = rng.permuted(np.tile(np.arange(len(rows)), (count, 1)), axis=1)
            blocks = self.first[rows][order]
            if rows.shape[1] > 1:
                blocks = rng.permuted(blocks, axis=2)
            labels[:, rows] = blocks
        return labels
