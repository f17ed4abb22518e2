"""The paper's figures: bars and dots by group, box plots, histograms, correlations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipeline.studies.agreement import Confidence
from pipeline.studies.base import Picture
from pipeline.studies.tang_yuan.groups import COMPARISONS, GROUPS, masks
from pipeline.studies.tang_yuan.published import MEASURES
from pipeline.studies.tang_yuan.tables import sentence, thresholds

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, told apart by all common kinds of colour vision."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CROSSED = tuple(group for group in GROUPS if "_" in group)
BINS = 24


def colour(group: str) -> tuple[float, float, float]:
    """Blue for correct, orange for wrong, gray for both; the surer, the darker."""
    base = {"correct": COLOURS[0], "wrong": COLOURS[1]}.get(group.split("_")[0], "#555555")
    light = {"low": 0.55, "middle": 0.3}.get(group.split("_")[-1], 0.0)
    red, green, blue = (channel + (1 - channel) * light for channel in to_rgb(base))
    return red, green, blue


def median_bars(
    summaries: pd.DataFrame, confidences: pd.DataFrame, method: str, confidence: Confidence
) -> Picture:
    """Figure 7: medians of one method by group; ``confidences`` has group and median."""
    own = summaries[(summaries["method"] == method) & summaries["metric"].isin(MEASURES)]
    data = own[["group", "metric", "n", "median", "reason"]]
    data = pd.concat([data, confidences.assign(metric="confidence")], ignore_index=True)
    figure, axes = _grid(3, 3, 11, 7.5)
    for axis, metric in zip(axes, [*MEASURES, "confidence"], strict=True):
        rows = data[data["metric"] == metric].set_index("group").reindex(list(GROUPS))
        axis.barh(range(len(GROUPS)), rows["median"], color=[colour(g) for g in GROUPS])
        axis.set_yticks(range(len(GROUPS)), GROUPS.values(), fontsize=6)
        axis.invert_yaxis()
        axis.set_title(MEASURES.get(metric, metric), fontsize=8)
    return Picture(
        name="figure_7_medians",
        title=f"Medians by correctness and confidence: {method}",
        figure=figure,
        data=data,
        caption=f"The paper's figure 7, each metric on its own scale; target: the prediction. "
        f"{sentence(thresholds(confidence))} No bar: a group without a value.",
    )


def boxes(
    wide: pd.DataFrame, examples: pd.DataFrame, method: str, confidence: Confidence
) -> Picture:
    """The six crossed groups of one method, as boxes."""
    groups = masks(examples.loc[wide.index], confidence)
    data = pd.DataFrame(
        [
            {"metric": metric, "group": group, **_five(wide[method, metric][groups[group]])}
            for metric in MEASURES
            for group in CROSSED
        ]
    )
    figure, axes = _grid(2, 4, 12, 5.5)
    for axis, metric in zip(axes, MEASURES, strict=True):
        rows = data[(data["metric"] == metric) & (data["n"] > 0)]
        places = [CROSSED.index(group) for group in rows["group"]]
        drawn = axis.bxp(
            rows.drop(columns=["metric", "group", "n"]).to_dict("records"),
            positions=places,
            widths=0.6,
            manage_ticks=False,
            showfliers=False,
            patch_artist=True,
            orientation="horizontal",
            medianprops={"color": "black"},
        )
        for box, group in zip(drawn["boxes"], rows["group"], strict=True):
            box.set_facecolor(colour(group))
        axis.set_yticks(range(len(CROSSED)), [GROUPS[g] for g in CROSSED], fontsize=6)
        axis.set_ylim(len(CROSSED) - 0.5, -0.5)
        axis.set_title(MEASURES[metric], fontsize=8)
    return Picture(
        name="boxes",
        title=f"Distributions by correctness and confidence: {method}",
        figure=figure,
        data=data,
        caption="Median, quartiles and the last value within 1.5 interquartile ranges; target: the "
        f"prediction. {sentence(thresholds(confidence))} No box: an empty group.",
    )


def histograms(
    wide: pd.DataFrame, examples: pd.DataFrame, method: str, confidence: Confidence, level: str
) -> Picture:
    """Figure 8: one method's values at one level of confidence, correct and wrong."""
    groups = masks(examples.loc[wide.index], confidence)
    figure, axes = _grid(2, 4, 12, 5)
    data = []
    for axis, metric in zip(axes, MEASURES, strict=True):
        values = wide[method, metric]
        edges = np.histogram_bin_edges(values.dropna(), BINS) if values.notna().any() else [0, 1]
        for group in (f"correct_{level}", f"wrong_{level}"):
            counts, _ = np.histogram(values[groups[group]].dropna(), edges)
            rows = {"left": edges[:-1], "right": edges[1:], "count": counts}
            data.append(pd.DataFrame({"metric": metric, "group": group, **rows}))
            share = counts / max(counts.sum(), 1)
            axis.stairs(share, edges, fill=True, alpha=0.45, color=colour(group.split("_")[0]))
            label = f"{GROUPS[group]} (n = {counts.sum()})"
            axis.stairs(share, edges, color=colour(group.split("_")[0]), label=label)
        axis.set_title(MEASURES[metric], fontsize=8)
    axes[0].set_ylabel("share of examples", fontsize=7)
    axes[0].legend(fontsize=6)
    return Picture(
        name=f"figure_8_{level}",
        title=f"Histograms at {level} confidence: {method}",
        figure=figure,
        data=pd.concat(data, ignore_index=True),
        caption="The paper's figure 8; shares of each group; target: the prediction. "
        f"{sentence(thresholds(confidence))}",
    )


