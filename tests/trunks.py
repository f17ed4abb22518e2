"""Convolutional trunks with random weights and statistics, and pictures for them."""

from dataclasses import replace
from math import ceil, gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.efficientnet import FusedMBConv, MBConv
from torchvision.ops import SqueezeExcitation

from workers.models import trunks
from workers.sweep.program import INPUT, Program


def network(name: str, part: int = 1) -> nn.Module:
    """One of ours by its name, as it is initialised there, with one in ``part`` of its channels.
    It is laid out without memory first: drawing the weights of a classifier that is thrown away
    can take seconds."""
    with torch.device("meta"):
        if name in TRANSFORMED:
            trunk: nn.Module = trunks.Inception(name.removeprefix("transformed_"), transform=True)
        else:
            trunk = trunks.TRUNKS[name]((8, 12, 16))
        if part > 1:
            thin(trunk, part)
    trunk.to_empty(device="cpu")
    for module in trunk.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return trunk


TRANSFORMED = ("transformed_googlenet", "transformed_inception_v3")
"""With ``transform_input``, as torchvision's own weights want it."""


def thin(trunk: nn.Module, part: int) -> None:
    """Leave one in ``part`` of the channels of every layer. Kernels, strides, paddings and the
    way from layer to layer stay, so windows grow as they do in the whole trunk."""
    for name, module in [*trunk.named_modules()]:
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear | nn.LayerNorm):
            trunk.set_submodule(name, thinner(module, part))
        elif isinstance(module, CNBlock):
            channels = fewer(len(module.layer_scale), part)
            module.layer_scale = nn.Parameter(module.layer_scale[:channels])


def thinner(module: nn.Module, part: int) -> nn.Module:
    """The same layer between fewer channels, initialised anew."""
    if isinstance(module, nn.Conv2d):
        inputs, outputs = fewer(module.in_channels, part), fewer(module.out_channels, part)
        layout = (module.kernel_size, module.stride, module.padding, module.dilation)
        groups = gcd(module.groups, inputs, outputs)
        return nn.Conv2d(inputs, outputs, *layout, groups, module.bias is not None)
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(fewer(module.num_features, part), module.eps)
    if isinstance(module, nn.Linear):
        return nn.Linear(fewer(module.in_features, part), fewer(module.out_features, part))
    assert isinstance(module, nn.LayerNorm)
    return type(module)(fewer(module.normalized_shape[0], part), module.eps)


def fewer(channels: int, part: int) -> int:
    """A picture's three stay."""
    return channels if channels == 3 else ceil(channels / part)


def build(name: str, seed: int = 0, part: int = 1) -> nn.Module:
    """A frozen float64 trunk with random weights and statistics."""
    torch.manual_seed(seed)
    trunk = network(name, part).eval().requires_grad_(False)
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
    for block in (m for m in trunk.modules() if isinstance(m, MBConv | FusedMBConv)):
        if block.use_res_connect:  # up to a hundred of them
            last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
            last.weight *= 0.2
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
