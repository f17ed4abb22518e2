"""Figure 2: mean metrics a method, the published ones beside; and both readings of the regions."""

import numpy as np
import pandas as pd

from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import Column, Table
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tang_yuan.groups import summary
from pipeline.studies.tang_yuan.published import FIGURE_2, HELP, MEASURES, NONEMPTY, TESTED
from pipeline.studies.targets import PREDICTED, TRUTH, matrix, wrong_only

EVERY_MAP = "every_map"
"""Both targets pooled, as the paper has it: a wrong prediction counts with two maps."""
VIEWS = {
    PREDICTED: ("the predicted answer", "Each example's map explains the answer the model gives."),
    TRUTH: (
        "the labelled answer",
        "Each example's map explains the labelled answer; of a correct prediction that is its only "
        "map.",
    ),
    EVERY_MAP: (
        "every map",
        "Both targets pooled, as the paper does: a correct prediction counts with its one map, a "
        "wrong one with two.",
    ),
}
ABOUT = "the paper analyses about the first 300 examples and prints no counts"
SILENT = "the paper prints no such figure"
OURS, PAPER = "this run", "published"
EXACT = {
    "ty_disc_intersection_exact": "discrete intersection",
    "ty_iou_exact": "IoU",
    "ty_f1_exact": "precision = recall = F1 = Dice",
    "ty_f1_nonempty_exact": "F1, empty left out",
}
READINGS = {
    **{
        metric: f"{TESTED[metric]}, above minimum"
        for metric in ("ty_disc_intersection", "ty_iou", "ty_precision", "ty_recall")
    },
    "ty_dice": "Dice, above minimum",
    "ty_f1": "F1, above minimum, empty 0",
    NONEMPTY: "F1, above minimum, empty left out",
    **{metric: f"{name}, exactly k" for metric, name in EXACT.items()},
}


