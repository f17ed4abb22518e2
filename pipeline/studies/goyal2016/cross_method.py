"""How far methods agree with one another: rank correlation of their maps of the same answer.

Selvaraju et al. 2017 compare Grad-CAM (0.60) and guided backpropagation (0.42) with occlusion in
this way on the same kind of model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.dataset import Run
from pipeline.studies.base import Column, Evidence, Finding, Part, Picture, Table
from pipeline.studies.goyal2016.published import WITH_OCCLUSION
from pipeline.studies.goyal2016.section import Section, reasons
from pipeline.studies.stacks import stacks
from pipeline.studies.summary import Bootstrap
from pipeline.studies.targets import LABELLED, PREDICTED, TRUTH, correct_questions, explains
from workers.metrics.ranks import rank_rows
from workers.metrics.resampling import magnitude_stack

SIDE = 14
"""Cells a side of the grid that maps are compared on, as with human maps."""
READ = 6 * 2**30
"""Bytes of maps that are read, a quarter of a minute's work; of more, images are drawn."""
RUN = 16
"""Neighbouring images that are drawn together: scattered ones take several times as long."""
FIND = 2**18
"""Bytes that could be read in the time it takes to find a map of pixels in its shard."""


@dataclass(frozen=True)
class Ranks:
    """A method's maps of one target, ranked."""

    values: np.ndarray
    """``(question, cell)`` float32, each row centred and of length 1; NaN where there is no map
    and zeros where it is constant."""

    @property
    def constant(self) -> np.ndarray:
        return (self.values == 0).all(axis=1)

    @property
    def absent(self) -> np.ndarray:
        return np.isnan(self.values[:, 0])


def section(evidence: Evidence) -> Section:
    """A matrix and a table a target."""
    rows = evidence.run.maps
    rows = rows[rows["status"] != "failed"]
    if rows["method"].nunique() < 2:
        return Section(missing=("Agreement between methods needs maps of two methods or more.",))
    sampled = sample(evidence.run, rows, evidence.bootstrap.seed)
    of = f"{sampled['image_id'].nunique():,} of {rows['image_id'].nunique():,} images"
    names = {label: d.name for label, d in evidence.run.definitions.items()}
    ranks = {str(label): row_ranks(evidence.run, own) for label, own in sampled.groupby("method")}
    parts: list[Part] = []
    findings: list[Finding] = []
    correct = correct_questions(evidence.run.examples)
    for target in sorted(sampled["target"].unique()):
        own = sampled[explains(sampled, target, correct)]
        questions = own[["question_id", "image_id"]].drop_duplicates().set_index("question_id")
        frame = pair_table(
            {
                label: of_target(frame, target, questions.index, correct)
                for label, frame in ranks.items()
            },
            questions["image_id"].to_numpy(),
            names,
            evidence.bootstrap,
        )
        caption = _caption(target, of, evidence.bootstrap.level)
        parts += [_picture(frame, target, caption), _table(frame, target, caption)]
        findings += sentences(frame, target)
    return Section(tuple(parts), tuple(findings))


