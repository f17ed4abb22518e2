"""Agreement with Captum where it is right, and what it gives where it is not (captum 0.9)."""

import numpy as np
import pytest
import torch
from captum import attr
from torch import Tensor, nn

from tests import nets
from tests.reference.gradients import pixel_gradient
from workers.methods.base import Scene
from workers.methods.gradients import (
    Deconvnet,
    GradCam,
    GuidedBackprop,
    GuidedGradCam,
    Saliency,
)
from workers.methods.occlusion import Occlusion
from workers.sweep.patches import GRAY, constant, fill
from workers.sweep.windows import grid_windows

pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning")
RULES = {
    Saliency: (attr.Saliency, {"abs": False}, "saliency"),
    GuidedBackprop: (attr.GuidedBackprop, {}, "guided"),
    Deconvnet: (attr.Deconvolution, {}, "deconvnet"),
}


class Asked(nn.Module):
    """A net and one question: pixels -> logits, the only form that Captum takes.

    ``tracked`` makes the question's state require a gradient, without which Captum cannot set its
    hooks on ReLUs of the question branch.
    """

    def __init__(self, model: nets.TinyVQA, tracked: bool = True) -> None:
        super().__init__()
        self.model = model
        words = model.words([nets.QUESTIONS[0]])
        self.state = model.encode(words).detach().requires_grad_(tracked)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.model.trunk(pixels)
        states = self.state.expand(len(pixels), -1)
        return self.model.head(features.clone(), states).logits


def scene_of(trunk: str) -> Scene:
    return nets.scene(nets.build(trunk, "pooled"), nets.QUESTIONS[:1])


def captum_map(scene: Scene, method: type[Saliency], tracked: bool = True) -> np.ndarray:
    theirs, options, _ = RULES[method]
    pixels = scene.pixels.clone().requires_grad_()
    explainer = theirs(Asked(scene.model, tracked))
    target = scene.rows[0].answer
    return explainer.attribute(pixels, target=target, **options)[0].detach().numpy().sum(0)


def our_map(scene: Scene, method: type[Saliency]) -> np.ndarray:
    return method(reduction="sum").explain(scene).arrays["map"][0]


def reference_map(scene: Scene, method: type[Saliency]) -> np.ndarray:
    asked = (scene.questions[0], scene.rows[0].answer)
    return pixel_gradient(scene.model, scene.canvas, *asked, "logit", RULES[method][2]).sum(0)


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, as a part of the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("trunk", ["plain", "in_place", "reused", "resnet", "vgg"])
def test_backpropagation_through_modules_in_sequence_equals_captum(
    trunk: str, method: type[Saliency]
) -> None:
    scene = scene_of(trunk)
    assert error(our_map(scene, method), captum_map(scene, method)) < 1e-12


@pytest.mark.parametrize("trunk", sorted(nets.TRUNKS.keys() - {"aliased"}))
def test_saliency_of_every_net_equals_captum(trunk: str) -> None:
    """Of all but the net that overwrites a ReLU's output, which autograd itself refuses."""
    scene = scene_of(trunk)
    assert error(our_map(scene, Saliency), captum_map(scene, Saliency)) < 1e-12


@pytest.mark.parametrize("trunk", ["plain", "functional", "dense"])
def test_grad_cam_before_its_relu_equals_captum(trunk: str) -> None:
    scene = scene_of(trunk)
    explainer = attr.LayerGradCam(Asked(scene.model), scene.model.trunk_net)
    wanted = explainer.attribute(scene.pixels, target=scene.rows[0].answer)
    arrays = GradCam().explain(scene).arrays
    assert error(arrays["signed"][0], wanted[0, 0].detach().numpy()) < 1e-12


def test_guided_grad_cam_equals_captum_told_to_interpolate_bilinearly() -> None:
    scene = scene_of("plain")
    explainer = attr.GuidedGradCam(Asked(scene.model), scene.model.trunk_net)
    pixels = scene.pixels.clone().requires_grad_()
    target = scene.rows[0].answer
    bilinear = explainer.attribute(pixels, target=target, interpolate_mode="bilinear")
    default = explainer.attribute(pixels, target=target)
    ours = GuidedGradCam(reduction="sum").explain(scene).arrays["map"][0]
    assert error(ours, bilinear[0].detach().numpy().sum(0)) < 1e-12
    assert error(ours, default[0].detach().numpy().sum(0)) > 0.01


