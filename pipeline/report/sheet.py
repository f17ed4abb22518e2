"""Contact sheets: image, question with its words shaded, one overlay per method, human map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from pipeline.dataset import Run
from pipeline.run import stored_config
from pipeline.single import Explanation
from schemas.frame import Frame
from schemas.limits import Limits
from schemas.rows import ExampleRow
from workers import catalog
from workers.errors import UserError
from workers.evaluate import frame_of
from workers.images import decode
from workers.metrics.frame import cut

CELL = 1.75
"""Inches of one picture."""


@dataclass(frozen=True)
class Strip:
    """One row of a sheet."""

    image: np.ndarray
    """What the model saw, uint8 RGB."""
    caption: str
    tokens: Sequence[str]
    words: Sequence[float]
    maps: Mapping[str, np.ndarray]
    """Label -> map; NaN-free, any grid."""


def run_sheet(root: Path | str, out: Path, rows: int = 8) -> None:
    """Some examples of a run: right and wrong, sure and unsure in turn, each image once."""
    run = Run(root)
    chosen = _choose(run.examples, rows)
    if not chosen:
        raise UserError(
            f"{root}: no example has been answered; see `python run_pipeline.py failures {root}`"
        )
    dataset = catalog.dataset(stored_config(root).dataset)
    by_id = {e.question_id: e for e in dataset.examples() if e.question_id in set(chosen)}
    answered = run.table("examples").to_table(filter=ds.field("question_id").isin(chosen))
    records = {row["question_id"]: ExampleRow(**row) for row in answered.to_pylist()}
    strips = [
        _strip(
            run, records[i], [cut(m, frame_of(records[i])) for m in dataset.human_maps(by_id[i])]
        )
        for i in chosen
    ]
    draw(strips, out)


def single_sheet(result: Explanation, out: Path) -> None:
    """One picture, one question; under it what has a map for every word, a row a method."""
    words = next(iter(result.words.values()), np.zeros(len(result.tokens)))
    caption = f"{result.question}\n{result.answer} ({result.probability:.1%})"
    if result.answer != result.prediction:
        caption += f"\nthe model: {result.prediction} ({result.confidence:.1%})"
    maps = {label: next(iter(arrays.values())) for label, arrays in result.maps.items()}
    by_word = {
        label: arrays["words"][: len(result.tokens)]
        for label, arrays in result.maps.items()
        if "words" in arrays
    }
    columns = max(2 + len(maps), len(result.tokens) if by_word else 0)
    height = CELL + 0.45
    figure = Figure(figsize=(CELL * columns, height * (1 + len(by_word))), dpi=110)
    first, *others = figure.subfigures(1 + len(by_word), 1, squeeze=False)[:, 0]
    _draw_strips(first, [Strip(result.image, caption, result.tokens, list(words), maps)], columns)
    for part, (label, own) in zip(others, by_word.items(), strict=True):
        part.suptitle(f"{label.replace('_', ' ')}, word by word", fontsize=8, x=0.005, ha="left")
        _draw_words_of(part, result.image, result.tokens, own, columns)
    _save(figure, out)


def draw(strips: Sequence[Strip], out: Path) -> None:
    """All strips under one another, a column a method; written as PNG."""
    columns = 2 + len(_labels(strips))
    figure = Figure(figsize=(CELL * columns, (CELL + 0.15) * len(strips) + 0.3), dpi=110)
    _draw_strips(figure, strips, columns)
    _save(figure, out)


def _labels(strips: Sequence[Strip]) -> list[str]:
    return list(dict.fromkeys(label for strip in strips for label in strip.maps))


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def _draw_strips(figure: Figure | SubFigure, strips: Sequence[Strip], columns: int) -> None:
    labels = _labels(strips)
    axes = figure.subplots(len(strips), columns, squeeze=False)
    for strip, row in zip(strips, axes, strict=True):
        _draw_strip(strip, row, labels)
    for label, axis in zip(["image", "question", *labels], axes[0], strict=False):
        axis.set_title(label.replace("_", " "), fontsize=8)
    top = 1 - 0.25 / (figure.bbox.height / figure.dpi)
    figure.subplots_adjust(0.005, 0.01, 0.995, top, 0.03, 0.05)


def _draw_words_of(
    figure: SubFigure, image: np.ndarray, tokens: Sequence[str], maps: np.ndarray, columns: int
) -> None:
    """A map a word, all on one scale, so that a word the model did not need looks it."""
    axes = figure.subplots(1, columns, squeeze=False)[0]
    top = float(np.abs(maps).max()) or 1.0
    for axis in axes:
        axis.set_axis_off()
    for axis, token, values in zip(axes, tokens, maps, strict=False):
        axis.set_title(token, fontsize=8)
        axis.imshow(overlay(image, values, top))
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.8, 0.03, 0.05)


def _draw_strip(strip: Strip, axes: Sequence[Axes], labels: Sequence[str]) -> None:
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(strip.image)
    _draw_words(axes[1], strip)
    for label, axis in zip(labels, axes[2:], strict=False):
        if label in strip.maps:
            axis.imshow(overlay(strip.image, strip.maps[label]))


def overlay(image: np.ndarray, values: np.ndarray, top: float | None = None) -> np.ndarray:
    """A map over the greyed image: red is evidence for the answer, blue against it.

    Scaled by ``top``, or by the largest magnitude of this map alone; pixel maps by their 99th
    percentile, as one pixel would hide the rest. Drawn at the map's own grid, so a cell looks like
    a cell.
    """
    height, width = image.shape[:2]
    grid = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    scaled = np.asarray(grid.resize((width, height), Image.Resampling.NEAREST))
    top = top or np.percentile(np.abs(scaled), 99) or np.abs(scaled).max() or 1.0
    strength = np.clip(scaled / top, -1, 1)
    colour = matplotlib.colormaps["seismic"]((strength + 1) / 2)[..., :3]
    grey = np.repeat(image.mean(-1, keepdims=True) / 255, 3, -1)
    opacity = 0.25 + 0.65 * np.abs(strength)[..., None]
    return np.clip((1 - opacity) * grey + opacity * colour, 0, 1)


def _draw_words(axis: Axes, strip: Strip) -> None:
    """Tokens one a line where they are many, shaded by importance; the caption under them."""
    top = max((abs(w) for w in strip.words), default=0.0) or 1.0
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_aspect("equal")
    x, y = 0.02, 0.9
    for token, weight in zip(strip.tokens, strip.words, strict=True):
        width = 0.062 * len(token) + 0.05
        if x + width > 1 and x > 0.02:
            x, y = 0.02, y - 0.13
        shade = matplotlib.colormaps["seismic"](0.5 + 0.35 * weight / top)
        box = {"facecolor": shade, "edgecolor": "none", "pad": 1.5, "alpha": 0.6}
        axis.text(x, y, token, fontsize=7, va="center", bbox=box)
        x += width
    axis.text(0.02, 0.02, strip.caption, fontsize=6.5, va="bottom", wrap=True)


def _choose(examples: pd.DataFrame, rows: int) -> list[int]:
    """Question ids, the four kinds of outcome taking turns."""
    good = examples[examples.status == "ok"].drop_duplicates("image_id")
    kind = good.correct.eq(True).astype(int) * 2 + (good.confidence > 0.75)
    turn = good.groupby(kind).cumcount()
    return good.assign(turn=turn).sort_values(["turn", "ordinal"]).question_id.head(rows).tolist()


def _strip(run: Run, example: ExampleRow, humans: Sequence[np.ndarray]) -> Strip:
    maps, words = (
        table[(table.question_id == example.question_id) & (table.target == run.record.targets[0])]
        for table in (run.maps, run.words)
    )
    maps = maps[maps.status != "failed"]
    overlays = dict(zip(maps.method, run.fetch(maps), strict=True))
    if humans:
        overlays["human"] = np.mean([_same_size(m, humans[0]) for m in humans], axis=0)
    words = words[words.status != "failed"].sort_values("method", ascending=False)
    tokens = example.tokens or []
    weights = list(words.importances.iloc[0]) if len(words) else [0.0] * len(tokens)
    verdict = {None: "", True: " (right)", False: f" (wrong: {example.truth})"}[example.correct]
    caption = f"{example.prediction}{verdict}\n{example.confidence or 0:.0%} sure"
    return Strip(
        seen(example.image, frame_of(example), Limits()), caption, tokens, weights, overlays
    )


def _same_size(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Annotators' maps may differ in size; the picture shows their mean."""
    if values.shape == like.shape:
        return values
    height, width = like.shape
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def seen(path: str, frame: Frame, limits: Limits) -> np.ndarray:
    """The image cut to what the model saw."""
    image = decode(path, limits)
    height, width = image.shape[:2]
    top, bottom = round(frame.top * height), round(frame.bottom * height)
    return image[top:bottom, round(frame.left * width) : round(frame.right * width)]
