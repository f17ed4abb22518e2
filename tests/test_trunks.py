"""Torchvision's trunks through the incremental engine: exact, and dense only where it must be.

``VQATLAS_TRUNKS=all pytest tests/test_trunks.py -k every`` for every trunk, side and grid, which
takes many hours; ``-k "every and thin"`` with an eighth of their channels, which takes one;
``VQATLAS_TRUNKS=resnet101,vgg19`` for some; ``VQATLAS_DEVICE=cuda`` on a GPU.
"""

import os
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from tests import sweeps, trunks
from tests.reference import incremental as reference
from workers.methods.base import Scene
from workers.models.base import freeze
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.trunks import TRUNKS
from workers.sweep import plain
from workers.sweep.engine import Engine, Options
from workers.sweep.program import Program
from workers.sweep.schedule import Schedule
from workers.sweep.trace import trace
from workers.sweep.windows import Windows, grid_windows, paint

CONVOLUTIONAL = {
    "resnet18": (225, 16),
    "resnet50": (97, 32),
    "resnet152_caffe": (97, 8),
    "vgg11_bn": (130, 16),
    "densenet121": (97, 16),
    "mobilenet_v2": (130, 16),
    "convnext_tiny": (97, 32),
    "regnet_x_400mf": (225, 32),
    "googlenet": (130, 8),
    "transformed_inception_v3": (97, 16),
    "squeezenet1_1": (225, 32),
    "mnasnet0_5": (97, 16),
}
GATED = {
    "mobilenet_v3_small": (97, 32),
    "efficientnet_v2_s": (97, 16),
    "regnet_y_400mf": (130, 16),
}
"""Side of the image and grid. Squeeze-and-excitation gates see the whole map: what follows the
first of them changes everywhere."""
SIZES = {**CONVOLUTIONAL, **GATED}
DEVICE = torch.device(os.environ.get("VQATLAS_DEVICE", "cpu"))
NAMED = os.environ.get("VQATLAS_TRUNKS", "")
ASKED = [*TRUNKS, *trunks.TRANSFORMED] if NAMED == "all" else NAMED.split(",") if NAMED else []
SIDES = (97, 130, 224, 225, 448)
GRIDS = (8, 16, 32)


@cache
def built(name: str, part: int = 1) -> nn.Module:
    return trunks.build(name, part=part).to(DEVICE)


@cache
def traced(name: str) -> tuple[nn.Module, Program]:
    """A trunk and its program; it is traced once, because that is what takes the time."""
    trunk, side = built(name), SIZES.get(name, (97,))[0]
    return trunk, program_of(trunk, side)


def program_of(trunk: nn.Module, side: int) -> Program:
    pixels = torch.zeros(2, 3, side, side, dtype=torch.float64, device=DEVICE)
    return trace(trunk, pixels).to(DEVICE, torch.float64)


@pytest.mark.parametrize("name", SIZES)
def test_features_equal_the_trunks_on_the_painted_image(name: str) -> None:
    (trunk, program), (side, grid) = traced(name), SIZES[name]
    found, wanted = both(trunk, program, side, grid)
    assert sweeps.relative(found, wanted) < 1e-12
    assert min(changes(trunk, side, wanted)) > 1e-3


@pytest.mark.skipif(not NAMED, reason="takes hours: VQATLAS_TRUNKS=all")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("part", [1, 8], ids=["whole", "thin"])
@pytest.mark.parametrize("name", ASKED)
def test_every_trunk_at_every_side_and_grid(name: str, part: int, side: int) -> None:
    """With all of its channels or an eighth of them.

    Not every cell changes something: Inception v3 does not see the last of 97 pixels. And not
    every net keeps rounding small: EfficientNet v2 L blows it up ten million times, a thin b7
    thousands of times on one of the painted images."""
    trunk = built(name, part)
    program = program_of(trunk, side)
    for grid in GRIDS:
        found, wanted = both(trunk, program, side, grid)
        error = sweeps.relative(found, wanted)
        assert error < 1e-12 or error < min(20 * shaken(trunk, side, grid, wanted), 1e-6)
        assert max(changes(trunk, side, wanted)) > 1e-3


def both(trunk: nn.Module, program: Program, side: int, grid: int) -> tuple[Tensor, Tensor]:
    """Features of cells at every border and in the middle, by windows and of whole images."""
    windows, cells = painted_cells(side, grid)
    groups = sweeps.planned(program, windows, 4, cells)
    found = sweeps.swept(program, groups, windows, *shown(side), cells)
    return found, reference.features(trunk, *shown(side), [windows[cell] for cell in cells])


def shown(side: int) -> tuple[Tensor, Tensor]:
    """The image, and what is painted."""
    image, fill = (trunks.picture(side, seed).to(DEVICE, torch.float64) for seed in (8, 9))
    return image, fill


def painted_cells(side: int, grid: int) -> tuple[Windows, list[int]]:
    windows = grid_windows(side, side, grid)
    return windows, sweeps.borders(windows)


@torch.inference_mode()
def shaken(trunk: nn.Module, side: int, grid: int, features: Tensor) -> float:
    """How much the features of the painted images change, at most, when their pixels do in their
    last digits, in four ways."""
    windows, cells = painted_cells(side, grid)
    image, fill = shown(side)
    painted = paint(image, [windows[cell] for cell in cells], fill)
    source = torch.Generator().manual_seed(0)
    noises = (torch.randn(painted.shape, generator=source).to(painted) for _ in range(4))
    return max(sweeps.relative(trunk(painted * (1 + 1e-15 * noise)), features) for noise in noises)


