"""Pearson's and Spearman's correlation of one variable with many columns."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.studies.statistics.columns import Moments, as_columns, explained, reasons, too_few
from pipeline.studies.summary import Bootstrap, effective_clusters

_NEARLY_CONSTANT = 1e-13
"""Spread, relative to the mean, below which rounding errors are what would be correlated."""


def pearson(x: np.ndarray, values: np.ndarray, level: float = 0.95) -> pd.DataFrame:
    """Pearson's r of ``x (n,)``, or ``(n, k)``, with the columns of ``values (n, k)``, over rows
    that have both.

    Columns: ``n, r, ci_low, ci_high`` (Fisher's z; none below four rows), ``p`` (two-sided, by
    Student's t), ``reason``.
    """
    x, values = _both(x, values)
    return _correlation(x, values, level, lambda r: np.ones(len(r)))


def spearman(x: np.ndarray, values: np.ndarray, level: float = 0.95) -> pd.DataFrame:
    """Spearman's rho likewise: Pearson's r of average ranks.

    The interval is Fisher's z with the variance of Bonett and Wright 2000, (1 + rho^2 / 2)/(n - 3).
    """
    x, values = _both(x, values)
    ranks, others = (stats.rankdata(side, axis=0, nan_policy="omit") for side in (x, values))
    return _correlation(ranks, others, level, lambda r: 1 + r**2 / 2)


def clustered_intervals(
    x: np.ndarray, values: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap
) -> np.ndarray:
    """Bounds ``(2, k)`` of Pearson's r, from resamples of whole clusters ``(n,)``."""
    x, values = _both(x, values)
    k = values.shape[1]
    x, values = (
        x - np.nan_to_num(Moments.of(x).mean),
        values - np.nan_to_num(Moments.of(values).mean),
    )
    parts = np.concatenate([x, values, x * x, values * values, x * values], axis=1)
    means = bootstrap.resampled(parts, clusters)
    mx, my, mxx, myy, mxy = (means[:, i * k : (i + 1) * k] for i in range(5))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (mxy - mx * my) / np.sqrt((mxx - mx**2) * (myy - my**2))
    r[~np.isfinite(r)] = np.nan
    return bootstrap.bounds(np.clip(r, -1, 1), effective_clusters(values, clusters))


def _both(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ``(n, k)``, NaN where either has no value."""
    x, values = np.broadcast_arrays(as_columns(x), as_columns(values))
    missing = np.isnan(x) | np.isnan(values)
    return np.where(missing, np.nan, x), np.where(missing, np.nan, values)


def _correlation(
    x: np.ndarray, values: np.ndarray, level: float, variance: Callable[[np.ndarray], np.ndarray]
) -> pd.DataFrame:
    """``variance``: of Fisher's z times n - 3, as a function of r ``(k,)``."""
    one, two = Moments.of(x), Moments.of(values)
    r = np.clip(_r(x, values, one, two), -1, 1)
    n = one.n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(r) * np.sqrt((n - 2) / ((1 - r) * (1 + r)))
        margin = stats.norm.ppf((1 + level) / 2) * np.sqrt(variance(r) / (n - 3))
        low, high = np.tanh(np.arctanh(r) - margin), np.tanh(np.arctanh(r) + margin)
    enough = n > 3
    frame = pd.DataFrame(
        {
            "n": n,
            "r": r,
            "ci_low": np.where(enough, low, np.nan),
            "ci_high": np.where(enough, high, np.nan),
            "p": 2 * stats.t.sf(t, np.maximum(n - 2, 1)),
        }
    )
    constant = "all values of {} are equal; a correlation needs spread"
    reason = reasons(
        len(frame),
        too_few(n, 3, "a correlation"),
        (_flat(one), constant.format("the variable")),
        (_flat(two), constant.format("the column")),
    )
    return explained(frame, reason, given=["n"])


def _r(x: np.ndarray, values: np.ndarray, one: Moments, two: Moments) -> np.ndarray:
    products = np.nansum((x - one.mean) * (values - two.mean), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return products / (one.sd * two.sd * (one.n - 1))


def _flat(moments: Moments) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return moments.constant | (moments.sd <= _NEARLY_CONSTANT * np.abs(moments.mean))
