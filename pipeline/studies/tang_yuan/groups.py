"""Groups of examples by correctness and confidence: summaries, differences, correlations."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.studies.agreement import BASELINES, Confidence
from pipeline.studies.statistics.columns import Moments, reasons, too_few
from pipeline.studies.statistics.correlations import clustered_intervals, pearson, spearman
from pipeline.studies.statistics.families import benjamini_hochberg
from pipeline.studies.statistics.groups import hedges_g, t_test
from pipeline.studies.statistics.permutation import Permutations
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tang_yuan.published import P_VALUES, TESTED_METHOD
from pipeline.studies.targets import PREDICTED, TRUTH, is_correct, is_wrong

GROUPS = {
    "all": "all",
    "correct": "correct",
    "wrong": "wrong",
    "low": "low",
    "middle": "middle",
    "high": "high",
    "correct_low": "correct, low",
    "correct_middle": "correct, middle",
    "correct_high": "correct, high",
    "wrong_low": "wrong, low",
    "wrong_middle": "wrong, middle",
    "wrong_high": "wrong, high",
}
"""Group -> its name; low, middle and high are the confidence of the prediction."""


@dataclass(frozen=True)
class Comparison:
    """The mean of one group minus that of another."""

    name: str
    title: str
    first: str
    second: str


COMPARISONS = (
    Comparison("correct_wrong", "Correct − wrong", "correct", "wrong"),
    Comparison(
        "correct_wrong_low", "Correct − wrong at low confidence", "correct_low", "wrong_low"
    ),
    Comparison(
        "correct_wrong_high", "Correct − wrong at high confidence", "correct_high", "wrong_high"
    ),
    Comparison("high_low", "High − low confidence", "high", "low"),
    Comparison(
        "high_low_correct",
        "High − low confidence of correct predictions",
        "correct_high",
        "correct_low",
    ),
    Comparison(
        "high_low_wrong", "High − low confidence of wrong predictions", "wrong_high", "wrong_low"
    ),
)


def masks(examples: pd.DataFrame, confidence: Confidence) -> dict[str, np.ndarray]:
    """Who is in each group: bool ``(n,)``. Unlabelled examples are neither correct nor wrong."""
    low = (examples["confidence"] < confidence.low).to_numpy()
    high = (examples["confidence"] > confidence.high).to_numpy()
    level = {"low": low, "middle": ~low & ~high, "high": high}
    outcome = {
        "correct": is_correct(examples).to_numpy(),
        "wrong": is_wrong(examples).to_numpy(),
    }
    crossed = {f"{o}_{c}": outcome[o] & level[c] for o in outcome for c in level}
    found = {"all": np.ones(len(examples), dtype=bool), **outcome, **level, **crossed}
    return {group: found[group] for group in GROUPS}


def group_summary(
    wide: pd.DataFrame, examples: pd.DataFrame, confidence: Confidence, bootstrap: Bootstrap
) -> pd.DataFrame:
    """One row a (group, method, metric) of ``targets.matrix``, groups without examples included.

    Columns: ``group, method, metric, n, n_degenerate, mean, standard_error, ci_low, ci_high,
    median, baseline, reason``.
    """
    rows = examples.loc[wide.index]
    images = rows["image_id"].to_numpy()
    parts = {
        group: summary(wide[mask], images[mask], bootstrap)
        for group, mask in masks(rows, confidence).items()
    }
    return pd.concat(parts, names=["group"]).reset_index("group").reset_index(drop=True)


def summary(wide: pd.DataFrame, images: np.ndarray, bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a column of ``wide``: count, mean, standard error, clustered interval, median."""
    values = wide.to_numpy(float)
    moments = Moments.of(values)
    low, high = bootstrap.intervals(values, images)
    frame = wide.columns.to_frame(index=False).assign(
        n=moments.n,
        n_degenerate=len(values) - moments.n,
        mean=moments.mean,
        standard_error=moments.se,
        ci_low=low,
        ci_high=high,
        median=wide.median().to_numpy(float) if len(wide) else np.nan,
        reason=reasons(values.shape[1], too_few(moments.n, 1, "a mean")),
    )
    return frame.assign(baseline=frame["method"].isin(BASELINES))


