"""Faithfulness: do the model's answers hang on what a map calls important?"""

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib.figure import Figure

from pipeline.studies.base import (
    Column,
    Evidence,
    Finding,
    Panels,
    Part,
    Picture,
    Shown,
    Study,
    Table,
    Text,
)
from pipeline.studies.means import (
    line_style,
    listed,
    main_target,
    mean_column,
    not_computed,
    told,
    wide_means,
)
from pipeline.studies.targets import per_target

CURVES = (
    *("deletion_auc", "deletion_random_auc", "deletion_gain"),
    *("insertion_auc", "insertion_random_auc", "insertion_gain"),
)
LOCALISED = ("pointing_game", "energy_inside")
OF_MAPS = ("sparsity", "max_sensitivity")
SHOWN = 3
SOURCE = (
    "Petsiuk, Das and Saenko 2018 (deletion, insertion); Zhang et al. 2018 (pointing game); Wang "
    "et al. 2020 (energy); Chalasani et al. 2020 (sparsity); Yeh et al. 2019 (max-sensitivity)"
)


def faithfulness(evidence: Evidence) -> Study:
    """Curves against random order, localisation, sparsity and stability of each method's maps."""
    values = evidence.values
    target = main_target(values)
    parts: list[Part] = []
    findings: list[Finding] = []
    missing: list[str] = []
    if evidence.has_metric("deletion_gain"):
        table = curve_table(evidence)
        parts += [_text(), table, *_pictures(evidence, target), *_panels(evidence, target)]
        findings += _findings(table.frame[table.frame["target"] == target])
    else:
        missing.append(not_computed(evidence, "Deletion and insertion", "deletion_insertion"))
    if evidence.has_metric("pointing_game"):
        parts.append(_localisation(evidence, target))
    else:
        missing.append(
            not_computed(evidence, "Localisation", "localisation")
            + " It needs human maps or exact masks."
        )
    if any(evidence.has_metric(name) for name in OF_MAPS):
        parts.append(_properties(evidence, target))
    for name, metric in (("Sparsity", "sparsity"), ("Max-sensitivity", "max_sensitivity")):
        if not evidence.has_metric(metric):
            missing.append(not_computed(evidence, name, metric))
    return Study(
        name="faithfulness",
        title="Faithfulness",
        source=SOURCE,
        parts=tuple(parts),
        findings=tuple(findings),
        missing=tuple(missing),
    )


def _text() -> Text:
    return Text(
        name="faithfulness_reading",
        title="How to read it",
        paragraphs=(
            "Deletion paints over the cells that a map calls important, the most important first, "
            "and watches the probability of the answer; insertion brings them back into an image "
            "without them. The area under a deletion curve should be small, that under an "
            "insertion curve large. How small or large is possible hangs on the image and the "
            "model, so every area is read against the same image's cells in random order: a gain "
            "of 0 is what a map of noise gets, and only an interval above 0 says that the map "
            "knows more.",
            "Random order scatters its cells, the cells of a coarse map come in patches: the gain "
            "of the `random` baseline, a coarse map of noise, tells what that alone is worth.",
            "Of a model of regions it is regions that are taken away and brought back, by their "
            "features; of an answer that a model writes the curves are of the log-probability.",
            "Painted images are not like those the model was trained on. A gain says that the "
            "model reacts to these cells, not that a person would call them the evidence.",
        ),
    )


def curve_table(evidence: Evidence) -> Table:
    """Areas and gains of every method and target."""
    own = evidence.values[evidence.values["metric"].isin(CURVES)]
    values = per_target(own, evidence.run.examples)
    frame = wide_means(values, CURVES, evidence, by=("target", "method"))
    frame["gain"] = frame[["deletion_gain", "insertion_gain"]].mean(axis=1)
    frame = frame.sort_values(["target", "gain"], ascending=[True, False], ignore_index=True)
    return Table(
        name="deletion_insertion",
        title="Deletion and insertion",
        frame=frame,
        columns=(
            Column(name="method", header="method", kind="text"),
            Column(name="target", header="target", kind="text"),
            mean_column(
                "deletion_auc", "deletion", "Area under the deletion curve; less is better."
            ),
            mean_column(
                "deletion_gain", "deletion gain", "Area of random order less that of the map."
            ),
            mean_column("insertion_auc", "insertion", "Area under the curve; more is better."),
            mean_column(
                "insertion_gain", "insertion gain", "Area of the map less that of random order."
            ),
            Column(name="deletion_gain_n", header="n", kind="count", help="Questions."),
            Column(name="deletion_gain_degenerate", header="degenerate", kind="count"),
        ),
        caption=f"Means over questions; bootstrap intervals at {evidence.bootstrap.level:.0%}, "
        f"clustered by image. {_conventions(evidence, 'deletion_auc')}. Best mean gain first.",
        marked="baseline",
        badged=True,
    )