def test_captum_misses_functional_relus() -> None:
    scene = scene_of("functional")
    theirs = captum_map(scene, GuidedBackprop)
    assert error(theirs, reference_map(scene, GuidedBackprop)) > 0.1
    assert error(our_map(scene, GuidedBackprop), reference_map(scene, GuidedBackprop)) < 1e-9


def test_captum_guided_backprop_of_a_net_without_modules_is_saliency() -> None:
    scene = nets.scene(nets.build("functional", "attention"), nets.QUESTIONS[:1])
    theirs = captum_map(scene, GuidedBackprop)
    assert error(theirs, captum_map(scene, Saliency)) < 1e-12
    assert error(our_map(scene, GuidedBackprop), theirs) > 0.1


@pytest.mark.parametrize(
    ("trunk", "method"),
    [("pre_activation", GuidedBackprop), ("pre_activation", Deconvnet), ("parallel", Deconvnet)],
)
def test_captum_errs_where_a_relu_shares_its_input_or_its_module(
    trunk: str, method: type[Saliency]
) -> None:
    scene = scene_of(trunk)
    wanted = reference_map(scene, method)
    assert error(captum_map(scene, method), wanted) > 0.1
    assert error(our_map(scene, method), wanted) < 1e-9


def test_captum_refuses_frozen_weights_with_a_relu_on_the_question_branch() -> None:
    scene = scene_of("plain")
    with pytest.raises(RuntimeError, match="cannot register a hook on a tensor that doesn't"):
        captum_map(scene, GuidedBackprop, tracked=False)
    wanted = reference_map(scene, GuidedBackprop)
    assert error(our_map(scene, GuidedBackprop), wanted) < 1e-9


def captum_occlusion(
    scene: Scene, window: tuple[int, int], stride: tuple[int, int], fill: Tensor
) -> np.ndarray:
    """The drop in the logit that Captum assigns to each pixel, rounded by it to float32."""
    explainer = attr.Occlusion(Asked(scene.model))
    wanted = explainer.attribute(
        scene.pixels,
        (3, *window),
        strides=(3, *stride),
        baselines=scene.model.normalise(fill[None]),
        target=scene.rows[0].answer,
    )
    return wanted[0, 0].detach().numpy()


def test_occlusion_of_a_dividing_grid_equals_captum() -> None:
    scene = scene_of("plain")
    drop = Occlusion(grid=4, score="logit").explain(scene).arrays["drop"][0]
    gray = constant(scene.canvas, GRAY)
    theirs = captum_occlusion(scene, (6, 5), (6, 5), gray)
    assert error(np.kron(drop, np.ones((6, 5))), theirs) < 2e-7


@pytest.mark.parametrize("patch", ["gray", "noise"])
@pytest.mark.parametrize(
    ("window", "stride"),
    [
        ((6, 5), (6, 5)),
        ((6, 5), (3, 5)),
        ((7, 9), (7, 9)),
        ((7, 9), (4, 5)),
        ((10, 3), (1, 2)),
        ((23, 20), (23, 20)),
        ((24, 1), (24, 1)),
    ],
)
def test_strided_occlusion_equals_captum(
    window: tuple[int, int], stride: tuple[int, int], patch: str
) -> None:
    scene = scene_of("plain")
    method = Occlusion(window=window, stride=stride, patch=patch, score="logit")
    shown = fill(scene.canvas, patch, None, 0)
    ours = method.explain(scene).arrays["map"][0]
    assert error(ours, captum_occlusion(scene, window, stride, shown)) < 2e-7


def test_captum_gives_the_remainder_of_a_ragged_grid_to_slivers() -> None:
    """Of 50 pixels in windows of 16, the last window has 2: equal pixels get unequal maps."""
    ones = torch.ones(1, 3, 50, 50)
    explainer = attr.Occlusion(lambda x: x.sum((1, 2, 3)))
    theirs = explainer.attribute(ones, (3, 16, 16), strides=(3, 16, 16))
    assert set(theirs.unique().tolist()) == {12, 96, 768}
    sizes = {(w.bottom - w.top) * (w.right - w.left) for w in grid_windows(50, 50, 3)}
    assert sizes == {16 * 16, 16 * 17, 17 * 17}
