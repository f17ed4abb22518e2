"""The model of Kazemi and Elqursh on features that its trunk gave beforehand, as
Cyanogenoid/pytorch-vqa trains it: ``resnet-14x14.h5``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from workers.errors import BadExample, UserError
from workers.models.base import Capability, RegionModel, RegionOutput, SplitModel, Tokens, present
from workers.models.feature_files import (
    FLOATS,
    FeatureFile,
    Found,
    contents,
    lies_in,
    opened,
    undamaged,
)
from workers.models.feature_folders import cells
from workers.models.kazemi import KazemiConfig, KazemiHead, feature_shape
from workers.models.regions import RegionFeatures


class GridFile(FeatureFile):
    """``resnet-14x14.h5``: ``features (image, channel, y, x)`` in half precision, read as single,
    and ``ids (image,)``, whose numbers are COCO's. Each cell is a region; boxes are fractions of
    the square that the trunk saw."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = opened(path)
        with undamaged(path, UserError):
            self.features = self._dataset("features", 4)
            self.places = self._rows(self._dataset("ids", 1))
        self.channels, self.height, self.width = self.features.shape[1:]
        self.regions = self.height * self.width

    def _dataset(self, name: str, axes: int) -> Any:
        found = self.file.get(name)
        shape, dtype = getattr(found, "shape", ()), getattr(found, "dtype", None)
        right = dtype in FLOATS if name == "features" else getattr(dtype, "kind", "") in "iu"
        if len(shape) == axes and 0 not in shape and right and lies_in(self.path, found):
            return found
        raise UserError(
            f"{self.path}: no dataset {name!r} of {axes} axes; it has {contents(self.file)}. Give "
            "resnet-14x14.h5 of pytorch-vqa: features [image, channel, y, x] of floats and ids "
            "[image] of whole numbers"
        )

    def _rows(self, ids: Any) -> dict[int, int]:
        """Image number -> row."""
        count = len(self.features)
        rows = {int(n): row for row, n in enumerate(ids[:])} if len(ids) == count else {}
        if len(rows) < count:
            told = f"{len(rows)} different" if len(ids) == count else f"{len(ids)}"
            raise UserError(
                f"{self.path}: {told} ids for features of {count} images; make the file again "
                "with pytorch-vqa's preprocess-images.py"
            )
        return rows

    def read(self, image_id: int, height: int, width: int) -> Found:
        with undamaged(self.path, BadExample):
            features = self.features[self.places[image_id]]
        return Found(cells(self.height, self.width), features.reshape(self.channels, -1).T, 1, 1)


def read_features(paths: Sequence[Path], config: KazemiConfig) -> RegionFeatures:
    """Such files, together one, once they are what the trunk of this model gives."""
    return RegionFeatures(paths, partial(_fitting, config, feature_shape(config)))


def _fitting(config: KazemiConfig, wanted: tuple[int, int, int], path: Path) -> GridFile:
    file = GridFile(path)
    found = (file.channels, file.height, file.width)
    if found != wanted:
        raise UserError(
            f"{path} has features of {' x '.join(map(str, found))}, the trunk {config.trunk!r} "
            f"gives {' x '.join(map(str, wanted))} of {config.image_size} pixels; give the "
            "features that the model was trained on, or the trunk and the image_size that they "
            "were made with"
        )
    return file


class StoredKazemiConfig(KazemiConfig):
    """``trunk`` is what the features were made by."""

    features: str
    """``RegionFeatures.digest``."""


class StoredKazemi(RegionModel, KazemiHead):
    """The published head (``KazemiHead``) with features from a file in the place of a trunk.

    Its regions are the cells of the feature map, in the square that the trunk saw: that is the
    canvas, as of the model with a trunk, and boxes are fractions of it. The features are a feature
    map all the same, so that the methods of one (Grad-CAM, attention over cells) explain it too.
    A cell that is taken away gets no attention: the softmax is over the others.
    """

    provides = RegionModel.provides | (
        SplitModel.provides - {Capability.LOGITS} | {Capability.ATTENTION}
    )

    def __init__(self, config: KazemiConfig, stored: RegionFeatures) -> None:
        super().__init__()
        self.stored = stored
        self._make_head(
            StoredKazemiConfig(**config.model_dump(), features=stored.digest),
            feature_shape(config),
        )
        sizes = {"regions": stored.regions, "region_channels": stored.channels}
        self.geometry = self.geometry.model_copy(update=sizes)

    def regions(self, image_id: int, height: int, width: int) -> Tensor:
        return self.stored.of(image_id, height, width)

    def normalise(self, canvas: Tensor) -> Tensor:
        """In place of canvases it takes ``regions (n, region, 4 + channel)``, as they are."""
        return canvas

    def trunk(self, pixels: Tensor) -> Tensor:
        """``regions (n, region, 4 + channel)`` -> features ``(n, channel, y, x)``."""
        geometry = self.geometry
        rows = pixels[..., 4:].unflatten(1, (geometry.feature_height, geometry.feature_width))
        return rows.permute(0, 3, 1, 2).contiguous()

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        states = self.encode(self.words(questions))
        output = self.head_over(self.trunk(regions), states, present(regions))
        assert output.attention is not None
        return RegionOutput(output.logits, output.attention.mean(1).flatten(1))

    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """What no question changes is computed once for all of them."""
        states = self.encode(self.words(questions))
        pooled = self.pool_over(self.trunk(canvas), states, present(canvas))
        return self.classify(pooled, states)