@torch.inference_mode()
def changes(trunk: nn.Module, side: int, painted: Tensor) -> list[float]:
    """How far features of painted images are from the image's."""
    (clean,) = trunk(shown(side)[0][None])
    return [sweeps.relative(clean, features) for features in painted]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_trunks_are_windows_throughout(name: str) -> None:
    _, program = traced(name)
    assert not [step for step in program.steps if step.operation.mixes]
    assert flop_ratio(program) > 1.2


@pytest.mark.parametrize("name", GATED)
def test_gated_trunks_are_windows_up_to_the_first_gate(name: str) -> None:
    _, program = traced(name)
    kinds = [type(step.operation).__name__ for step in program.steps]
    mixing = [i for i, step in enumerate(program.steps) if step.operation.mixes]
    assert kinds.count("Mixing") * 2 == len(mixing)
    assert {kinds[i] for i in mixing} == {"Mixing", "Pointwise"}
    assert "Convolution" in kinds[: mixing[0]]
    assert flop_ratio(program) > 1.02


@pytest.mark.parametrize(
    ("name", "ratio"), [("resnet18", 2.75), ("resnet50", 2.62), ("vgg16", 9.54)]
)
def test_multiply_adds_are_as_few_as_interval_arithmetic_by_hand_found(
    name: str, ratio: float
) -> None:
    """Of four groups an axis, as an independent prototype counted them."""
    assert flop_ratio(traced(name)[1]) == pytest.approx(ratio, rel=0.05)


def flop_ratio(program: Program) -> float:
    """At 224 pixels, of the cells of a grid of 16 in four groups an axis."""
    program, windows = trunks.resized(program, 224, 224), grid_windows(224, 224, 16)
    return Schedule(program, windows, tuple(sweeps.planned(program, windows, 4)), 0).flop_ratio


@pytest.mark.parametrize(
    ("name", "side", "grid"), [("resnet18", 130, 8), ("vgg11", 97, 8), ("squeezenet1_1", 97, 7)]
)
def test_probabilities_in_float32_are_those_of_the_plain_sweep(
    name: str, side: int, grid: int
) -> None:
    model = sharpened(name, side)
    canvas, fill = (127 + 60 * trunks.picture(side, seed) for seed in (8, 9))
    scene = Scene(model, canvas, [("a", "b"), ("c",)], [1, 2], [None, None])
    windows = grid_windows(side, side, grid)
    wanted = plain.sweep(scene, windows, fill)
    found = Engine(model, Options(way="incremental")).sweep(scene, windows, fill)
    for q, answer in enumerate(scene.predictions):
        ours, theirs = (x.painted[:, q].double().softmax(1) for x in (found, wanted))
        assert 0.1 < wanted.clean[q].softmax(0)[answer] < 0.8
        assert theirs[:, answer].std() > 1e-4
        assert (ours - theirs).abs().max() < 1e-5
        assert spearmanr(ours[:, answer], theirs[:, answer]).statistic >= 0.9999
    torch.testing.assert_close(found.clean, wanted.clean, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not NAMED, reason="takes hours: VQATLAS_TRUNKS=all")
@pytest.mark.parametrize("side", [224, 448])
@pytest.mark.parametrize("name", ASKED)
def test_every_trunk_in_float32(name: str, side: int) -> None:
    """A third of the cells of a grid of 16, within 1e-5 of plain passes, or within twice what
    plain passes of another batch and layout differ by."""
    model = sharpened(name, side).to(DEVICE)
    canvas, fill = (127 + 60 * trunks.picture(side, seed).to(DEVICE) for seed in (8, 9))
    scene = Scene(model, canvas, [("a", "b"), ("c",)], [1, 2], [None, None])
    windows = grid_windows(side, side, 16)
    cells = sorted({*range(0, len(windows), 3), *sweeps.borders(windows)})
    found = Engine(model, Options(way="incremental")).sweep(scene, windows, fill, only=cells)
    wanted = plain.sweep(scene, windows, fill, cells)
    model.to(memory_format=torch.channels_last)
    other = plain.sweep(replace(scene, batch=3, shared={}), windows, fill, cells[:9])
    for q, answer in enumerate(scene.predictions):
        ours, theirs, others = (x.painted[:, q].softmax(1) for x in (found, wanted, other))
        rounding = (others - theirs[:9]).abs().max()
        print(f"difference {(ours - theirs).abs().max():.1e}, between plain passes {rounding:.1e}")
        assert theirs[:, answer].std() > 5e-5
        assert (ours - theirs).abs().max() < max(1e-5, 2 * rounding)
        assert spearmanr(ours[:, answer].cpu(), theirs[:, answer].cpu()).statistic >= 0.9999


def sharpened(name: str, side: int) -> Kazemi:
    """A model around a trunk whose top probability, on a picture, is 0.4."""
    torch.manual_seed(0)
    layout = {"trunk": name, "image_size": side, "words": ("a", "b", "c")}
    model = Kazemi(KazemiConfig(**layout, answers=tuple(map(str, range(300)))))
    freeze(model)
    trunks.randomise(model.trunk_net)
    model.attention.x_conv.weight.mul_(30)
    logits = model.logits(127 + 60 * trunks.picture(side, 8)[None], [("a", "b")])[0]
    scales = torch.logspace(-2, 4, 1000)
    top = torch.softmax(scales[:, None] * logits, 1).amax(1)
    scale = scales[(top - 0.4).abs().argmin()]
    for parameter in model.classifier.lin2.parameters():
        parameter.mul_(scale)
    return model