def difference_dots(
    frame: pd.DataFrame, number: str, names: Sequence[str], confidence: Confidence
) -> Picture:
    """Figures 3, 5 and 6: differences of all methods in standard deviations, a panel each."""
    keep = frame["comparison"].isin(names) & frame["metric"].isin(MEASURES)
    own = frame[keep & (frame["target"] == "predicted") & ~frame["baseline"]]
    columns = ["comparison", "method", "metric", "n_first", "n_second", "difference"]
    data = own[[*columns, "clustered_low", "clustered_high", "g", "g_low", "g_high", "p_bh"]]
    figure, axes = _grid(len(names), 1, 11, 3.2 * len(names))
    titles = {comparison.name: comparison.title for comparison in COMPARISONS}
    for axis, name in zip(axes, names, strict=True):
        _dots(axis, data[data["comparison"] == name])
        axis.set_title(titles[name], fontsize=8)
        axis.set_ylabel("Hedges' g", fontsize=7)
    axes[0].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.subplots_adjust(right=0.85)
    return Picture(
        name=f"figure_{number}_differences",
        title=f"Mean differences: {', '.join(titles[name] for name in names)}",
        figure=figure,
        data=data.reset_index(drop=True),
        caption=f"The paper's figure {number}, in pooled standard deviations so that all metrics "
        "fit one axis; target: the prediction. Bars: 95 % intervals of g, which take examples as "
        f"independent. {sentence(thresholds(confidence))}",
    )


def correlation_map(frame: pd.DataFrame) -> Picture:
    """Figure 4: Pearson's r of confidence and each metric, a row a method."""
    data = frame[frame["metric"].isin(MEASURES)].drop(columns="baseline")
    shown = data.pivot(index="method", columns="metric", values="r")[list(MEASURES)]
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(shown)))
    axis = figure.subplots()
    image = axis.imshow(shown.to_numpy(float), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    for (y, x), r in np.ndenumerate(shown.to_numpy(float)):
        dark = np.isfinite(r) and abs(r) > 0.6
        text = f"{r:.2f}" if np.isfinite(r) else "–"
        axis.text(x, y, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    names = [MEASURES[metric] for metric in shown.columns]
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=25, ha="right")
    axis.set_yticks(range(len(shown)), shown.index, fontsize=7)
    figure.colorbar(image, ax=axis, label="Pearson r")
    figure.subplots_adjust(left=0.18, right=0.98, top=0.97, bottom=0.3)
    return Picture(
        name="figure_4_correlations",
        title="Confidence and agreement among correct predictions",
        figure=figure,
        data=data.reset_index(drop=True),
        caption="The first column of the paper's figure 4, for every method and baseline.",
    )


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.tick_params(labelsize=6)
        axis.locator_params(axis="both", nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(0.09, 0.08, 0.98, 0.94, 0.45, 0.35)
    return figure, axes


def _dots(axis: Axes, rows: pd.DataFrame) -> None:
    methods = sorted(rows["method"].unique())
    shift = 0.7 / max(len(methods), 1)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].set_index("metric").reindex(list(MEASURES))
        g = own["g"].to_numpy(float)
        reach = [g - own["g_low"].to_numpy(float), own["g_high"].to_numpy(float) - g]
        axis.errorbar(
            np.arange(len(g)) + (i - (len(methods) - 1) / 2) * shift,
            g,
            reach,
            fmt=MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            markersize=3.5,
            elinewidth=0.8,
            label=method,
        )
    axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set_xticks(range(len(MEASURES)), MEASURES.values(), fontsize=7)


def _five(values: pd.Series) -> dict[str, float]:
    """What a box needs: quartiles, and whiskers at the last value within 1.5 ranges."""
    found = values.dropna().to_numpy(float)
    if not len(found):
        return {"n": 0, **dict.fromkeys(("whislo", "q1", "med", "q3", "whishi"), np.nan)}
    q1, med, q3 = np.quantile(found, [0.25, 0.5, 0.75])
    inside = found[(found >= q1 - 1.5 * (q3 - q1)) & (found <= q3 + 1.5 * (q3 - q1))]
    low, high = min(inside.min(), q1), max(inside.max(), q3)
    return {"n": len(found), "whislo": low, "q1": q1, "med": med, "q3": q3, "whishi": high}
