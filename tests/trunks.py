"""Convolutional trunks with random weights and statistics, and pictures for them."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from workers.models import trunks
from workers.sweep.program import INPUT, Program


def network(name: str) -> nn.Module:
    """One of ours by its name, as it is initialised there. It is laid out without memory first:
    drawing the weights of a classifier that is thrown away can take seconds."""
    with torch.device("meta"):
        if name in TRANSFORMED:
            trunk: nn.Module = trunks.Inception(name.removeprefix("transformed_"), transform=True)
        else:
            trunk = trunks.TRUNKS[name]((8, 12, 16))
    trunk.to_empty(device="cpu")
    for module in trunk.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return trunk


TRANSFORMED = ("transformed_googlenet", "transformed_inception_v3")
"""With ``transform_input``, as torchvision's own weights want it."""


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
