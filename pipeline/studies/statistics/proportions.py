"""Shares of examples: intervals, and the test of two models on the same examples."""

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from pipeline.studies.statistics.columns import as_columns, explained, reasons, too_few
from pipeline.studies.summary import Bootstrap


def proportion(hits: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap) -> pd.DataFrame:
    """Share of ones in ``hits (n, k)`` of 0, 1 and NaN, which is left out.

    Columns: ``n, share, ci_low, ci_high`` (Wilson 1927), ``clustered_low, clustered_high``
    (bootstrap over ``clusters (n,)``), ``reason``. Wilson's takes rows as independent.
    """
    hits = as_columns(hits)
    n, count = (~np.isnan(hits)).sum(axis=0), np.nansum(hits, axis=0)
    some = n > 0
    frame = pd.DataFrame({"n": n, "share": np.nan, "ci_low": np.nan, "ci_high": np.nan})
    frame.loc[some, "share"] = count[some] / n[some]
    low, high = proportion_confint(count[some], n[some], 1 - bootstrap.level, method="wilson")
    frame.loc[some, "ci_low"], frame.loc[some, "ci_high"] = low, high
    frame["clustered_low"], frame["clustered_high"] = bootstrap.intervals(hits, clusters)
    return explained(frame, reasons(len(n), too_few(n, 1, "a share")), given=["n"])


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """Do two answer sheets ``(n,)`` of 0, 1 and NaN have the same share right? McNemar 1947, exact.

    One row: ``n, only_first, only_second, p, reason``.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    one, two = first[both] == 1, second[both] == 1
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    frame = pd.DataFrame({"n": [int(both.sum())], "only_first": only_first})
    frame["only_second"], frame["p"] = only_second, np.nan
    reason = reasons(
        1,
        too_few(frame["n"].to_numpy(), 1, "McNemar's test", "pair"),
        (np.array([only_first + only_second == 0]), "both are right on the same examples"),
    )
    if reason[0] is None:
        frame["p"] = mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue
    return explained(frame, reason, given=["n", "only_first", "only_second"])