def _conventions(evidence: Evidence, metric: str) -> str:
    rows = evidence.run.table("metrics").head(1, filter=pc.field("metric") == metric)
    return str(rows["conventions"][0]) if len(rows) else ""


# --- curves ----------------------------------------------------------------------------------


def _pictures(evidence: Evidence, target: str) -> list[Picture]:
    found = []
    for name, better in (("deletion", "lower"), ("insertion", "higher")):
        data = mean_curves(evidence, name, target)
        if len(data):
            found.append(_picture(name, better, target, data))
    return found


def mean_curves(evidence: Evidence, name: str, target: str) -> pd.DataFrame:
    """``method, fraction, mean, low, high, n``: the mean score at each point, a method a
    block; ``random order`` is what chance gives on the same questions."""
    blocks = []
    for metric, shown in ((f"{name}_auc", None), (f"{name}_random_auc", "random order")):
        where = (pc.field("metric") == metric) & (pc.field("target") == target)
        columns = ["question_id", "image_id", "method", "points", "status"]
        rows = evidence.run.table("metrics").to_table(columns=columns, filter=where).to_pandas()
        rows = rows[(rows["status"] == "ok") & rows["points"].notna()]
        if shown:
            rows = rows.drop_duplicates("question_id").assign(method=shown)
        for method, own in rows.groupby("method"):
            blocks.append(_mean_curve(evidence, str(method), own))
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()


def _mean_curve(evidence: Evidence, method: str, rows: pd.DataFrame) -> pd.DataFrame:
    points = np.stack(rows["points"].to_list())
    low, high = evidence.bootstrap.intervals(points, rows["image_id"].to_numpy())
    return pd.DataFrame(
        {
            "method": method,
            "fraction": np.linspace(0, 1, points.shape[1]),
            "mean": points.mean(axis=0),
            "low": low,
            "high": high,
            "n": len(points),
        }
    )


def _picture(name: str, better: str, target: str, data: pd.DataFrame) -> Picture:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (method, own) in enumerate(data.groupby("method", sort=False)):
        chance = method == "random order"
        style = {"color": "black", "linewidth": 2.5} if chance else line_style(i)
        axes.plot(own["fraction"], own["mean"], label=str(method), **style)
        if chance and own["low"].notna().all():
            axes.fill_between(
                own["fraction"], own["low"], own["high"], color="black", alpha=0.15, linewidth=0
            )
    doing = "painted over" if name == "deletion" else "brought back"
    axes.set(xlabel=f"part of the image {doing}", ylabel="probability of the answer")
    if (data["mean"] < 0).any():  # of a text that was written
        axes.set(ylabel="log-probability of the answer")
    else:
        axes.set(ylim=(0, 1))
    axes.legend(fontsize="small", ncols=2)
    return Picture(
        name=f"{name}_curves",
        title=f"{name.capitalize()} curves",
        figure=figure,
        data=data,
        caption=f"Mean over questions, target: {target}; {better} is better. The band is the "
        "interval of the random order; those of the methods are in the data.",
    )


# --- examples --------------------------------------------------------------------------------


def _panels(evidence: Evidence, target: str) -> list[Panels]:
    """Where the method that gains most by deletion gains most, and where least."""
    values = evidence.values
    own = values[(values["metric"] == "deletion_gain") & (values["target"] == target)]
    own = own[~own["method"].isin(["random", "center"])].dropna(subset="value")
    if own.empty:
        return []
    method = own.groupby("method")["value"].mean().idxmax()
    ordered = own[own["method"] == method].sort_values(["value", "question_id"])
    ends = {"largest": ordered[::-1].head(SHOWN), "smallest": ordered.head(SHOWN)}
    shown = [
        Shown(question_id=int(row.question_id), note=f"{method}: deletion gain {row.value:.2f}")
        for rows in ends.values()
        for row in rows.itertuples()
    ]
    return [
        Panels(
            name="deletion_extremes",
            title="Where deletion follows the map, and where it does not",
            rule=f"The {SHOWN} largest and the {SHOWN} smallest deletion gains of {method}, the "
            f"method with the largest mean (target: {target}; of equal ones the lower question id "
            "among the smallest, the higher among the largest).",
            examples=tuple({example.question_id: example for example in shown}.values()),
        )
    ]


