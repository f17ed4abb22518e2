"""The same examples under two conditions: tests of the mean difference."""

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.studies.statistics.columns import Moments, as_columns, explained, reasons, too_few
from pipeline.studies.statistics.permutation import Permutations
from pipeline.studies.summary import Bootstrap, Totals

_SLACK = 1e-9
"""Relative: a sum this close to the observed one counts as equal."""
_EXACT = 50
"""Pairs up to which the signed-rank test is exact."""


def paired(
    first: np.ndarray, second: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap
) -> pd.DataFrame:
    """``first`` minus ``second (n, k)``, row by row; a row without both values is left out.

    Columns: ``n, mean_first, mean_second, difference, ci_low, ci_high`` (bootstrap clustered by
    ``clusters (n,)``), ``t, p_t`` (paired t), ``p_wilcoxon`` (signed ranks, zero differences left
    out), ``p_sign``, ``reason``. The p-values are two-sided and take rows as independent.
    """
    first, second = as_columns(first), as_columns(second)
    change = first - second
    both = ~np.isnan(change)
    one, two = (Moments.of(np.where(both, side, np.nan)) for side in (first, second))
    moved = Moments.of(change)
    low, high = bootstrap.intervals(change, clusters)
    frame = pd.DataFrame(
        {
            "n": moved.n,
            "mean_first": one.mean,
            "mean_second": two.mean,
            "difference": moved.mean,
            "ci_low": low,
            "ci_high": high,
            "t": _ratio(moved.mean, moved.se),
        }
    )
    frame["p_t"] = 2 * stats.t.sf(np.abs(frame["t"]), np.maximum(moved.n - 1, 1))
    frame["p_wilcoxon"] = [_wilcoxon(column) for column in change.T]
    frame["p_sign"] = sign_test(change)
    reason = reasons(
        len(frame),
        too_few(moved.n, 2, "a paired test", "pair"),
        (moved.constant, "all differences are equal; a paired test needs spread"),
    )
    return explained(frame, reason, given=list(frame.columns[:6]))


def sign_test(change: np.ndarray) -> np.ndarray:
    """Exact two-sided p of as many positive as negative differences ``(n, k)``, zeros left out."""
    above, below = (change > 0).sum(axis=0), (change < 0).sum(axis=0)
    tail = stats.binom.cdf(np.minimum(above, below), above + below, 0.5)
    return np.where(above + below > 0, np.minimum(1, 2 * tail), np.nan)


def sign_flips(
    change: np.ndarray, clusters: np.ndarray, permutations: Permutations
) -> pd.DataFrame:
    """Permutation test of mean zero: the differences of a cluster ``(n, k)`` change sign together.

    Columns ``difference, p, reason``; p counts the observed signs themselves.
    """
    change = as_columns(change)
    _, codes = np.unique(clusters, return_inverse=True)
    totals = Totals.of(change, codes, int(codes.max(initial=-1)) + 1)
    n, sums = totals.counts.sum(axis=0)[totals.pattern], totals.sums.sum(axis=0)
    rng = np.random.default_rng(permutations.seed)
    signs = rng.choice([-1.0, 1.0], (permutations.resamples, totals.clusters))
    extreme = (np.abs(signs @ totals.sums) >= np.abs(sums) * (1 - _SLACK)).sum(axis=0)
    frame = pd.DataFrame(
        {"difference": _ratio(sums, n), "p": (1 + extreme) / (1 + permutations.resamples)}
    )
    reason = reasons(
        len(frame),
        too_few(n.astype(int), 1, "a permutation test", "pair"),
        ((change == 0).sum(axis=0) == n, "all differences are 0; there is nothing to permute"),
    )
    return explained(frame, reason, given=["difference"])


def _wilcoxon(change: np.ndarray) -> float:
    """Exact up to 50 pairs without ties, else normal; all signs of tied ones take seconds."""
    change = change[~np.isnan(change)]
    sizes = np.abs(change[change != 0])
    if not len(sizes):
        return np.nan
    exact = len(change) <= _EXACT and len(np.unique(sizes)) == len(change)
    return float(stats.wilcoxon(change, method="exact" if exact else "asymptotic").pvalue)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
