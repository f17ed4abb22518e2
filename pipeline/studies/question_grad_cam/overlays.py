"""The maps of a pair over its picture, side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.sheet import overlay
from pipeline.studies.question_grad_cam.localisation import Measured

CELL = 1.3
"""Inches of one picture."""
COLUMNS = 7
"""Maps beside the picture."""
SHOWN = 3
"""Pairs of each kind: most, the middle, least."""


def chosen_pairs(measured: Measured, one: int) -> list[tuple[int, str]]:
    """Places of pairs, with why: those in which the mass on the right objects under a setting
    exceeds Grad-CAM's most, the middle of all, and those in which it falls short most; each kind
    begins with what is most so, and of few pairs each is shown once."""
    assert measured.plain is not None
    own = np.nan_to_num(measured.inside)
    gain = (own[:, one] - own[:, measured.plain]).reshape(-1, 2).mean(axis=1)
    order = np.argsort(-gain, kind="stable").tolist()
    middle = max(0, (len(order) - SHOWN) // 2)
    most = order[:SHOWN]
    least = [pair for pair in order[::-1][:SHOWN] if pair not in most]
    between = [p for p in order[middle : middle + SHOWN] if p not in {*most, *least}]
    kinds = (("most", most), ("the middle", between), ("least", least))
    return [(p, f"{why}: {gain[p]:+.2f} of the mass") for why, pairs in kinds for p in pairs]


def first_of_each(chosen: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The pair that each kind of ``chosen_pairs`` begins with."""
    kinds = {note.partition(":")[0]: (pair, note) for pair, note in reversed(chosen)}
    return [*kinds.values()][::-1]


def shown_settings(measured: Measured, one: int) -> list[int]:
    """Grad-CAM and, of a setting's variant, numbers of neurons at even distances from the fewest
    to the most, the setting among them."""
    variant = measured.settings[one].variant
    own = [i for i, s in enumerate(measured.settings) if s.variant == variant]
    picked = np.linspace(0, len(own) - 1, min(len(own), COLUMNS - 1)).round().astype(int)
    nearest = int(np.abs(picked - own.index(one)).argmin())
    picked[nearest] = own.index(one)
    floor = [] if measured.plain is None else [measured.plain]
    return floor + [own[i] for i in sorted(set(picked.tolist()))]


class Strip(NamedTuple):
    """A question's row."""

    caption: str
    picture: np.ndarray
    mask: np.ndarray
    """Of its object, at the picture's size."""
    maps: Sequence[np.ndarray | None]


def draw(strips: Sequence[Strip], titles: Sequence[str]) -> Figure:
    """One strip a question, a column a setting."""
    size = (CELL * (1 + len(titles)), (CELL + 0.25) * len(strips) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(strips), 1 + len(titles), squeeze=False)
    for (caption, picture, mask, maps), row in zip(strips, axes, strict=True):
        _picture(row[0], picture, mask, caption)
        for axis, values in zip(row[1:], maps, strict=True):
            axis.set_axis_off()
            if values is not None:
                axis.imshow(overlay(picture, values))
                _outline(axis, mask)
    for axis, title in zip(axes[0], ["", *titles], strict=True):
        if title:
            axis.set_title(title, fontsize=8)
    return figure


def _picture(axis: Axes, picture: np.ndarray, mask: np.ndarray, caption: str) -> None:
    axis.set_axis_off()
    axis.imshow(picture)
    _outline(axis, mask)
    axis.set_title(caption, fontsize=6, loc="left")


def _outline(axis: Axes, mask: np.ndarray) -> None:
    if mask.shape[0] > 1 and mask.shape[1] > 1 and mask.any() and not mask.all():
        axis.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=0.8)