def differences(
    matrices: dict[str, pd.DataFrame],
    examples: pd.DataFrame,
    confidence: Confidence,
    bootstrap: Bootstrap,
) -> pd.DataFrame:
    """Every comparison of every (target, method, metric), as one family of tests.

    Columns: those of ``t_test`` (Welch) with ``comparison, target, method, metric``, further
    ``clustered_low, clustered_high`` (bootstrap), ``g, g_low, g_high``, ``p_student``,
    ``p_permutation`` (whole images), ``p_bh`` (Benjamini-Hochberg of Welch's p over all rows),
    ``p_published``, ``baseline``. Correct predictions have one map for both targets: comparisons
    among them are made once.
    """
    parts = [
        _difference(wide, examples, comparison, confidence, bootstrap).assign(target=target)
        for target, wide in matrices.items()
        for comparison in COMPARISONS
        if not (target == TRUTH and comparison.name == "high_low_correct")
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame["p_bh"] = benjamini_hochberg(frame["p"].to_numpy())
    frame["p_published"] = [
        P_VALUES.get(row.comparison, {}).get(row.metric, np.nan)
        if (row.method, row.target) == (TESTED_METHOD, PREDICTED)
        else np.nan
        for row in frame.itertuples()
    ]
    return frame.assign(baseline=frame["method"].isin(BASELINES))


def _difference(
    wide: pd.DataFrame,
    examples: pd.DataFrame,
    comparison: Comparison,
    confidence: Confidence,
    bootstrap: Bootstrap,
) -> pd.DataFrame:
    rows = examples.loc[wide.index]
    groups = masks(rows, confidence)
    first, second = groups[comparison.first], groups[comparison.second]
    either = first | second
    values, images = wide.to_numpy(float), rows["image_id"].to_numpy()
    tested = t_test(values[first], values[second], level=bootstrap.level)
    one, two = values[first], values[second]
    low, high = bootstrap.differences(values[either], first[either], images[either])
    permutations = Permutations(resamples=max(1, bootstrap.resamples - 1), seed=bootstrap.seed)
    permuted = permutations.test(values[either], first[either], images[either])
    return pd.concat([wide.columns.to_frame(index=False), tested], axis=1).assign(
        comparison=comparison.name,
        clustered_low=low,
        clustered_high=high,
        p_student=t_test(one, two, equal_variances=True)["p"],
        p_permutation=permuted["p"],
        **hedges_g(one, two, bootstrap.level)[["g", "g_low", "g_high"]],
    )


def correlations(wide: pd.DataFrame, examples: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Confidence against each (method, metric) among correct predictions (figure 4).

    Columns: those of ``pearson``, ``clustered_low, clustered_high`` (bootstrap), ``rho, p_rho``
    (Spearman), ``p_bh`` over all rows, ``baseline``.
    """
    rows = examples.loc[wide.index]
    correct = is_correct(rows).to_numpy()
    values, x = wide.to_numpy(float)[correct], rows["confidence"].to_numpy(float)[correct]
    found = pearson(x, values, bootstrap.level)
    ranked = spearman(x, values, bootstrap.level)
    low, high = clustered_intervals(x, values, rows["image_id"].to_numpy()[correct], bootstrap)
    frame = pd.concat([wide.columns.to_frame(index=False), found], axis=1)
    return frame.assign(
        clustered_low=low,
        clustered_high=high,
        rho=ranked["r"],
        p_rho=ranked["p"],
        p_bh=benjamini_hochberg(found["p"].to_numpy()),
        baseline=frame["method"].isin(BASELINES),
    )
