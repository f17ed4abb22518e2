"""Regions of images, detected and turned into features beforehand: read by image, checked."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.errors import BadExample, UserError
from workers.models.feature_files import FeatureFile, Found, HDF5File, TSVFile
from workers.models.feature_folders import feature_folder

SLACK = 0.005
"""How far a box may reach beyond the image, as a part of its side, and is cut off: detectors
round."""
SHAPE = 0.02
"""How much the shapes of the photo and of the image that was detected in may differ."""
MOST = {"regions": 1_000, "channels": 65_536}
"""That an image, or a region, may have: an array of this size is made for each."""


class RegionFeatures:
    """Regions of images by number, from one file or several (training and validation, say).
    ``read`` opens a file of another kind than a detector's."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[Path], FeatureFile] | None = None
    ) -> None:
        self.files = [(read or _file)(path) for path in paths]
        self.regions = max(file.regions for file in self.files)
        self.channels = self.files[0].channels
        self._refuse_strangers()
        for name, limit in MOST.items():
            if not 0 < getattr(self, name) <= limit:
                raise UserError(
                    f"{', '.join(map(str, paths))}: {getattr(self, name)} {name} are claimed, "
                    f"1 to {limit} are possible; copy or make the file again"
                )

    def _refuse_strangers(self) -> None:
        for i, file in enumerate(self.files):
            if file.channels != self.channels:
                raise UserError(
                    f"{file.path} has {file.channels} features a region, {self.files[0].path} has "
                    f"{self.channels}; give files of one detector"
                )
            for other in self.files[:i]:
                if shared := file.places.keys() & other.places.keys():
                    raise UserError(
                        f"{other.path} and {file.path} both have image {min(shared)} and "
                        f"{len(shared) - 1} more; keep one of them"
                    )

    def __deepcopy__(self, memo: dict[int, object]) -> "RegionFeatures":
        """Itself: copies of a model read the same files."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of each file's length and of a MiB at each of its ends, and of its index."""
        digest = hashlib.sha256()
        for file in self.files:
            for part in file.sample():
                digest.update(part)
            places = np.array(sorted(file.places.items()), np.int64)
            digest.update(places.astype("<i8").tobytes())
        return digest.hexdigest()

    def of(self, image_id: int, height: int, width: int) -> Tensor:
        """``(region, 4 + channel)`` float32, rows of zeros at the end where an image has fewer than
        others; boxes are fractions. ``BadExample`` where they are not there or make no sense."""
        file = next((file for file in self.files if image_id in file.places), None)
        if file is None:
            known = sum(len(file.places) for file in self.files)
            names = ", ".join(str(file.path) for file in self.files)
            raise BadExample(
                f"image {image_id} is not among the {known} images of {names}; add the feature "
                "file that has it to model.features"
            )
        found = file.read(image_id, height, width)
        where = f"{file.path}: image {image_id}"
        _check_shape(where, found, height, width)
        rows = torch.zeros(self.regions, 4 + self.channels)
        rows[: len(found.boxes), :4] = torch.from_numpy(_fractions(where, found))
        rows[: len(found.boxes), 4:] = torch.from_numpy(_finite(where, found.features))
        return rows


def _file(path: Path) -> FeatureFile:
    if path.suffix.lower() in (".hdf5", ".h5"):
        return HDF5File(path)
    if path.suffix.lower() == ".tsv":
        return TSVFile(path)
    if path.is_dir():
        return feature_folder(path)
    raise UserError(
        f"model.features: {path} is no .hdf5, .h5 or .tsv file and no folder; give one of those"
    )


def _check_shape(where: str, found: Found, height: int, width: int) -> None:
    """A photo of another shape, turned or cropped, has its regions elsewhere."""
    if (found.height, found.width) == (1, 1):
        return
    ratio = found.width / found.height * height / width
    if abs(ratio - 1) > SHAPE:
        raise BadExample(
            f"{where}: regions were detected in {found.width:g} x {found.height:g} pixels, the "
            f"photo has {width} x {height}, another shape; give the image that was detected in"
        )


def _fractions(where: str, found: Found) -> np.ndarray:
    """Boxes as fractions ``(n, 4)`` in float32, once each is a rectangle inside the image."""
    sides = np.array([found.width, found.height] * 2)
    with np.errstate(invalid="ignore"):
        boxes = (np.asarray(found.boxes, np.float64) / sides).astype(np.float32)
        bad = ~np.isfinite(boxes).all(1) | (boxes < -SLACK).any(1) | (boxes > 1 + SLACK).any(1)
        cut = boxes.clip(0, 1)
        bad |= ~((cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1]))
    if bad.any():
        first = int(bad.argmax())
        x1, y1, x2, y2 = (float(v) for v in found.boxes[first])
        raise BadExample(
            f"{where}: {int(bad.sum())} of {len(boxes)} boxes are no rectangles inside the image, "
            f"first box {first}: x {x1:g} to {x2:g}, y {y1:g} to {y2:g} of {found.width:g} x "
            f"{found.height:g}; detect its regions again"
        )
    return cut


def _finite(where: str, features: np.ndarray) -> np.ndarray:
    bad = int((~np.isfinite(features)).sum())
    if bad:
        raise BadExample(
            f"{where}: {bad} of {features.size} features are not finite; compute them again"
        )
    return features.astype(np.float32)
