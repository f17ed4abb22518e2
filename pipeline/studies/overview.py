"""What a run holds at a glance: how well the model answers, how many maps there are, and how well
they agree with human attention, all methods and baselines side by side."""

import pandas as pd
from matplotlib.figure import Figure

from pipeline.studies.accuracy import OVERALL, accuracy_table
from pipeline.studies.agreement import BASELINES, agreement_of, crossings_of
from pipeline.studies.base import (
    BEST_AGREEMENT,
    Column,
    Evidence,
    Finding,
    Panels,
    Part,
    Picture,
    Shown,
    Study,
    Table,
)
from pipeline.studies.means import leads
from pipeline.studies.targets import HUMAN_TARGET, LABELLED, TRUTH, per_target

MAIN = ("rank_correlation", "ty_iou", "ty_f1")
"""Metrics that have columns of their own; the first there is, is the one that ranks."""
HELP = {
    "rank_correlation": "Spearman's rho of |map| and human map on 14 x 14 cells "
    "(Goyal et al. 2016); 1 is the same order, 0 none.",
    "ty_iou": "Intersection over union of the strongest tenth of the pixels (Tang and Yuan).",
    "ty_f1": "F1 of the strongest tenth of the pixels, 0 where they do not meet (Tang and Yuan).",
}
GROUPS = {
    "all": "all",
    "correct": "right",
    "wrong": "wrong",
    "low": "unsure",
    "high": "sure",
    "correct_low": "right, unsure",
    "correct_high": "right, sure",
    "wrong_low": "wrong, unsure",
    "wrong_high": "wrong, sure",
}
SINGLE = ("correct", "wrong", "low", "high")
NO_VALUE = "no map of this method could be compared: all are degenerate"
SHOWN = 4


def overview(evidence: Evidence) -> Study:
    """Accuracy, maps, agreement with human attention and its crossings with the outcome."""
    accuracy = accuracy_table(evidence.run.examples, evidence.bootstrap)
    parts: list[Part] = [_accuracy(accuracy), _maps(evidence)]
    findings = [_accurate(accuracy)] if accuracy["accuracy"].notna().any() else []
    missing: tuple[str, ...] = ()
    if evidence.human_values["value"].notna().any():
        table = agreement_of(evidence.human_values, evidence.run.examples, evidence.bootstrap)
        parts += _agreement(table, evidence)
        findings += _findings(table, evidence)
    else:
        missing = (
            "No map was compared with human attention: the dataset has no human maps, or none "
            "that could be compared. Give the recipe's dataset its maps (`hat` of vqa), make the "
            "run anew and evaluate it.",
        )
    return Study(
        name="overview",
        title="Overview",
        source="Goyal et al. 2016, Table 1; Tang and Yuan, figures 2 and 7; VQA accuracy: "
        "Antol et al. 2015",
        parts=tuple(parts),
        findings=tuple(findings),
        missing=missing,
    )


# --- accuracy and maps ------------------------------------------------------------------------


def _accuracy(table: pd.DataFrame) -> Table:
    why = "no labelled answer in this group"
    frame = table.assign(reason=why_missing(table["accuracy"], why))
    return Table(
        name="accuracy",
        title="How well the model answers",
        frame=frame,
        columns=(
            Column(name="answer_type", header="answer type", kind="text"),
            Column(
                name="accuracy",
                header="VQA accuracy",
                kind="percent",
                low="ci_low",
                high="ci_high",
                reason="reason",
                help="Official soft accuracy against all annotators' answers, the mean over "
                "questions.",
            ),
            Column(
                name="correct",
                header="equal to the label",
                kind="percent",
                reason="reason",
                help="Predictions that equal the most common human answer.",
            ),
            Column(name="n", header="n", kind="count", help="Questions in the mean."),
            Column(
                name="n_unscored",
                header="unscored",
                kind="count",
                help="Questions without an accuracy: unlabelled or failed.",
            ),
        ),
        caption="n counts questions. Brackets: 95% percentile bootstrap intervals that resample "
        "whole images.",
    )


