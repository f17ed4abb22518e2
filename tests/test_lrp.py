"""Relevance through the trunk against Zennit's own call, and the trunks it has no rules for."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zennit import composites
from zennit.attribution import Gradient
from zennit.torchvision import ResNetCanonizer

from pipeline.plan import obstacle
from tests import nets
from workers.methods.base import Scene
from workers.methods.lrp import LRP, Composite, trunk_of

RULED = ("plain", "reused", "resnet", "vgg")
CLASSES = {
    "epsilon_plus_flat": composites.EpsilonPlusFlat,
    "epsilon_plus": composites.EpsilonPlus,
    "epsilon_alpha2_beta1_flat": composites.EpsilonAlpha2Beta1Flat,
}


def scene_of(trunk: str) -> Scene:
    return nets.scene(nets.build(trunk, "pooled"), nets.QUESTIONS[:2])


def by_zennit(scene: Scene, name: Composite) -> np.ndarray:
    """Every row by ``Gradient`` with a composite, of a copy that writes nothing in place."""
    trunk = copy.deepcopy(scene.model.trunk_net)  # type: ignore[union-attr]
    for module in trunk.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    found = []
    for row in scene.rows:
        features = scene.features.clone().requires_grad_()
        with torch.enable_grad():
            logits = scene.split.head(features.clone(), scene.states[row.question][None]).logits
        (gradient,) = torch.autograd.grad(logits[0, row.answer], features)
        composite = CLASSES[name](canonizers=[ResNetCanonizer()])
        relevance = (features * gradient).detach()
        with Gradient(trunk, composite) as attributor:
            found.append(attributor(scene.pixels, relevance)[1][0].sum(0).numpy())
    return np.stack(found)


@pytest.mark.parametrize("trunk", RULED)
@pytest.mark.parametrize("composite", CLASSES)
def test_relevance_is_zennits_own_call(trunk: str, composite: Composite) -> None:
    scene = scene_of(trunk)
    weights = [p.clone() for p in scene.model.parameters()]
    found = LRP(composite=composite).explain(scene).arrays["map"]
    wanted = by_zennit(scene, composite)
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max())
    assert all(torch.equal(a, b) for a, b in zip(weights, scene.model.parameters(), strict=True))
    assert LRP(composite=composite).objection(scene.model) is None


def test_relevance_in_batches_is_the_same() -> None:
    scene = scene_of("resnet")
    whole = LRP().explain(scene).arrays["map"]
    scene = scene_of("resnet")
    scene.batch = 1
    np.testing.assert_allclose(LRP().explain(scene).arrays["map"], whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("trunk", "reason"),
    [
        ("functional", "has no rule for clamp, clamp_min, threshold"),
        ("parallel", "has no rule for add"),
        ("in_place", "has no rule for add_"),
        ("clipped", "has no rule for clamp_, hardtanh, mul"),
        ("dense", "cannot merge the batch normalisation"),
    ],
)
def test_trunk_without_rules_is_refused(trunk: str, reason: str) -> None:
    """Zennit itself lets gradients through, or merges the wrong pair, and gives a map."""
    model = nets.build(trunk, "pooled")
    told = obstacle(LRP(), model)
    assert told is not None
    assert told.startswith(reason)
    assert "Remove the method." in told


class Twice(nn.Module):
    """One convolution at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nets.conv(3, 6, 2), nets.conv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(self.again(torch.relu(self.again(x))))


def test_layer_that_is_called_twice_is_refused() -> None:
    model = nets.TinyVQA(Twice(), "pooled").eval().double().requires_grad_(False)
    assert "trunk_net.again is called more than once" in str(LRP().objection(model))


def test_rule_for_the_first_layer_goes_to_the_trunks() -> None:
    scene = scene_of("vgg")
    canvas = scene.canvas[None].to(scene.model.dtype)
    assert trunk_of(scene.split, canvas) is not scene.model
    inside = set(trunk_of(scene.split, canvas).modules())
    assert inside <= set(scene.model.trunk_net.modules())  # type: ignore[union-attr]