def sample(run: Run, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """All map rows, or those of as many images as can be read, drawn at random in whole runs."""
    costs = {path: _place_bytes(run, path) for path in rows["array"].unique()}
    places = rows.drop_duplicates(["array", "ordinal"])
    cost = places["array"].map(costs).groupby(places["image_id"]).sum()
    if cost.sum() <= READ:
        return rows
    cost = cost.loc[places.groupby("image_id")["ordinal"].min().sort_values().index]
    runs = np.arange(len(cost)) // RUN
    order = np.random.default_rng(seed).permutation(runs[-1] + 1)
    drawn = order[cost.groupby(runs).sum().loc[order].cumsum() <= READ]
    return rows[
        rows["image_id"].isin(cost.index[np.isin(runs, drawn if len(drawn) else order[:1])])
    ]


def _place_bytes(run: Run, path: str) -> int:
    """What it takes to read an example's place in an array, which holds all targets' maps."""
    label, name = path.split("/")
    spec = next(spec for spec in run.definitions[label].arrays if spec.name == name)
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize * len(run.record.targets)
    return size + FIND if spec.pixels else size


def row_ranks(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """One method's maps of all targets as ranks: ``(target, question_id)`` by cell, float32."""
    keys, ranks = [], []
    for part, maps in stacks(run, rows):
        keys.append(part[["target", "question_id"]])
        ranks.append(rank_rows(magnitude_stack(maps, SIDE)).astype(np.float32))
    return pd.DataFrame(np.concatenate(ranks), pd.MultiIndex.from_frame(pd.concat(keys)))


def of_target(
    ranks: pd.DataFrame, target: str, questions: pd.Index, correct: Iterable[int]
) -> Ranks:
    """The ranks of one target, in the order of ``questions``; of the labelled answer those of the
    predicted one where the prediction is ``correct``."""
    both = questions.isin(correct) & (target == TRUTH)
    wanted = pd.MultiIndex.from_arrays([np.where(both, PREDICTED, target), questions])
    return Ranks(ranks.reindex(wanted).to_numpy())


def pair_table(
    ranks: Mapping[str, Ranks], images: np.ndarray, names: Mapping[str, str], bootstrap: Bootstrap
) -> pd.DataFrame:
    """One row a pair of methods: mean rank correlation, interval, counts, published figure.

    ``images (question,)``; ``names`` tells a label's method. Of a pair, occlusion is ``second``.
    """
    pairs = [_ordered(pair, names) for pair in combinations(ranks, 2)]
    rho = [correlations(ranks[a], ranks[b]) for a, b in pairs]
    both = np.array([~ranks[a].absent & ~ranks[b].absent for a, b in pairs])
    values = np.array(rho)
    n = (~np.isnan(values)).sum(axis=1)
    low, high = bootstrap.intervals(values.T, images)
    published = [
        WITH_OCCLUSION.get(names[a]) if names[b] == "occlusion" else None for a, b in pairs
    ]
    return pd.DataFrame(
        {
            "first": [a for a, _ in pairs],
            "second": [b for _, b in pairs],
            "mean": np.divide(
                np.nansum(values, axis=1), n, out=np.full(len(n), np.nan), where=n > 0
            ),
            "ci_low": low,
            "ci_high": high,
            "reason": reasons({"no example has two maps that are not constant": n == 0}),
            "n": n,
            "degenerate": both.sum(axis=1) - n,
            "published": ["" if figure is None else f"{figure.mean:.2f}" for figure in published],
            "published_mean": [np.nan if f is None else f.mean for f in published],
        }
    ).sort_values("mean", ascending=False, kind="stable", ignore_index=True)


def _ordered(pair: tuple[str, str], names: Mapping[str, str]) -> tuple[str, str]:
    first, second = pair
    return (second, first) if names[first] == "occlusion" != names[second] else (first, second)


def correlations(first: Ranks, second: Ranks) -> np.ndarray:
    """Spearman's rho a question; NaN where a map is absent or constant."""
    rho = np.einsum("qc,qc->q", first.values, second.values, dtype=np.float64).clip(-1, 1)
    return np.where(first.constant | second.constant, np.nan, rho)


COLUMNS = (
    Column(name="first", header="method", kind="text"),
    Column(name="second", header="and", kind="text"),
    Column(name="mean", header="rank correlation", low="ci_low", high="ci_high", reason="reason"),
    Column(name="n", header="n", kind="count", help="Questions with both maps, neither constant."),
    Column(
        name="degenerate",
        header="degenerate",
        kind="count",
        help="Questions with both maps, of which one is constant on the grid.",
    ),
    Column(
        name="published",
        header="published",
        kind="text",
        help="Selvaraju et al. 2017, with occlusion maps of Deeper LSTM + norm I.",
    ),
)


def _caption(target: str, of: str, level: float) -> str:
    return (
        f"{LABELLED if target == TRUTH else ''}"
        f"Spearman's rho of |map| of two methods for the same answer (target: {target}), both "
        f"scaled to {SIDE} x {SIDE} (area averages down, bilinear up), ties sharing their mean "
        f"rank; mean over questions on {of}"
        f"{f' drawn at random, {RUN} neighbours at a time' if _drawn(of) else ''}. Intervals: "
        f"{100 * level:g} % bootstrap over images."
    )


def _drawn(of: str) -> bool:
    some, every = of.removesuffix(" images").split(" of ")
    return some != every


def _table(frame: pd.DataFrame, target: str, caption: str) -> Table:
    return Table(
        name=f"cross_method_{target}",
        title=f"Agreement between methods, target: {target}",
        frame=frame,
        columns=COLUMNS,
        caption=caption,
    )


def _picture(frame: pd.DataFrame, target: str, caption: str) -> Picture:
    labels = sorted({*frame["first"], *frame["second"]})
    return Picture(
        name=f"cross_method_{target}",
        title=f"Agreement between methods, target: {target}",
        figure=_matrix(square(frame, labels), labels),
        data=frame,
        caption=caption,
    )


def square(frame: pd.DataFrame, labels: Sequence[str]) -> np.ndarray:
    """The pairs as a symmetric matrix, ones on its diagonal."""
    matrix = np.eye(len(labels))
    for row in frame.itertuples():
        i, j = labels.index(str(row.first)), labels.index(str(row.second))
        matrix[i, j] = matrix[j, i] = row.mean
    return matrix


def _matrix(matrix: np.ndarray, labels: Sequence[str]) -> Figure:
    size = 1.6 + 0.55 * len(labels)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(matrix, cmap="PuOr", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(matrix):
        text = "–" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # no negative zero
        dark = abs(value) > 0.6
        axes.text(j, i, text, ha="center", va="center", size=7, color="white" if dark else "black")
    said = [label.replace("_", " ") for label in labels]
    axes.set_xticks(range(len(labels)), said, rotation=45, ha="right", size=8)
    axes.set_yticks(range(len(labels)), said, size=8)
    figure.colorbar(shown, shrink=0.7, label="rank correlation")
    return figure


def sentences(frame: pd.DataFrame, target: str) -> list[Finding]:
    """The two pairs that have been published, as they come out here."""
    known = frame[frame["published_mean"].notna() & frame["mean"].notna()]
    if not len(known) or target != "predicted":
        return []
    each = [
        f"{row.first} and {row.second} {row.mean:.2f}"
        + (f" [{row.ci_low:.2f}, {row.ci_high:.2f}]" if np.isfinite(row.ci_low) else "")
        + f" (published {row.published_mean:.2f})"
        for row in known.itertuples()
    ]
    text = f"Rank correlation between maps of the same answer: {'; '.join(each)}."
    return [Finding(text, 0.45, f"cross_method_{target}")]
