"""A VGG's weights (Simonyan and Zisserman 2015) under torchvision's names or under Caffe's."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.errors import UserError
from workers.models.checkpoints import load_weights, read_state_dict

CAFFE = re.compile(r"(conv|fc)(\d+)(?:_(\d+))?\.(weight|bias)")
"""``conv1_1.weight`` to ``conv5_4.bias``, ``fc6.weight`` to ``fc8.bias``."""
FIRST_FULLY = 6
"""Caffe counts fully connected layers on from the five blocks; in torchvision's ``classifier``
they are every third module, counted from 0."""
OLDER = {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}
"""torchvision's names before dropout moved behind the layers; jcjohnson/pytorch-vgg's
``vgg19-d01eb7cb.pth``, which is Caffe's VGG-19, has them."""
TORCHVISION = torch.tensor([-5.3474e-02, -4.9257e-02, -6.7942e-02])
"""How the first kernel of torchvision's own VGG-19 begins, which takes RGB in 0..1 normalised: the
same names and shapes, and every answer would be wrong."""
REMEDY = (
    "give the state_dict of the trunk {trunk!r} under torchvision's names (features.0.weight) or "
    "Caffe's (conv1_1.weight), converted from the Caffe weights that the model was trained on"
)


def load_vgg(features: nn.Module, fully: nn.Sequential | None, path: Path, trunk: str) -> None:
    """Give a trunk, and the fully connected layers after it, their weights from a state_dict
    (.pth or .safetensors). Layers of the file beyond ``fully`` classify ImageNet and are left out.
    """
    parts = {"features": features, **({} if fully is None else {"classifier": fully})}
    wanted = nn.ModuleDict(parts)
    found = _torchvision_names(read_state_dict(path), features, path)
    _refuse_torchvision(found, path)
    beyond = 0 if fully is None else len(fully)
    kept = {name: tensor for name, tensor in found.items() if _place(name) < beyond}
    load_weights(wanted, kept, path, REMEDY.format(trunk=trunk))


def _refuse_torchvision(found: Mapping[str, Tensor], path: Path) -> None:
    first = found.get("features.0.weight", TORCHVISION[:0]).float().flatten()[:3]
    if len(first) == 3 and torch.allclose(first, TORCHVISION, rtol=0, atol=1e-6):
        raise UserError(
            f"{path} is torchvision's own VGG-19, trained on RGB in 0..1; give Caffe's "
            "(VGG_ILSVRC_19_layers), which takes BGR in 0..255 and the model was trained on"
        )


def _place(name: str) -> int:
    """The number of a module of ``classifier``, and -1 for all else."""
    number = re.fullmatch(r"classifier\.(\d+)\.\w+", name)
    return int(number[1]) if number else -1


def _torchvision_names(
    found: Mapping[str, Tensor], features: nn.Module, path: Path
) -> dict[str, Tensor]:
    """Caffe's ``convB_K`` are the trunk's convolutions in the order of block and number."""
    places = [name for name, part in features.named_modules() if isinstance(part, nn.Conv2d)]
    matches = {name: CAFFE.fullmatch(name) for name in found}
    numbers = {(int(m[2]), int(m[3] or 0)) for m in matches.values() if m and m[1] == "conv"}
    if len(numbers) > len(places):
        raise UserError(
            f"{path} has {len(numbers)} convolutions, the trunk {len(places)}; give weights of "
            "the same network"
        )
    place = dict(zip(sorted(numbers), places, strict=False))
    named = {}
    for name, tensor in found.items():
        match = matches[name]
        if match is None:
            part, _, kind = name.rpartition(".")
            named[f"{OLDER.get(part, part)}.{kind}"] = tensor
        elif match[1] == "conv":
            named[f"features.{place[int(match[2]), int(match[3] or 0)]}.{match[4]}"] = tensor
        else:
            named[f"classifier.{3 * (int(match[2]) - FIRST_FULLY)}.{match[4]}"] = tensor
    return named
