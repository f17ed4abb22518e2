"""Table 1: agreement of every method with human attention, read against baselines and people.

For every method and target: the mean rank correlation, its standard error and interval, how much
of the agreement among people that is, and whether it exceeds what maps reach that know nothing of
the question (the centre of the image) or of the image (another image's human map).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import BEST_AGREEMENT, Column, Evidence, Finding, Table
from pipeline.studies.goyal2016.published import TABLE_1
from pipeline.studies.goyal2016.section import Section, reasons
from pipeline.studies.summary import Bootstrap, effective_clusters
from pipeline.studies.targets import HUMAN_TARGET, LABELLED, TRUTH, per_target

METRIC = "rank_correlation"
FLOORS = ("center", "shuffled_human")
"""What a method must exceed to have said something."""
CEILING = "human"
CONSTANT = "every map is constant: no ranks to compare"
ONE = "one question has no standard error"
LEVEL = 0.05
"""False discovery rate of the comparisons with the floors."""


def section(evidence: Evidence) -> Section:
    """One table a target."""
    if not evidence.has_metric(METRIC):
        return Section(
            missing=(
                "Table 1 needs rank correlations with human maps and this run has none: "
                f"run `python run_pipeline.py evaluate {evidence.run.root}`. A dataset without "
                "human maps has no Table 1.",
            )
        )
    values = evidence.values[evidence.values["metric"] == METRIC]
    values = per_target(values, evidence.run.examples)
    names = {label: d.name for label, d in evidence.run.definitions.items()}
    tables, findings = [], []
    for target, own in values[values["target"] != HUMAN_TARGET].groupby("target"):
        frame = agreement_table(own, names, evidence.bootstrap)
        tables.append(_table(frame, str(target), evidence.bootstrap.level))
        findings += sentences(frame, str(target))
    return Section(tuple(tables), tuple(findings))


def agreement_table(
    own: pd.DataFrame, names: Mapping[str, str], bootstrap: Bootstrap
) -> pd.DataFrame:
    """One row a method, best mean first.

    ``own`` are one target's rows (``targets.of_target``), one a (method, question), with
    ``image_id`` and ``value``, NaN where no pair of maps could be compared. ``names`` tells a
    label's method, for the published figures. Intervals and p-values resample whole images; all
    columns share the resamples, so ratios and differences are paired.
    """
    wide = own.pivot(index=["image_id", "question_id"], columns="method", values="value")
    images = wide.index.get_level_values("image_id").to_numpy()
    means = bootstrap.resampled(wide.to_numpy(float), images)
    groups = own.groupby("method")["value"]
    table = groups.agg(mean="mean", standard_error="sem", n="count", size="size").loc[wide.columns]
    table["degenerate"] = table.pop("size") - table["n"]
    effective = effective_clusters(wide.to_numpy(float), images)
    table["ci_low"], table["ci_high"] = bootstrap.bounds(means, effective)
    table["reason"] = reasons({CONSTANT: table["n"] == 0})
    table["error_reason"] = reasons({CONSTANT: table["n"] == 0, ONE: table["n"] == 1})
    table = table.reset_index()
    table["baseline"] = table["method"].isin(BASELINES)
    table = pd.concat([table, _of_ceiling(table, means, effective, bootstrap)], axis=1)
    for floor in FLOORS:
        table = pd.concat([table, _over(wide, floor, bootstrap)], axis=1)
    table = _adjusted(table)
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    table = pd.concat([table, _published(table["method"], names)], axis=1)
    return table.sort_values(["mean", "method"], ascending=[False, True], ignore_index=True)


def _of_ceiling(
    table: pd.DataFrame, means: np.ndarray, effective: np.ndarray, bootstrap: Bootstrap
) -> pd.DataFrame:
    """Means as shares of the human mean, in per cent, with the interval of the ratio."""
    column = np.flatnonzero(table["method"] == CEILING)
    shares = pd.DataFrame(
        np.nan, index=table.index, columns=["ceiling", "ceiling_low", "ceiling_high"]
    )
    shares["ceiling_reason"] = _no_ceiling(table, column)
    if shares["ceiling_reason"].isna().all():
        human = int(column[0])
        shares["ceiling"] = 100 * table["mean"] / table["mean"][human]
        ratios = 100 * means / means[:, [human]]
        fewer = np.minimum(effective, effective[human])
        shares["ceiling_low"], shares["ceiling_high"] = bootstrap.bounds(ratios, fewer)
    return shares


def _no_ceiling(table: pd.DataFrame, column: np.ndarray) -> str | None:
    if not len(column) or not table["n"].iloc[column[0]]:
        return "no question has two human maps to compare with one another"
    if not table["ci_low"].iloc[column[0]] > 0:
        return "people agree too little, or on too few images, to be a ceiling"
    return None


def _over(wide: pd.DataFrame, floor: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Mean paired difference of every method to a baseline: interval, p and n.

    p is two-sided, normal, with the clustered bootstrap's standard error.
    """
    name = f"over_{floor}"
    columns = [name, f"{name}_low", f"{name}_high", f"{name}_p", f"{name}_n"]
    if floor not in wide:
        absent = pd.DataFrame(np.nan, index=range(wide.shape[1]), columns=columns)
        return absent.assign(**{f"{name}_reason": f"the run has no values of {floor}"})
    differences = wide.sub(wide[floor], axis=0).assign(**{floor: np.nan})
    images = wide.index.get_level_values("image_id").to_numpy()
    values = differences.to_numpy(float)
    means = bootstrap.resampled(values, images)
    low, high = bootstrap.bounds(means, effective_clusters(values, images))
    mean, n = differences.mean().to_numpy(), differences.count().to_numpy()
    figures = dict(zip(columns, [mean, low, high, _p_values(mean, means), n], strict=True))
    why = reasons({"the baseline itself": wide.columns == floor, "no question has both": n == 0})
    return pd.DataFrame({**figures, f"{name}_reason": why})


