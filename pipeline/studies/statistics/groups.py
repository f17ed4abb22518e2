"""Two independent groups: difference of means, t-tests, Hedges' g."""

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import effectsize_smd

from pipeline.studies.statistics.columns import (
    Fault,
    Moments,
    as_columns,
    explained,
    reasons,
    too_few,
)


def t_test(
    first: np.ndarray,
    second: np.ndarray,
    equal_variances: bool = False,
    level: float = 0.95,
) -> pd.DataFrame:
    """Welch's t-test of ``first (n, k)`` against ``second (m, k)``; Student's on request.

    Columns: ``n_first, n_second, mean_first, mean_second, difference, ci_low, ci_high, t, df, p,
    reason``; the difference is first minus second, with Student's interval, the p-value two-sided.
    The values count as independent: where images have several questions, see also ``permutation``.
    """
    one, two = Moments.of(as_columns(first)), Moments.of(as_columns(second))
    frame = pd.DataFrame(
        {
            "n_first": one.n,
            "n_second": two.n,
            "mean_first": one.mean,
            "mean_second": two.mean,
            "difference": one.mean - two.mean,
        }
    )
    reason = reasons(len(frame), *_faults(one, two, "a t-test"))
    testable = pd.isna(reason)
    se, df = _pooled(one, two) if equal_variances else _welch(one, two)
    se = np.where(testable, se, np.nan)
    margin = stats.t.ppf((1 + level) / 2, df) * se
    frame["ci_low"], frame["ci_high"] = frame.difference - margin, frame.difference + margin
    frame["t"], frame["df"] = frame.difference / se, df
    frame["p"] = 2 * stats.t.sf(np.abs(frame["t"]), df)
    return explained(frame, reason, given=list(frame.columns[:5]))


def hedges_g(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> pd.DataFrame:
    """Hedges' g: the difference of means in pooled standard deviations, corrected for small n.

    Hedges and Olkin 1985, by ``statsmodels``; the interval is normal. Columns: ``g, g_low, g_high,
    reason``.
    """
    one, two = Moments.of(as_columns(first)), Moments.of(as_columns(second))
    reason = reasons(len(one.n), *_faults(one, two, "an effect size"))
    testable = pd.isna(reason)
    g, variance = np.full((2, len(reason)), np.nan)
    g[testable], variance[testable] = effectsize_smd(
        *(m[testable] for m in (one.mean, one.sd, one.n, two.mean, two.sd, two.n))
    )
    margin = stats.norm.ppf((1 + level) / 2) * np.sqrt(variance)
    frame = pd.DataFrame({"g": g, "g_low": g - margin, "g_high": g + margin})
    return explained(frame, reason)


def _faults(one: Moments, two: Moments, what: str) -> list[Fault]:
    return [
        too_few(np.minimum(one.n, two.n), 2, what),
        (one.constant & two.constant, f"all values of each group are equal; {what} needs spread"),
    ]


def _welch(one: Moments, two: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the difference and its degrees of freedom (Welch and Satterthwaite)."""
    first, second = one.se**2, two.se**2
    with np.errstate(invalid="ignore", divide="ignore"):
        df = (first + second) ** 2 / (first**2 / (one.n - 1) + second**2 / (two.n - 1))
    return np.sqrt(first + second), df


def _pooled(one: Moments, two: Moments) -> tuple[np.ndarray, np.ndarray]:
    df = one.n + two.n - 2.0
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (one.sd**2 * (one.n - 1) + two.sd**2 * (two.n - 1)) / df
        return np.sqrt(variance * (1 / one.n + 1 / two.n)), df