def _maps(evidence: Evidence) -> Table:
    columns = ["method", "target", "status"]
    rows = pd.concat([evidence.run.columns(table, columns) for table in ("maps", "words")])
    rows = rows.astype("str")
    counts = rows.groupby(["method", "target"])["status"].value_counts().unstack(fill_value=0)
    frame = counts.reindex(columns=["ok", "degenerate", "failed"], fill_value=0).reset_index()
    frame.columns.name = None
    kinds = {label: d.kind for label, d in evidence.run.definitions.items()}
    frame.insert(1, "explains", frame["method"].map(kinds).map({"image": "pixels"}).fillna("words"))
    return Table(
        name="maps",
        title="What was explained",
        frame=frame.assign(baseline=frame["method"].isin(BASELINES)),
        columns=(
            Column(name="method", header="method", kind="text"),
            Column(name="explains", header="explains", kind="text"),
            Column(
                name="target",
                header="target",
                kind="text",
                help="The answer explained: the model's own, or the labelled one where it is "
                "another the model can give.",
            ),
            Column(name="ok", header="maps", kind="count"),
            Column(
                name="degenerate",
                header="degenerate",
                kind="count",
                help="All values equal: such a map ranks nothing, is counted and enters no mean.",
            ),
            Column(name="failed", header="failed", kind="count"),
        ),
        caption="Counts of maps, one a question and target.",
        marked="baseline",
        badged=True,
    )


def _accurate(table: pd.DataFrame) -> Finding:
    row = table[table["answer_type"] == OVERALL].iloc[0]
    known = pd.notna(row["ci_low"])
    interval = f"[{row['ci_low']:.1%}, {row['ci_high']:.1%}] " if known else ""
    return Finding(
        sentence=f"The model's VQA accuracy is {row['accuracy']:.1%} {interval}"
        f"over {row['n']:,} question{'' if row['n'] == 1 else 's'}"
        f"{'' if known else ' of one image, too few for an interval'}.",
        weight=0.3,
        source="accuracy",
    )


# --- agreement --------------------------------------------------------------------------------


def main_metrics(table: pd.DataFrame) -> list[str]:
    """The metrics with columns of their own, of those that a table of agreement has."""
    names = list(dict.fromkeys(table["metric"]))
    return [m for m in MAIN if m in names] or names[:1]


def _agreement(table: pd.DataFrame, evidence: Evidence) -> list[Part]:
    shown = main_metrics(table)
    targets = list(dict.fromkeys(table["target"]))
    parts: list[Part] = [_side_by_side(table, target, shown) for target in targets]
    parts.append(_forest(table, targets[0], shown[0]))
    parts.append(_crossings(evidence, targets[0], shown[0]))
    parts.append(_every_metric(table))
    parts.append(_extremes(evidence, targets[0], shown[0]))
    return parts


def _side_by_side(table: pd.DataFrame, target: str, metrics: list[str]) -> Table:
    """One row a method, the metrics beside one another, best first by the first."""
    own = table[table["target"] == target]
    first = own[own["metric"] == metrics[0]].set_index("method")
    wide = first[["n_used", "n_degenerate", "baseline"]].reset_index()
    for metric in metrics:
        block = own[own["metric"] == metric].set_index("method").reindex(wide["method"])
        for name, suffix in (("mean", ""), ("ci_low", "_low"), ("ci_high", "_high")):
            wide[metric + suffix] = block[name].to_numpy()
        wide[f"{metric}_reason"] = why_missing(wide[metric], NO_VALUE)
    return Table(
        name=f"agreement_{target}",
        title=f"Agreement with human attention, target: {_target(target)}",
        frame=wide,
        columns=(
            Column(name="method", header="method", kind="text"),
            *(_metric_column(metric) for metric in metrics),
            Column(name="n_used", header="n", kind="count", help=f"Questions, for {metrics[0]}."),
            Column(
                name="n_degenerate",
                header="degenerate",
                kind="count",
                help="Questions whose map or human map has only equal values.",
            ),
        ),
        caption=f"{LABELLED if target == TRUTH else ''}"
        "Means over questions, each question the mean over its annotators; brackets: 95% "
        "percentile bootstrap intervals that resample whole images. Baselines in italics; human: "
        "annotators against one another.",
        marked="baseline",
        badged=True,
    )