def _p_values(mean: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """NaN where the resamples do not differ, so that there is no standard error."""
    error = resampled.std(axis=0, ddof=1) if len(resampled) > 1 else np.full(len(mean), np.nan)
    size = np.divide(np.abs(mean), error, out=np.full(len(mean), np.nan), where=error > 0)
    return 2 * norm.sf(size)


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """Benjamini-Hochberg over all comparisons of methods with floors in this table."""
    table = table.copy()
    p = table[[f"over_{floor}_p" for floor in FLOORS]].to_numpy(float)
    tested = ~np.isnan(p) & ~table["baseline"].to_numpy()[:, None]
    q = np.full(p.shape, np.nan)
    if tested.any():
        q[tested] = multipletests(p[tested], alpha=LEVEL, method="fdr_bh")[1]
    for i, floor in enumerate(FLOORS):
        table[f"over_{floor}_q"] = q[:, i]
    return table


def _verdict(row: Mapping) -> str:
    if row["baseline"]:
        return ""
    tested = [floor for floor in FLOORS if np.isfinite(row[f"over_{floor}_q"])]
    if len(tested) < len(FLOORS):
        return "not decided: too few maps"
    beaten = [f for f in tested if row[f"over_{f}"] > 0 and row[f"over_{f}_q"] < LEVEL]
    if not beaten:
        return "beats neither"
    return "beats both" if len(beaten) == len(FLOORS) else f"beats {_said(beaten[0])} only"


def _said(method: str) -> str:
    """A method's name in a sentence."""
    return {"center": "the centre", "shuffled_human": "shuffled human maps"}.get(method, method)


def _published(methods: pd.Series, names: Mapping[str, str]) -> pd.DataFrame:
    """A published figure stands beside every label of its method."""
    figures = [TABLE_1.get(names.get(label, label)) for label in methods]
    return pd.DataFrame(
        {
            "published": ["" if figure is None else str(figure) for figure in figures],
            "published_mean": [np.nan if figure is None else figure.mean for figure in figures],
            "published_error": [
                np.nan if figure is None or figure.error is None else figure.error
                for figure in figures
            ],
        }
    )


COLUMNS = (
    Column(name="method", header="method", kind="text"),
    Column(
        name="mean",
        header="rank correlation",
        low="ci_low",
        high="ci_high",
        reason="reason",
        help="Spearman's rho of |map| with a human map, both scaled to 14 x 14 (area averages "
        "down, bilinear up), ties sharing their mean rank; mean over annotators, then questions.",
    ),
    Column(
        name="standard_error",
        header="s.e.",
        reason="error_reason",
        help="Standard error of independent questions, as the paper prints it.",
    ),
    Column(name="n", header="n", kind="count", help="Questions in the mean."),
    Column(
        name="degenerate",
        header="degenerate",
        kind="count",
        help="Questions whose map, or every human map, is constant: they have no rank "
        "correlation and are in no mean.",
    ),
    Column(
        name="ceiling",
        header="% of human",
        low="ceiling_low",
        high="ceiling_high",
        reason="ceiling_reason",
        help="The mean as a percentage of the mean agreement between two annotators; the "
        "interval is that of the ratio.",
    ),
    Column(
        name="over_center",
        header="over centre",
        low="over_center_low",
        high="over_center_high",
        reason="over_center_reason",
        help="Mean difference to a centred Gaussian on the same questions.",
    ),
    Column(
        name="over_shuffled_human",
        header="over shuffled human",
        low="over_shuffled_human_low",
        high="over_shuffled_human_high",
        reason="over_shuffled_human_reason",
        help="Mean difference, on the same questions, to a human map of another image.",
    ),
    Column(
        name="verdict",
        header="against baselines",
        kind="text",
        help="Which of the two it exceeds with a Benjamini-Hochberg adjusted p below 0.05; a "
        "method that exceeds neither has said nothing.",
    ),
    Column(
        name="published",
        header="published",
        kind="text",
        help="Goyal et al. 2016, Table 1: mean and standard error, 1374 questions of VQA-HAT's "
        "validation part, Deeper LSTM + norm I.",
    ),
)


def _table(frame: pd.DataFrame, target: str, level: float) -> Table:
    return Table(
        name=f"table1_{target}",
        title=f"Agreement with human attention, target: {target} (Table 1)",
        frame=frame,
        columns=COLUMNS,
        caption=f"{LABELLED if target == TRUTH else ''}"
        "Rank correlation of importance maps with human attention. n counts questions. "
        f"Brackets: {100 * level:g} % percentile bootstrap over images (none for fewer than two); "
        "differences and ratios are paired by question. Baselines and people are set apart; "
        "published figures are of another model and dataset unless this run is theirs.",
        marked="baseline",
        badged=True,
    )


def sentences(frame: pd.DataFrame, target: str) -> list[Finding]:
    """The best method, occlusion against the centre, and methods that say nothing."""
    methods = frame[~frame["baseline"] & frame["mean"].notna()].to_dict("records")
    if not methods:
        return []
    source, weight = f"table1_{target}", 1.0 if target == "predicted" else 0.6
    found = [Finding(_best(methods[0], target), 0.9 * weight, source, BEST_AGREEMENT)]
    for row in (r for r in methods if r["method"] == "occlusion"):
        if np.isfinite(row["over_center_low"]):
            found.append(Finding(_against_center(row, frame), 0.8 * weight, source))
    silent = [row["method"] for row in methods if row["verdict"] == "beats neither"]
    if silent:
        found.append(Finding(_silent(silent, len(methods), target), 0.7 * weight, source))
    return found


def _best(row: Mapping, target: str) -> str:
    ceiling = (
        f", {row['ceiling']:.0f} % of the agreement between two people"
        if np.isfinite(row["ceiling"])
        else ""
    )
    return (
        f"Of the methods, {row['method']} agrees with people most (target: {target}): rank "
        f"correlation {row['mean']:.2f}{_interval(row, 'ci')}{ceiling}, n = {row['n']:,}."
    )


def _against_center(row: Mapping, frame: pd.DataFrame) -> str:
    low, high = row["over_center_low"], row["over_center_high"]
    agrees = (
        "agrees with people more than the centre baseline does"
        if low > 0
        else "agrees with people less than the centre baseline does"
        if high < 0
        else "cannot be told from the centre baseline by its agreement with people"
    )
    center = frame.loc[frame["method"] == "center", "mean"].iloc[0]
    return (
        f"{row['method'].capitalize()} {agrees}: {row['mean']:.2f} against {center:.2f}, "
        f"difference {row['over_center']:.2f}{_interval(row, 'over_center')}."
    )


def _silent(methods: list[str], of: int, target: str) -> str:
    verb = "does" if len(methods) == 1 else "do"
    return (
        f"{len(methods)} of {of} methods {verb} not exceed what the centre, or another image's "
        f"human map, reaches in agreement with people (target: {target}): {', '.join(methods)}."
    )


def _interval(row: Mapping, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
