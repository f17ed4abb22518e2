"""What models of stored regions share: the photo as canvas, regions by image, files of answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor

from schemas.frame import Frame
from workers.errors import UserError
from workers.models.base import Geometry, RegionModel
from workers.models.pickles import read_plain
from workers.models.preprocessing import Crop, to_canvas
from workers.models.regions import RegionFeatures

Files = Annotated[
    tuple[Path, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str | Path) else given),
]
"""One path or several."""
TYPICAL = (480, 640)
"""Height and width of a photo, for the sizes that a plan needs."""


class StoredRegionModel(RegionModel):
    """A model whose regions are read from files. Its canvas is the whole photo, scaled down to
    ``longest`` pixels the longer side where it is larger; the answers do not depend on it."""

    def __init__(self, features: RegionFeatures, longest: int) -> None:
        super().__init__()
        self.stored, self.longest = features, longest
        canvas, _ = self.prepare(np.zeros((*TYPICAL, 3), np.uint8))
        self.geometry = Geometry(
            input_height=canvas.shape[1],
            input_width=canvas.shape[2],
            varies=True,
            regions=features.regions,
            region_channels=features.channels,
        )

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        height, width = image.shape[:2]
        scale = min(1.0, self.longest / max(height, width))
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        crop = Crop(top=0, left=0, bottom=tall, right=wide, resized_height=tall, resized_width=wide)
        return to_canvas(image, crop), crop.frame(height, width)

    def regions(self, image_id: int, height: int, width: int) -> Tensor:
        return self.stored.of(image_id, height, width)


def softmax_of(values: Tensor, kept: Tensor) -> Tensor:
    """Softmax along the last axis over those that are kept, 0 elsewhere; all 0 where none is."""
    lowest = torch.finfo(values.dtype).min
    return values.masked_fill(~kept, lowest).softmax(-1) * kept


def by_row(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A function of each region alone, ``(n, region, channel)`` -> ``(n, region, ...)``. What is as
    in the first image is computed once: regions that are taken away one by one leave all others."""
    if len(rows) == 1 or rows.requires_grad:
        return function(rows)
    changed = (rows != rows[:1]).any(-1)
    made = function(rows[:1]).expand(len(rows), -1, -1).clone()
    made[changed] = function(rows[changed])
    return made


def check_channels(features: RegionFeatures, channels: int, where: Path | str) -> None:
    """Refuse features of another length than a model was trained on."""
    if features.channels != channels:
        raise UserError(
            f"{features.files[0].path} has {features.channels} features a region, {where} was "
            f"trained on {channels}; give the features that it was trained on"
        )


def read_labels(path: Path, count: int, remedy: str) -> tuple[str, ...]:
    """The answers in the order of the logits' ``count`` columns, from a JSON list (as LXMERT's
    ``trainval_label2ans.json``), a pickled one, or a text file with one a line."""
    labels = read_list(path, remedy)
    if len(labels) != count:
        raise UserError(f"{path} has {len(labels)} answers, the model has {count}; {remedy}")
    return tuple(labels)


def read_list(path: Path, remedy: str) -> list[str]:
    """Strings of a JSON list, a pickled one or a text file, each there once."""
    plain = path.suffix in (".json", ".pkl")
    labels = read_plain(path, remedy) if plain else read_lines(path, remedy)
    strings = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not strings or len(set(labels)) < len(labels):
        raise UserError(f"{path} is not a list of strings, each there once; {remedy}")
    return labels


def read_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file without white space around them; an empty last one is none."""
    try:
        lines = path.read_text("utf-8").split("\n")
        return [line.strip() for line in lines[: -1 if not lines[-1] else None]]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); {remedy}") from None