def _metric_column(metric: str) -> Column:
    return Column(
        name=metric,
        header=metric.replace("_", " "),
        low=f"{metric}_low",
        high=f"{metric}_high",
        reason=f"{metric}_reason",
        help=HELP.get(metric, ""),
    )


def _target(target: str) -> str:
    names = {"predicted": "the predicted answer", "truth": "the labelled answer"}
    return names.get(target, target)


def _every_metric(table: pd.DataFrame) -> Table:
    reasons = why_missing(table["mean"], NO_VALUE)
    return Table(
        name="agreement_every_metric",
        title="Every metric and target",
        frame=table.assign(reason=reasons),
        columns=(
            Column(name="method", header="method", kind="text"),
            Column(name="target", header="target", kind="text"),
            Column(name="metric", header="metric", kind="text"),
            Column(name="mean", header="mean", low="ci_low", high="ci_high", reason="reason"),
            Column(
                name="standard_error",
                header="s. e.",
                reason="reason",
                help="Standard error of independent questions, as the papers print it.",
            ),
            Column(name="median", header="median", reason="reason"),
            Column(name="n_used", header="n", kind="count"),
            Column(name="n_degenerate", header="degenerate", kind="count"),
        ),
        caption="As above, for all metrics of the run.",
        marked="baseline",
        badged=True,
        folded=True,
    )


def _crossings(evidence: Evidence, target: str, metric: str) -> Table:
    values = evidence.values
    values = values[(values["metric"] == metric) & values["target"].isin([target, HUMAN_TARGET])]
    table = crossings_of(values, evidence.run.examples, evidence.confidence, evidence.bootstrap)
    counts = table.groupby("group")["n_used"].max()
    groups = [group for group in GROUPS if group in counts]
    names = {"mean": "", "ci_low": "_from", "ci_high": "_to"}
    wide = table.pivot(index="method", columns="group", values=list(names))
    wide.columns = pd.Index([f"{group}{names[name]}" for name, group in wide.columns])
    frame = wide.sort_values(groups[0], ascending=False).reset_index()
    for group in groups:
        frame[f"{group}_reason"] = why_missing(frame[group], NO_VALUE)
    low, high = evidence.confidence.low, evidence.confidence.high
    return Table(
        name="crossings",
        title=f"{_words(metric).capitalize()} by outcome and confidence",
        frame=frame.assign(baseline=frame["method"].isin(BASELINES)),
        columns=(
            Column(name="method", header="method", kind="text"),
            *(_group_column(group, counts[group]) for group in groups if group in SINGLE),
        ),
        caption=f"Means over the questions of a group, target: {_target(target)}; in brackets "
        f"after its name, how many. Unsure: probability of the answer below {low:g}, sure: above "
        f"{high:g}. Brackets: 95% percentile bootstrap intervals that resample whole images. The "
        "files have the groups of both together, such as wrong and sure.",
        marked="baseline",
    )


def _group_column(group: str, count: int) -> Column:
    return Column(
        name=group,
        header=f"{GROUPS[group]} ({count:,})",
        low=f"{group}_from",
        high=f"{group}_to",
        reason=f"{group}_reason",
    )


