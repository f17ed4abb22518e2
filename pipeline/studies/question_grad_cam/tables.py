"""The study's tables and its figure."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.studies.base import Column, Picture, Table
from pipeline.studies.means import line_style, mean_column
from pipeline.studies.question_grad_cam.localisation import Measured
from pipeline.studies.question_grad_cam.settings import PLAIN
from pipeline.studies.summary import Bootstrap

CHANCE = 0.5


RIGHT = (
    "Maps with more mass on their own question's object than on the other question's; equal "
    "masses, and maps without mass, count half."
)
BOTH = "Pairs both of whose maps have more mass on their own object."
CHOICE = "Right objects less those of as many neurons picked blindly, map by map."
INSIDE = "Share of a map's mass on its own question's object."
RHO = "Spearman's, cell by cell, over pairs; a constant map has none."
NO_VALUE = {
    **{f"{name}_reason": "no map has a value" for name in ("right", "both", "inside", "rho")},
    **{f"{name}_reason": "Grad-CAM itself, or none" for name in ("gain", "inside_gain")},
    "choice_reason": "no setting picks as many neurons blindly",
}


def localisation_table(frame: pd.DataFrame, measured: Measured, bootstrap: Bootstrap) -> Table:
    """How often a map falls on the right object: every setting beside Grad-CAM and the floors."""
    titles = [setting.title for setting in measured.settings]
    told = frame.assign(setting=titles, **NO_VALUE)
    return Table(
        name="localisation",
        title="On which object the map falls",
        frame=told,
        columns=(
            Column(name="setting", header="setting", kind="text"),
            _share("right", "right object", RIGHT),
            _share("gain", "over Grad-CAM", "The difference, map by map."),
            _share("choice", "over blind picks", CHOICE),
            _share("both", "both right", BOTH),
            _share("inside", "mass inside", INSIDE),
            _share("inside_gain", "over Grad-CAM", "The difference of the mass inside."),
            mean_column("rho", "rho of the two maps", RHO),
            Column(name="right_n", header="n", kind="count", help="Maps, two a pair."),
            Column(name="empty", header="without mass", kind="count"),
        ),
        caption=f"{len(measured.pairs.frame)} pairs on {len(np.unique(measured.images))} images; "
        f"bootstrap intervals at {bootstrap.level:.0%}, clustered by image. Objects are the "
        "dataset's masks, and a cell counts by the part of it that is inside. A map that does not "
        "depend on the question is right on exactly half. Set apart: what question_grad_cam is "
        "read against.",
        marked="floor",
    )


def _share(name: str, header: str, text: str) -> Column:
    return mean_column(name, header, text).model_copy(update={"kind": "percent"})


def sweep_picture(frame: pd.DataFrame) -> Picture:
    """Share on the right object, and rho of the pair's maps, by n; a line a variant."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    _sweep(first, frame, "right", "share of maps on the right object")
    _sweep(second, frame, "rho", "rho between the maps of a pair")
    first.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return Picture(
        name="sweep",
        title="The sweep over n",
        figure=figure,
        data=frame,
        caption="By the number of neurons that let the gradient through (all of them at the right "
        "end). Bands: interval of the first variant and of Grad-CAM. Dotted: a map that does not "
        "depend on the question.",
    )


def _sweep(axes: Axes, frame: pd.DataFrame, name: str, label: str) -> None:
    own = frame[frame["n"].notna()]
    last = own["n"][np.isfinite(own["n"])].max() if np.isfinite(own["n"]).any() else 1.0
    own = own.assign(n=own["n"].replace(np.inf, 1.2 * last))
    for i, (variant, line) in enumerate(own.groupby("variant", sort=False)):
        axes.plot(line["n"], line[name], marker=".", label=str(variant), **line_style(i))
        if i == 0:
            axes.fill_between(line["n"], line[f"{name}_low"], line[f"{name}_high"], alpha=0.15)
    for row in frame[frame["variant"] == PLAIN].to_dict("records"):
        axes.axhline(row[name], color="black", linewidth=1.5, label="Grad-CAM")
        axes.axhspan(row[f"{name}_low"], row[f"{name}_high"], color="black", alpha=0.1, linewidth=0)
    axes.set(xscale="log", xlabel="n", ylabel=label)


MOST = (
    "Questions with the word in which the combine layer is more sensitive to it than to any "
    "other, by the norm over all neurons."
)


def rank_table(frame: pd.DataFrame) -> Table:
    """Spearman's rho of the sensitivities of two questions, the paper's beside ours."""
    rho = "Over all neurons of the combine layer; the mean over couples."
    top = "Neurons among the ten most sensitive of both questions."
    return Table(
        name="sensitivities",
        title="How alike the sensitivities of two questions are",
        frame=frame,
        columns=(
            Column(name="compared", header="compared", kind="text"),
            Column(name="sensitivity", header="sensitivity", kind="text"),
            mean_column("rho", "Spearman's rho", rho),
            Column(name="smallest", header="smallest", reason="rho_reason"),
            Column(name="largest", header="largest", reason="rho_reason"),
            mean_column("common", "in both top tens", top),
            Column(name="n", header="n", kind="count", help="Couples of questions."),
        ),
        caption="Published figures, tables 1 to 6, are set apart. Ours: every pair, and every "
        "question beside the next image on which it is asked in the same words; intervals "
        "clustered by image.",
        marked="published",
    )


def word_table(frame: pd.DataFrame) -> Table:
    """The word to which the combine layer is most sensitive."""
    chance = "One in as many as the question has words, the mean."
    return Table(
        name="words",
        title="The most sensitive word",
        frame=frame.assign(most_reason=""),
        columns=(
            Column(name="word", header="word", kind="text"),
            _share("most", "most sensitive", MOST),
            Column(name="chance", header="chance", kind="percent", help=chance),
            Column(name="most_n", header="n", kind="count", help="Questions with the word."),
        ),
        caption="Ours; the paper leaves it to future work. First the words in which the two "
        "questions of a pair differ: they name the object. Words of fewer than 10 questions are "
        "left out.",
        marked="naming",
    )


def pair_table(frame: pd.DataFrame) -> Table:
    """Every pair with its correlations, as the paper's tables 5 and 6 list them."""
    told = [name for name in frame.columns if name.startswith(("rho ", "common "))]
    columns = [
        Column(name="question", header="question", kind="text"),
        Column(name="other", header="other question", kind="text"),
        Column(name="answer", header="answer", kind="text"),
        *(Column(name=name, header=name) for name in told if name.startswith("rho")),
        *(Column(name=name, header=name, kind="count") for name in told if name[0] == "c"),
    ]
    return Table(
        name="every_pair",
        title="Every pair",
        frame=frame,
        columns=tuple(columns),
        caption="Spearman's rho of the sensitivities, and neurons in both top tens.",
        folded=True,
    )
