"""Folders with an array a file and an image, as facebookresearch/mmf keeps features."""

import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError

import numpy as np

from workers.errors import BadExample, UserError
from workers.models.feature_files import FLOATS, SAMPLE, FeatureFile, Found, image_number

BOXES = "_boxes.npy"
INFO = "_info.npy"
DAMAGED = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError)
"""What numpy raises on bytes that are no array (found by flipping bytes)."""
REMEDY = (
    "MMF keeps boxes in NAME_info.npy, a pickle, which could run code and is not read; write them "
    'beside it yourself: info = np.load("NAME_info.npy", allow_pickle=True).item(); '
    'np.save("NAME_boxes.npy", info["bbox"])'
)


class FeatureFolder(FeatureFile):
    """``NAME.npy`` for each image, whose number ends the name (``COCO_val2014_000000000042``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with os.scandir(path) as entries:
            self.sizes = {e.name: e.stat().st_size for e in entries if _features(e.name)}
        self.names = self._by_number()
        self.places = {number: i for i, number in enumerate(self.names)}
        first = self.array(next(iter(self.names.values())), UserError)
        self.channels = first.shape[-1]
        self.regions = self._most(first)

    def _by_number(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for name in sorted(self.sizes):
            number = image_number(name.removesuffix(".npy").encode())
            if number is None or number in names:
                told = "no number ends it" if number is None else f"so does {names[number]}"
                raise UserError(f"{self.path / name}: what image it is of is not clear: {told}")
            names[number] = name
        if not names:
            raise UserError(f"{self.path} has no files NAME.npy; give a folder of features")
        return names

    def array(self, name: str, kind: type[UserError] | type[BadExample]) -> np.memmap:
        """The numbers in a file, which are mapped: a length that it claims takes no memory."""
        try:
            found = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except DAMAGED as error:
            raise kind(
                f"{self.path / name} cannot be read as an array ({error!s:.200}); copy it again"
            ) from None
        if found.dtype not in FLOATS or not found.size or found.ndim not in (2, 3, 4):
            raise kind(
                f"{self.path / name} holds {found.dtype} of shape {list(found.shape)}, not floats "
                "[region, channel] or [y, x, channel]"
            )
        return found

    def sample(self) -> Iterator[bytes]:
        """Every name and length, and the files of the first and the last image."""
        for name, size in sorted(self.sizes.items()):
            yield f"\n{name} {size}".encode()
        for name in (min(self.sizes), max(self.sizes)):
            with (self.path / name).open("rb") as data:
                yield data.read(SAMPLE)

    @abstractmethod
    def _most(self, first: np.memmap) -> int:
        """Regions of the image that has most of them."""


class BoxFolder(FeatureFolder):
    """Regions of a detector: ``NAME.npy [region, channel]``, and their boxes in pixels of the
    photo, x1, y1, x2, y2, in ``NAME_boxes.npy [region, 4]``."""

    def _most(self, first: np.memmap) -> int:
        # From lengths alone: opening a hundred thousand files takes minutes.
        row = first.dtype.itemsize * self.channels
        return max((size - first.offset) // row for size in self.sizes.values())

    def read(self, image_id: int, height: int, width: int) -> Found:
        name = self.names[image_id]
        features, boxes = self.array(name, BadExample), name.removesuffix(".npy") + BOXES
        if not (self.path / boxes).exists():
            raise BadExample(f"{self.path / boxes} is not there; {REMEDY}")
        corners = self.array(boxes, BadExample)
        right = (len(features), self.channels) == features.shape
        if not right or corners.shape != (len(features), 4) or len(features) > self.regions:
            raise BadExample(
                f"{self.path / name} has shape {list(features.shape)}, its boxes "
                f"{list(corners.shape)}; [region, {self.channels}] and [region, 4] go together"
            )
        return Found(np.array(corners), np.array(features), height, width)


class CellFolder(FeatureFolder):
    """A feature map over the whole photo, squashed to a square: ``NAME.npy [y, x, channel]`` or
    ``[1, y, x, channel]``. Each cell is a region."""

    def _most(self, first: np.memmap) -> int:
        self.height, self.width = first.shape[-3:-1]
        return self.height * self.width

    def read(self, image_id: int, height: int, width: int) -> Found:
        found = self.array(self.names[image_id], BadExample)
        shape = (self.height, self.width, self.channels)
        if found.size != np.prod(shape) or found.shape[-3:] != shape:
            raise BadExample(
                f"{self.path / self.names[image_id]} has shape {list(found.shape)}, others "
                f"{list(shape)}; make it again"
            )
        features = np.array(found).reshape(-1, self.channels)
        return Found(cells(self.height, self.width), features, 1, 1)


def feature_folder(path: Path) -> FeatureFolder:
    """Of a detector's regions or of cells, told apart by the axes of the first array."""
    names = sorted(entry.name for entry in os.scandir(path) if _features(entry.name))
    if not names:
        return BoxFolder(path)
    try:
        axes = np.load(path / names[0], mmap_mode="r", allow_pickle=False).ndim
    except DAMAGED:
        axes = 2  # which will say what is wrong
    return BoxFolder(path) if axes == 2 else CellFolder(path)


def cells(height: int, width: int) -> np.ndarray:
    """Boxes ``(cell, 4)`` of a grid's cells, row by row: x1, y1, x2, y2 as fractions."""
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    return np.stack([x / width, y / height, (x + 1) / width, (y + 1) / height], 1)


def _features(name: str) -> bool:
    return name.endswith(".npy") and not name.endswith((BOXES, INFO))