def views(values: pd.DataFrame, examples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Target -> matrix, and every map; targets that the run has."""
    predicted = matrix(values, examples, PREDICTED)
    other = wrong_only(values, examples)
    if other.empty:
        return {PREDICTED: predicted}
    truth = matrix(values, examples, TRUTH)
    return {PREDICTED: predicted, TRUTH: truth, EVERY_MAP: pd.concat([predicted, other])}


def means(wide: pd.DataFrame, examples: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a method, best F1 first, the paper's below its own.

    Columns: ``method, source, marked, n, n_degenerate``, each metric with ``_low, _high, _se`` and
    ``_reason``, and ``confidence``, the mean over the examples whose map can be compared.
    """
    rows = examples.loc[wide.index]
    long = summary(wide, rows["image_id"].to_numpy(), bootstrap)
    table = long.pivot(index="method", columns="metric")
    ours = pd.DataFrame(index=table.index)
    for metric in long["metric"].unique():
        ours[metric] = table["mean", metric]
        ours[f"{metric}_low"] = table["ci_low", metric]
        ours[f"{metric}_high"] = table["ci_high", metric]
        ours[f"{metric}_se"] = table["standard_error", metric]
        ours[f"{metric}_reason"] = table["reason", metric]
    ours["n"], ours["n_degenerate"] = table["n", "ty_rank"], table["n_degenerate", "ty_rank"]
    ours["confidence"] = confidences(wide, rows)
    ours["n_reason"] = None
    ours = ours.sort_values("ty_f1", ascending=False, kind="stable").reset_index()
    ours.insert(1, "source", OURS)
    ours.insert(2, "marked", ours["method"].isin(BASELINES))
    return _with_published(ours)


def confidences(wide: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Method -> mean confidence over the examples whose map can be compared."""
    usable = wide.xs("ty_rank", axis=1, level="metric").notna()
    return usable.apply(lambda used: rows["confidence"][used.to_numpy()].mean())


def _with_published(ours: pd.DataFrame) -> pd.DataFrame:
    blocks = []
    for _, row in ours.iterrows():
        blocks.append(row.to_frame().T)
        if row["method"] in FIGURE_2:
            paper = {"method": row["method"], "source": PAPER, "marked": True, "n_reason": ABOUT}
            blocks.append(pd.DataFrame([{**paper, **FIGURE_2[row["method"]]}]))
    table = pd.concat(blocks, ignore_index=True).astype({"marked": bool})
    numbers = [c for c in table if c not in ("method", "source", "marked") and not _is_text(c)]
    return table.astype(dict.fromkeys(numbers, float))


def _is_text(column: str) -> bool:
    return column.endswith("_reason")


def figure_2(view: str, frame: pd.DataFrame) -> Table:
    """The paper's table for one view of the targets."""
    title, sentence = VIEWS[view]
    return Table(
        name=f"figure_2_{view}",
        title=f"Agreement with human attention: {title}",
        frame=frame,
        columns=(
            Column(name="method", header="method", kind="text"),
            Column(name="source", header="source", kind="text"),
            Column(
                name="confidence",
                header="confidence",
                reason="ty_rank_reason",
                help="Mean softmax probability of the prediction, over the maps compared.",
            ),
            *(metric_column(metric, name, HELP[metric]) for metric, name in MEASURES.items()),
            *counts(),
        ),
        caption=f"{sentence} Means over examples (a mean over annotators each), best F1 first. "
        "Regions: the highest tenth of the pixels, none at a map's minimum. Rows marked are "
        "baselines and the paper's figure 2 (about 300 examples of VQA v1, another model and other "
        "images: beside ours, not comparable digit by digit). Brackets: 95 % bootstrap intervals "
        "that resample whole images. Examples whose labelled answer the model cannot give are left "
        "out, as in the paper.",
        marked="marked",
        badged=True,
    )


def metric_column(metric: str, header: str, text: str) -> Column:
    """A metric's mean with its interval and, where there is none, the reason."""
    return Column(
        name=metric,
        header=header,
        low=f"{metric}_low",
        high=f"{metric}_high",
        reason=f"{metric}_reason",
        help=text,
    )


def counts() -> tuple[Column, Column]:
    """How many examples are behind a row."""
    return (
        Column(
            name="n", header="n", kind="count", reason="n_reason", help="Examples in the means."
        ),
        Column(
            name="n_degenerate",
            header="degenerate",
            kind="count",
            reason="n_reason",
            help="Examples whose map, or human map, is constant: in no mean.",
        ),
    )


def readings(frame: pd.DataFrame) -> Table:
    """Both discretisations and both F1 side by side."""
    frame = frame.assign(
        empty=1 - frame["ty_f1"] / frame[NONEMPTY],
        empty_exact=1 - frame["ty_f1_exact"] / frame["ty_f1_nonempty_exact"],
    )
    paper = frame["source"] == PAPER
    frame.loc[paper, "empty"] = 1 - frame["ty_dice"] / frame["ty_f1"]
    frame.loc[paper, NONEMPTY], frame.loc[paper, "ty_f1"] = frame["ty_f1"], np.nan
    for metric in READINGS:
        silent = paper & frame[metric].isna()
        frame.loc[silent, f"{metric}_reason"] = SILENT
    frame["empty_reason"] = np.where(paper, SILENT, frame[f"{NONEMPTY}_reason"])
    shown = (metric_column(metric, name, "") for metric, name in READINGS.items())
    share = "Implied share of pairs whose regions do not meet: 1 - F1 / F1 without those pairs."
    return Table(
        name="readings",
        title="Two readings of the region and of F1",
        frame=frame,
        columns=(
            Column(name="method", header="method", kind="text"),
            Column(name="source", header="source", kind="text"),
            *shown,
            *(
                Column(name=name, header=header, kind="percent", reason="empty_reason", help=share)
                for name, header in (
                    ("empty", "empty, above minimum"),
                    ("empty_exact", "empty, exactly k"),
                )
            ),
        ),
        caption="Both targets pooled where the run has both. k is a tenth of the pixels. "
        "Above minimum: at most k, no pixel at the map's minimum, so a sparse map has a small "
        "region. Exactly k: always k, a sparse map being padded with its first pixels in reading "
        "order; then precision, recall, F1 and Dice are one number. Published figures stand under "
        "the reading that can produce them: precision and recall that differ need areas that "
        "differ, and an F1 above Dice needs one that leaves empty overlaps out (1 - Dice / F1 is "
        "then their share). Brackets: 95 % bootstrap intervals that resample whole images.",
        marked="marked",
    )
