"""The recipes of models: from files, from a seed, and those shipped with VQAtlas."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from workers.errors import UserError
from workers.models import deeper_lstm, kazemi, pytorch_vqa, san
from workers.models.base import ModelSpec, VQAModel, freeze
from workers.models.checkpoints import (
    is_safetensors,
    load_weights,
    read_format,
    read_state_dict,
)
from workers.models.deeper_lstm import DeeperLSTMConfig
from workers.models.kazemi import Kazemi, KazemiConfig, KazemiHead
from workers.models.kazemi_features import StoredKazemi, read_features
from workers.models.questions import UNKNOWN
from workers.models.region_model import Files
from workers.models.san import SANConfig
from workers.models.trunks import TrunkName
from workers.models.untrained import ANSWERS, WORDS, untrained

WEIGHTS = Path(__file__).parent / "weights"
PUBLISHED = KazemiConfig(words=WORDS, answers=ANSWERS)
PUBLISHED_DEEPER = DeeperLSTMConfig(words=(*WORDS, "?", UNKNOWN), answers=ANSWERS[:1000])
PUBLISHED_SAN = SANConfig(words=PUBLISHED_DEEPER.words, answers=PUBLISHED_DEEPER.answers)
HEAD = ("text", "attention", "classifier")

FAMILIES = {
    kazemi.FORMAT: "kazemi",
    deeper_lstm.FORMAT: "deeper_lstm",
    san.FORMAT: "san",
}
"""The catalogue's names of the forms of our own weight files."""


def family(path: Path) -> str:
    """The catalogue's name of the model in one of our files; ``kazemi``, which will refuse it, for
    what is no such file."""
    return FAMILIES.get(read_format(path) or "", "kazemi")


class KazemiSpec(ModelSpec):
    """A Kazemi-Elqursh model from a checkpoint, or from a seed to try the geometry."""

    checkpoint: Path | None = None
    """Ours (.safetensors, all in one) or pytorch-vqa's (.pth, everything but the trunk)."""
    trunk_checkpoint: Path | None = None
    """The state_dict of pytorch-vqa's trunk, with torchvision's parameter names."""
    features: Files = ()
    """In place of the trunk what it gave: pytorch-vqa's ``resnet-14x14.h5``, one file or several.
    Pixels do not reach the model then."""
    random_seed: int | None = None
    """Instead of a checkpoint: random weights, whose maps explain nothing."""
    trunk: TrunkName | None = None
    """Overrides the checkpoint's, or the published ``resnet152_caffe``; so do the next two."""
    image_size: int | None = Field(default=None, ge=1)
    central_fraction: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.random_seed is None):
            raise ValueError("give either checkpoint (a weight file) or random_seed (a number)")
        if self.random_seed is not None and self.trunk_checkpoint is not None:
            raise ValueError("trunk_checkpoint goes with checkpoint, not with random_seed")
        if self.features and (self.checkpoint is None or self.trunk_checkpoint is not None):
            raise ValueError(
                "features go with checkpoint, in place of trunk_checkpoint or random_seed"
            )
        return self

    def build(self, device: torch.device) -> VQAModel:
        return freeze(self._load().to(device))

    def _load(self) -> KazemiHead:
        if self.random_seed is not None:
            return untrained(self._override(PUBLISHED), self.random_seed)
        assert self.checkpoint is not None  # _one_source
        if is_safetensors(self.checkpoint):
            return self._whole(self.checkpoint)
        if self.features:
            return self._head_on_features(self.checkpoint)
        return self._head_and_trunk(self.checkpoint)

    def _override(self, config: KazemiConfig) -> KazemiConfig:
        fields = ("trunk", "image_size", "central_fraction")
        given: dict[str, Any] = {
            f: getattr(self, f) for f in fields if getattr(self, f) is not None
        }
        return config.model_copy(update=given)

    def _whole(self, checkpoint: Path) -> Kazemi:
        for name in ("trunk_checkpoint", "features"):
            if given := getattr(self, name):
                raise UserError(f"{checkpoint} has its own trunk; leave out {name} ({given})")
        config, tensors = kazemi.read(checkpoint)
        return kazemi.assemble(self._override(config), tensors, checkpoint)

    def _head_and_trunk(self, checkpoint: Path) -> Kazemi:
        config, weights = pytorch_vqa.read(checkpoint)
        if self.trunk_checkpoint is None:
            raise UserError(
                f"{checkpoint} holds no image trunk; give the trunk's state_dict as "
                "trunk_checkpoint, or what it gave as features (resnet-14x14.h5)"
            )
        model = Kazemi(self._override(config))
        name = model.config.trunk
        load_head(model, weights, checkpoint)
        trunk = read_state_dict(self.trunk_checkpoint)
        layers = {key: tensor for key, tensor in trunk.items() if not key.startswith("fc.")}
        remedy = f"give weights of the trunk {name!r} under torchvision's parameter names"
        load_weights(model.trunk_net, layers, self.trunk_checkpoint, remedy)
        return model

    def _head_on_features(self, checkpoint: Path) -> StoredKazemi:
        config, weights = pytorch_vqa.read(checkpoint)
        config = self._override(config)
        model = StoredKazemi(config, read_features(self.features, config))
        load_head(model, weights, checkpoint)
        model.about = (
            f"{checkpoint}: everything but the trunk, on features that were stored; pixels do not "
            "reach it"
        )
        return model


