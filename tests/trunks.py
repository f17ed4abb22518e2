"""Torchvision's convolutional networks without their classifiers, random weights and statistics."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, vgg
from torchvision.ops import SqueezeExcitation

from workers.models import trunks
from workers.sweep.program import INPUT, Program

CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


class BeforePooling(nn.Sequential):
    """GoogLeNet and Inception v3: an optional shuffle of the input's colours, then all children
    before the pooling."""

    def __init__(self, name: str, transform_input: bool) -> None:
        options = {"aux_logits": False, "init_weights": False, "transform_input": transform_input}
        network = get_model(name, weights=None, **options)
        names = [child for child, _ in network.named_children()]
        super().__init__(*list(network.children())[: names.index("avgpool")])
        self.transform: Callable[[Tensor], Tensor] = network._transform_input

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.transform(x))


def _features(name: str) -> nn.Module:
    return get_model(name, weights=None).features


def _resnet(name: str) -> nn.Module:
    return nn.Sequential(*list(get_model(name, weights=None).children())[:-2])


def _vgg(name: str) -> nn.Module:
    """The layers alone: the classifier's weights take seconds to draw."""
    batch_norm = name.endswith("_bn")
    letter = CONFIGURATIONS[name.removesuffix("_bn")]
    return vgg.make_layers(vgg.cfgs[letter], batch_norm=batch_norm)


def _regnet(name: str) -> nn.Module:
    network = get_model(name, weights=None)
    return nn.Sequential(network.stem, network.trunk_output)


def _shufflenet(name: str) -> nn.Module:
    return nn.Sequential(*list(get_model(name, weights=None).children())[:-1])


def _mnasnet(name: str) -> nn.Module:
    return get_model(name, weights=None).layers


def _ours(name: str) -> nn.Module:
    return trunks.TRUNKS[name]((8, 12, 16))


Builder = Callable[[str], nn.Module]
BUILDERS: dict[str, Builder] = {
    "resnet152_caffe": _ours,
    "small": _ours,
    "resn": _resnet,
    "wide_resnet": _resnet,
    "vgg": _vgg,
    "densenet": _features,
    "mobilenet": _features,
    "efficientnet": _features,
    "convnext": _features,
    "squeezenet": _features,
    "regnet": _regnet,
    "shufflenet": _shufflenet,
    "mnasnet": _mnasnet,
    "googlenet": partial(BeforePooling, transform_input=False),
    "inception_v3": partial(BeforePooling, transform_input=False),
}
"""By the beginning of the name; ``transformed_`` before it: with ``transform_input``."""


def network(name: str) -> nn.Module:
    """By torchvision's name of the network or ours, as it is initialised there."""
    if name.startswith("transformed_"):
        return BeforePooling(name.removeprefix("transformed_"), transform_input=True)
    return next(make for start, make in BUILDERS.items() if name.startswith(start))(name)


def build(name: str, seed: int = 0) -> nn.Module:
    """A frozen float64 trunk with random weights and statistics."""
    torch.manual_seed(seed)
    trunk = network(name).eval().requires_grad_(False)
    randomise(trunk)
    return trunk.double()


def picture(side: int, seed: int) -> Tensor:
    """Colours, blobs and grain ``(3, side, side)``: noise of one scale alone is much the same
    everywhere to a deep network."""
    generator = torch.Generator().manual_seed(seed)
    layers = (torch.randn(1, 3, n, n, generator=generator) for n in (1, 4, side // 4, side))
    return sum(F.interpolate(layer, (side, side), mode="bilinear")[0] for layer in layers) / 2


@torch.no_grad()
def randomise(trunk: nn.Module) -> None:
    """Random weights, scales and batch statistics. The statistics are those of a few
    pictures, disturbed: a signal stays alive through any depth, and rounding is not blown up."""
    modest: list[Tensor] = []
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, SqueezeExcitation):  # gates that differ, but do not amplify
            modest += [module.fc1.weight, module.fc2.weight]
    for weight in modest:
        weight *= 0.3
    for parameter in (p for n, p in trunk.named_parameters() if n.endswith("layer_scale")):
        nn.init.uniform_(parameter, 0.5, 1.5)
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.train().momentum = 1
    trunk(torch.stack([picture(75, seed) for seed in range(4)]))
    for norm in norms:
        norm.eval()
        norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn(norm.num_features)
        norm.running_var *= 0.5 + 1.5 * torch.rand(norm.num_features)


@torch.no_grad()
def resized(program: Program, height: int, width: int) -> Program:
    """The program for another input size, without another trace: no constant and no Mixing step of
    it may hang on the size."""
    assert not program.constants
    names = {INPUT, *(s.value for s in program.steps)}.intersection(program.shapes)
    pixels = torch.empty(1, 3, height, width, device="meta", dtype=torch.float64)
    values = program.to(torch.device("meta"), torch.float64).run(pixels, names)
    return replace(program, shapes={name: tuple(values[name].shape[1:]) for name in names})