def _forest(table: pd.DataFrame, target: str, metric: str) -> Picture:
    rows = table[(table["target"] == target) & (table["metric"] == metric)]
    rows = rows[rows["mean"].notna()]
    figure = Figure(figsize=(6.4, 0.6 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for y, row in enumerate(rows[::-1].to_dict("records")):
        colour = "#8a8f98" if row["baseline"] else "#0b57a4"
        axis.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, linewidth=2)
        axis.plot(row["mean"], y, "o", color=colour, markersize=5)
    axis.set_yticks(range(len(rows)), rows["method"][::-1].str.replace("_", " "))
    axis.axvline(0, color="#8a8f98", linewidth=0.8, zorder=0)
    axis.set_xlabel(metric.replace("_", " "))
    axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    return Picture(
        name="agreement",
        title="Agreement with human attention, methods and baselines",
        figure=figure,
        data=rows[["method", "mean", "ci_low", "ci_high", "n_used", "n_degenerate", "baseline"]],
        caption=f"Mean {metric.replace('_', ' ')} over questions and its 95% interval (bootstrap "
        f"over images), target: {_target(target)}. Grey: baselines and, as the ceiling, the "
        "annotators against one another.",
    )


def _extremes(evidence: Evidence, target: str, metric: str) -> Panels:
    """Where the methods together agree most and least with people."""
    values = evidence.values
    own = (values["metric"] == metric) & (values["target"] == target)
    methods = ~values["method"].isin(BASELINES)
    means = values[own & methods].groupby("question_id")["value"].mean().dropna()
    order = means.sort_index().sort_values(kind="stable")
    name = metric.replace("_", " ")
    ends = [("least", order.head(SHOWN)), ("most", order.iloc[SHOWN:].tail(SHOWN)[::-1])]
    return Panels(
        name="extremes",
        title="Where the maps agree least and most with people",
        rule=f"The {SHOWN} examples with the smallest and the {SHOWN} with the largest mean {name} "
        f"over all methods but the baselines, target: {_target(target)}.",
        examples=tuple(
            Shown(question_id=int(question), note=f"{word} agreement: mean {name} {value:.2f}")
            for word, end in ends
            for question, value in end.items()
        ),
    )


def _findings(table: pd.DataFrame, evidence: Evidence) -> list[Finding]:
    target, metric = table["target"].iloc[0], main_metrics(table)[0]
    rows = table[(table["target"] == target) & (table["metric"] == metric)].set_index("method")
    rows = rows[rows["mean"].notna()]
    methods = rows[~rows["baseline"]]
    if not len(methods):
        return []
    source = f"agreement_{target}"
    findings = [Finding(_best(rows, methods, metric), 0.6, source, BEST_AGREEMENT)]
    if "center" in rows.index:
        below = _not_above_centre(evidence, target, metric, methods.index)
        sentence = _against_centre(rows.loc["center"], below, len(methods), metric)
        findings.append(Finding(sentence=sentence, weight=0.5, source=source))
    return findings


def _best(rows: pd.DataFrame, methods: pd.DataFrame, metric: str) -> str:
    name, best = methods.index[0], methods.iloc[0]
    text = (
        f"Of {len(methods)} methods {name} agrees best with human attention: {_words(metric)} "
        f"{_mean(best)}, n = {best['n_used']:,}"
    )
    if "human" in rows.index and rows.loc["human", "mean"] > 0:
        human = rows.loc["human", "mean"]
        text += f"; people agree with one another at {human:.3f}"
    return text + "."


def _mean(row: pd.Series) -> str:
    interval = f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" if pd.notna(row["ci_low"]) else ""
    return f"{row['mean']:.3f}{interval}"


def _not_above_centre(evidence: Evidence, target: str, metric: str, methods: pd.Index) -> list[str]:
    """Methods whose lead over the centre, on the same questions, may be none."""
    values = per_target(evidence.human_values, evidence.run.examples)
    own = values[(values["target"] == target) & (values["metric"] == metric)]
    low = leads(own, "center", evidence.bootstrap)["low"]
    return [str(method) for method in methods if not low[method] > 0]


def _against_centre(centre: pd.Series, below: list[str], count: int, metric: str) -> str:
    known = f"the centre of the image ({_words(metric)} {centre['mean']:.3f})"
    if not below:
        return f"All {count} methods agree better with people than {known} does."
    return (
        f"{len(below)} of {count} methods are not shown to exceed {known}, which knows nothing of "
        f"the model: {', '.join(below)}."
    )


def why_missing(values: pd.Series, why: str) -> list[str]:
    """A column of reasons: ``why`` where there is no value, else nothing."""
    return [why if missing else "" for missing in values.isna()]


def _words(metric: str) -> str:
    return metric.replace("_", " ")
