"""Group means and medians, differences and correlations as tables."""

import pandas as pd

from pipeline.studies.agreement import Confidence
from pipeline.studies.base import Column, Table
from pipeline.studies.tang_yuan.groups import COMPARISONS, GROUPS, Comparison
from pipeline.studies.tang_yuan.published import CLAIMS, CONFIDENCE, HELP, TESTED

ALPHA = 0.05
INTERVAL = "95 % bootstrap intervals that resample whole images"
METHOD = Column(name="method", header="method", kind="text")
TARGET = Column(
    name="target",
    header="target",
    kind="text",
    help="The answer a map explains. Correct predictions have one map for both.",
)
MEASURE = Column(name="measure", header="metric", kind="text")


def thresholds(confidence: Confidence) -> str:
    """The limits in words, and the paper's where they are others."""
    text = f"low confidence: below {confidence.low:g}; high: above {confidence.high:g}"
    if confidence == CONFIDENCE:
        return f"{text}, as in the paper"
    return f"{text} (the paper: below {CONFIDENCE.low:g}, above {CONFIDENCE.high:g})"


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def _group_frame(summaries: pd.DataFrame, statistic: str) -> pd.DataFrame:
    keys = ["target", "method", "baseline", "group"]
    wide = summaries.pivot(index=keys, columns="metric")
    frame = pd.DataFrame(index=wide.index)
    for metric in TESTED:
        frame[metric] = wide[statistic, metric]
        frame[f"{metric}_low"], frame[f"{metric}_high"] = (
            wide["ci_low", metric],
            wide["ci_high", metric],
        )
        frame[f"{metric}_reason"] = wide["reason", metric]
    frame["n"], frame["n_degenerate"] = wide["n", "ty_rank"], wide["n_degenerate", "ty_rank"]
    return _in_order(frame.reset_index())


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Groups as the paper names them, and who is in each."""
    order = {group: i for i, group in enumerate(GROUPS)}
    frame = frame.sort_values(
        ["target", "baseline", "method", "group"],
        key=lambda column: column.map(order) if column.name == "group" else column,
        ignore_index=True,
    )
    frame.insert(4, "members", frame["group"].map(GROUPS))
    return frame


def group_table(summaries: pd.DataFrame, statistic: str, confidence: Confidence) -> Table:
    """``mean`` or ``median`` of every (target, method, group): a row, its metrics the columns."""
    bounds = statistic == "mean"
    return Table(
        name=f"groups_{statistic}s",
        title=f"{statistic.capitalize()}s by correctness and confidence",
        frame=_group_frame(summaries, statistic),
        columns=(
            TARGET,
            METHOD,
            Column(name="members", header="predictions", kind="text"),
            *(
                Column(
                    name=metric,
                    header=name,
                    low=f"{metric}_low" if bounds else None,
                    high=f"{metric}_high" if bounds else None,
                    reason=f"{metric}_reason",
                    help=HELP[metric],
                )
                for metric, name in TESTED.items()
            ),
            Column(name="n", header="n", kind="count", help="Examples in the group's figures."),
            Column(name="n_degenerate", header="degenerate", kind="count"),
        ),
        caption=f"{sentence(thresholds(confidence))} Middle: between. "
        + (f"Brackets: {INTERVAL}. " if bounds else "The file has the means' intervals too. ")
        + "n counts examples; F1 without empty overlaps has fewer. Rows marked are baselines.",
        marked="baseline",
        badged=True,
        folded=True,
    )


def difference_table(frame: pd.DataFrame, comparison: Comparison, confidence: Confidence) -> Table:
    """One comparison for every target, method and metric."""
    own = frame[frame["comparison"] == comparison.name].assign(
        measure=lambda rows: rows["metric"].map(TESTED),
        unpublished="the paper prints none here",
    )
    own = own.sort_values(["baseline", "target", "p_bh"], kind="stable", ignore_index=True)
    return Table(
        name=f"differences_{comparison.name}",
        title=comparison.title,
        frame=own,
        columns=(TARGET, METHOD, MEASURE, *_sizes(comparison), *_P_VALUES, *_counts(comparison)),
        caption=f"{sentence(thresholds(confidence))} {frame['p'].notna().sum():,} tests in the "
        "family that BH adjusts for. The t-tests take examples as independent; the brackets of the "
        "difference and the permutation test do not. Published p-values: guided Grad-CAM, about "
        "300 examples of VQA v1, uncorrected. Rows marked are baselines.",
        marked="baseline",
        folded=True,
    )


def _sizes(comparison: Comparison) -> tuple[Column, ...]:
    return (
        Column(
            name="difference",
            header="difference",
            low="clustered_low",
            high="clustered_high",
            reason="reason",
            help=f"Mean of {GROUPS[comparison.first]} minus mean of "
            f"{GROUPS[comparison.second]}; {INTERVAL}.",
        ),
        Column(
            name="g",
            header="Hedges' g",
            low="g_low",
            high="g_high",
            reason="reason",
            help="The difference in pooled standard deviations, corrected for small n; its "
            "interval takes examples as independent.",
        ),
    )


def _p_value(name: str, header: str, meaning: str) -> Column:
    return Column(name=name, header=header, kind="p_value", reason="reason", help=meaning)


_P_VALUES = (
    _p_value("p", "p Welch", "Welch's t-test, two-sided."),
    _p_value(
        "p_bh",
        "p BH",
        "Welch's p adjusted for the false discovery rate over the tests of all comparisons, "
        "targets, methods and metrics (Benjamini and Hochberg).",
    ),
    _p_value("p_student", "p Student", "Equal variances; the paper's."),
    _p_value(
        "p_permutation",
        "p permutation",
        "Random exchanges of whole images, whose questions resemble one another.",
    ),
    Column(name="p_published", header="p published", kind="p_value", reason="unpublished"),
)


def _counts(comparison: Comparison) -> tuple[Column, ...]:
    sides = (("n_first", comparison.first), ("n_second", comparison.second))
    return tuple(Column(name=n, header=f"n {GROUPS[side]}", kind="count") for n, side in sides)


def digest(frame: pd.DataFrame, confidence: Confidence) -> Table:
    """One row a (comparison, target): how much can be told at all."""
    methods = frame[~frame["baseline"]]
    rows = [
        _digest_row(comparison, target, own)
        for comparison in COMPARISONS
        for target, own in methods[methods["comparison"] == comparison.name].groupby("target")
    ]
    return Table(
        name="differences",
        title="Which differences between the groups can be told",
        frame=pd.DataFrame(rows),
        columns=(
            Column(name="comparison", header="comparison", kind="text"),
            TARGET,
            Column(name="n_first", header="n first", kind="count"),
            Column(name="n_second", header="n second", kind="count"),
            Column(
                name="tests",
                header="tests",
                kind="count",
                help="Methods times metrics that could be tested; baselines are not counted.",
            ),
            Column(name="above", header="above", kind="count", help="Told to be above 0."),
            Column(name="below", header="below", kind="count", help="Told to be below 0."),
            Column(
                name="unconfirmed",
                header="unconfirmed",
                kind="count",
                help="Told by the t-test but not by permuting whole images.",
            ),
            Column(name="g", header="median Hedges' g", reason="reason"),
            Column(name="paper", header="the paper", kind="text"),
        ),
        caption=f"{sentence(thresholds(confidence))} A difference is told where Welch's p after "
        f"Benjamini-Hochberg and the p of permuting whole images are both at most {ALPHA:g}.",
    )


def told(frame: pd.DataFrame) -> pd.Series:
    """Both the adjusted t-test and the permutation of whole images tell a difference."""
    return (frame["p_bh"] <= ALPHA) & (frame["p_permutation"] <= ALPHA)


def _digest_row(comparison: Comparison, target: str, own: pd.DataFrame) -> dict[str, object]:
    sure, tested = told(own), own["p"].notna()
    return {
        "comparison": comparison.title,
        "target": target,
        "n_first": int(own["n_first"].max()),
        "n_second": int(own["n_second"].max()),
        "tests": int(tested.sum()),
        "above": int((sure & (own["difference"] > 0)).sum()),
        "below": int((sure & (own["difference"] < 0)).sum()),
        "unconfirmed": int(((own["p_bh"] <= ALPHA) & ~sure).sum()),
        "g": own["g"].median(),
        "reason": None if tested.any() else own["reason"].iloc[0],
        "paper": CLAIMS.get(comparison.name, ""),
    }


def correlation_table(frame: pd.DataFrame) -> Table:
    """Figure 4's first column: confidence against each metric among correct predictions."""
    frame = frame.assign(measure=frame["metric"].map(TESTED))
    frame = frame.sort_values(["baseline", "method"], kind="stable", ignore_index=True)
    explain = {"reason": "reason"}
    return Table(
        name="correlations",
        title="Confidence and agreement among correct predictions",
        frame=frame,
        columns=(
            METHOD,
            MEASURE,
            Column(
                name="r",
                header="Pearson r",
                low="clustered_low",
                high="clustered_high",
                help=f"With {INTERVAL}; the file has Fisher's too.",
                **explain,
            ),
            Column(name="p", header="p", kind="p_value", help="Student's t, two-sided.", **explain),
            Column(
                name="p_bh",
                header="p BH",
                kind="p_value",
                help="Adjusted over all rows (Benjamini and Hochberg).",
                **explain,
            ),
            Column(name="rho", header="Spearman rho", **explain),
            Column(name="n", header="n", kind="count"),
        ),
        caption="n counts correct predictions whose map can be compared. The paper calls its "
        "correlations weak and negative. Rows marked are baselines.",
        marked="baseline",
        folded=True,
    )