# --- other tables ----------------------------------------------------------------------------


def _localisation(evidence: Evidence, target: str) -> Table:
    values = evidence.values[evidence.values["target"].isin([target, "human"])]
    frame = wide_means(values, LOCALISED, evidence)
    frame = frame.sort_values("energy_inside", ascending=False, ignore_index=True)
    return Table(
        name="localisation",
        title="Where people look",
        frame=frame,
        columns=(
            Column(name="method", header="method", kind="text"),
            mean_column(
                "pointing_game", "pointing game", "How often the map's maximum is inside the mask."
            ),
            mean_column("energy_inside", "energy inside", "Share of the map's mass in the mask."),
            Column(name="energy_inside_n", header="n", kind="count", help="Questions."),
            Column(name="energy_inside_degenerate", header="degenerate", kind="count"),
        ),
        caption=f"Target: {target}. {_conventions(evidence, 'energy_inside')}. `random` is the "
        "share of the image that the mask covers; `human` scores annotators against one another. "
        f"Bootstrap intervals at {evidence.bootstrap.level:.0%}, clustered by image.",
        marked="baseline",
        badged=True,
    )


def _properties(evidence: Evidence, target: str) -> Table:
    values = evidence.values[evidence.values["target"] == target]
    frame = wide_means(values, OF_MAPS, evidence)
    return Table(
        name="map_properties",
        title="Sparsity and stability",
        frame=frame.sort_values("sparsity", ascending=False, ignore_index=True),
        columns=(
            Column(name="method", header="method", kind="text"),
            mean_column("sparsity", "sparsity", "Gini index of the magnitudes, 0 to 1."),
            Column(name="sparsity_n", header="n", kind="count"),
            mean_column(
                "max_sensitivity",
                "max-sensitivity",
                "Largest relative change of the map under small random changes of the image.",
            ),
            Column(name="max_sensitivity_n", header="n", kind="count"),
        ),
        caption=f"Target: {target}. Sparsity: {_conventions(evidence, 'sparsity')}. "
        f"Max-sensitivity: {_conventions(evidence, 'max_sensitivity') or 'not computed'}. Neither "
        "is good or bad in itself: a map of one fixed cell is sparse and stable.",
        marked="baseline",
    )


# --- findings --------------------------------------------------------------------------------


def _findings(frame: pd.DataFrame) -> list[Finding]:
    methods = frame[~frame["baseline"]].dropna(subset=["deletion_gain"])
    if methods.empty:
        return []
    best = methods.sort_values(["deletion_gain", "method"], ascending=[False, True]).iloc[0]
    gain = told(best["deletion_gain"], best["deletion_gain_low"], best["deletion_gain_high"])
    findings = [
        Finding(
            f"Painting over what {best['method']} calls important lowers the answer's probability "
            f"most: its deletion gain over random order is {gain} (n = {best['deletion_gain_n']}).",
            0.7,
            "deletion_insertion",
        )
    ]
    idle = methods[~(methods["deletion_gain_low"] > 0) & ~(methods["insertion_gain_low"] > 0)]
    if len(idle):
        findings.append(
            Finding(
                f"{listed(idle['method'].tolist())}: neither deletion nor insertion beats random "
                "order, so these data do not show that the model uses the cells that "
                f"{'these maps call' if len(idle) > 1 else 'this map calls'} important.",
                0.75,
                "deletion_insertion",
            )
        )
    centre = frame[frame["method"] == "center"]
    if len(centre) and centre["deletion_gain"].iloc[0] >= best["deletion_gain"]:
        findings.append(
            Finding(
                "A fixed blob in the centre gains as much by deletion as the best method "
                f"({centre['deletion_gain'].iloc[0]:.2f}).",
                0.8,
                "deletion_insertion",
            )
        )
    return findings