def load_head(model: KazemiHead, weights: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Give a model the part that a checkpoint of pytorch-vqa has."""
    head = nn.ModuleDict({part: getattr(model, part) for part in HEAD})
    load_weights(head, weights, checkpoint, f"give one trained on the trunk {model.config.trunk!r}")


class _FileOrSeedSpec(ModelSpec):
    """A model whose weight file holds all of it."""

    checkpoint: Path | None = None
    """Ours (.safetensors, all in one), as ``python run_pipeline.py convert`` or the model's
    ``save`` writes it."""
    random_seed: int | None = None
    """Instead of a checkpoint: random weights, whose maps explain nothing."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.random_seed is None):
            raise ValueError("give either checkpoint (a weight file) or random_seed (a number)")
        return self

    def build(self, device: torch.device) -> VQAModel:
        if self.random_seed is not None:
            return freeze(self._untrained(self.random_seed).to(device))
        assert self.checkpoint is not None  # _one_source
        return freeze(self._read(self.checkpoint).to(device))

    @abstractmethod
    def _read(self, path: Path) -> VQAModel:
        """The model in the file."""

    @abstractmethod
    def _untrained(self, seed: int) -> VQAModel:
        """The published architecture with random weights."""


class DeeperLSTMSpec(_FileOrSeedSpec):
    """A Deeper LSTM Q + norm I from a checkpoint, or from a seed to try the geometry."""

    def _read(self, path: Path) -> VQAModel:
        return deeper_lstm.load(path)

    def _untrained(self, seed: int) -> VQAModel:
        return deeper_lstm.untrained(PUBLISHED_DEEPER, seed)


class SANSpec(_FileOrSeedSpec):
    """A stacked attention network from a checkpoint, or from a seed to try the geometry."""

    def _read(self, path: Path) -> VQAModel:
        return san.load(path)

    def _untrained(self, seed: int) -> VQAModel:
        return san.untrained(PUBLISHED_SAN, seed)


class _ShippedSpec(ModelSpec):
    """A small model whose weights are in the package."""

    file: ClassVar[str]
    made_by: ClassVar[str]

    def build(self, device: torch.device) -> VQAModel:
        path = WEIGHTS / self.file
        if not path.exists():
            raise UserError(f"{path} does not exist; make it with `{self.made_by}`")
        return freeze(self._read(path).to(device))

    def _read(self, path: Path) -> VQAModel:
        return kazemi.load(path)


class DemoSpec(_ShippedSpec):
    """The model of the embedded world of shapes."""

    file = "demo.safetensors"
    made_by = "make demo-model"


class EasyVQASpec(_ShippedSpec):
    """A model of easy-VQA (Victor Zhou, 2019)."""

    file = "easy_vqa.safetensors"
    made_by = "make easy-vqa-model"


class DemoLSTMSpec(_ShippedSpec):
    """The embedded world's model with a combine layer: a small Deeper LSTM Q + norm I."""

    file = "demo_lstm.safetensors"
    made_by = "make demo-lstm-model"

    def _read(self, path: Path) -> VQAModel:
        return deeper_lstm.load(path)
