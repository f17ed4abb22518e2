"""Methods through Captum against Captum's own calls, and the identities they must keep."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from captum import attr
from captum._utils.models.linear_model import SkLearnLasso
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from tests import nets
from tests.test_captum import Asked
from workers.errors import UserError
from workers.methods.adapters import IntegratedGradients, KernelShap, Lime, SmoothGrad, grid_cells
from workers.methods.base import ImageMethod, Scene
from workers.methods.gradients import InputXGradient, Saliency
from workers.sweep.patches import GRAY, constant
from workers.sweep.windows import grid_windows

SMALL: tuple[ImageMethod, ...] = (
    IntegratedGradients(steps=8),
    SmoothGrad(samples=3),
    Lime(grid=3, samples=30, penalty=1e-4),
    KernelShap(grid=3, samples=30),
)
TRUNKS = ("plain", "functional", "resnet")


@pytest.fixture(params=TRUNKS)
def scene(request: pytest.FixtureRequest) -> Scene:
    return nets.scene(nets.build(request.param, "pooled"), nets.QUESTIONS[:1])


def gray(scene: Scene) -> Tensor:
    return scene.split.normalise(constant(scene.canvas, GRAY)[None])


def first(method: ImageMethod, scene: Scene) -> np.ndarray:
    return method.explain(scene).arrays["map"][0]


def close(got: np.ndarray, wanted: Tensor) -> None:
    wanted = wanted.detach()
    assert wanted.abs().max() > 0
    scale = float(wanted.abs().max())
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-9, atol=1e-9 * scale)


def test_integrated_gradients_is_captums_own_call(scene: Scene) -> None:
    wanted = attr.IntegratedGradients(Asked(scene.model)).attribute(
        scene.pixels, gray(scene), target=scene.rows[0].answer, n_steps=8
    )
    close(first(SMALL[0], scene), wanted[0].sum(0))


def test_input_x_gradient_is_captums_own_call(scene: Scene) -> None:
    pixels = scene.pixels.clone().requires_grad_()
    wanted = attr.InputXGradient(Asked(scene.model)).attribute(pixels, target=scene.rows[0].answer)
    close(first(InputXGradient(), scene), wanted[0].sum(0))


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        (SMALL[2], partial(attr.Lime, interpretable_model=SkLearnLasso(alpha=1e-4))),
        (SMALL[3], attr.KernelShap),
    ],
    ids=["lime", "kernel_shap"],
)
def test_surrogate_is_captums_own_call(
    method: ImageMethod,
    theirs: Callable[[nn.Module], attr.Lime],
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the seed that the row is given."""
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", _watched(torch.manual_seed, seeds))
    found = first(method, scene)
    torch.manual_seed(seeds[0])
    with torch.no_grad():
        wanted = theirs(Asked(scene.model)).attribute(
            scene.pixels,
            gray(scene),
            target=scene.rows[0].answer,
            feature_mask=grid_cells(scene.canvas, 3),
            n_samples=30,
            return_input_shape=False,
        )
    close(found, wanted.reshape(3, 3).double())


def _watched(function: object, seen: list[int]) -> object:
    def seeded(seed: int) -> object:
        seen.append(seed)
        return function(seed)  # type: ignore[operator]

    return seeded


def test_integrated_gradients_adds_up_to_the_change_of_the_score(scene: Scene) -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1), as far as 400 steps reach."""
    answer = scene.rows[0].answer
    found = first(IntegratedGradients(steps=400), scene).sum()
    with torch.no_grad():
        seen, hidden = (Asked(scene.model)(x)[0, answer] for x in (scene.pixels, gray(scene)))
    assert found == pytest.approx(float(seen - hidden), rel=2e-2)


def test_kernel_shap_adds_up_to_the_change_of_the_score(scene: Scene) -> None:
    """Efficiency (Lundberg and Lee 2017, property 1)."""
    answer = scene.rows[0].answer
    found = first(KernelShap(grid=2, samples=64), scene).sum()
    with torch.no_grad():
        seen, hidden = (Asked(scene.model)(x)[0, answer] for x in (scene.pixels, gray(scene)))
    assert found == pytest.approx(float(seen - hidden), rel=1e-3)


def test_smooth_grad_of_one_sample_without_noise_is_the_gradient(scene: Scene) -> None:
    close(first(SmoothGrad(samples=1, noise=0), scene), torch.from_numpy(first(Saliency(), scene)))


def test_smooth_grad_is_the_mean_of_gradients_of_noisy_images(scene: Scene) -> None:
    """Many samples, so that Captum's noise and ours need not be the same."""
    answer, deviation = scene.rows[0].answer, 0.05 * float(np.ptp(scene.pixels.numpy()))
    noise = torch.randn(600, *scene.pixels.shape[1:], dtype=torch.float64)
    noisy = (scene.pixels + deviation * noise).requires_grad_()
    (gradients,) = torch.autograd.grad(Asked(scene.model, False)(noisy)[:, answer].sum(), noisy)
    found = first(SmoothGrad(samples=600, noise=0.05, reduction="sum"), scene)
    assert np.corrcoef(found.ravel(), gradients.mean(0).sum(0).numpy().ravel())[0, 1] > 0.9


@pytest.mark.parametrize("method", SMALL, ids=lambda m: type(m).__name__)
def test_batch_and_company_change_nothing_and_generators_are_left_alone(
    method: ImageMethod,
) -> None:
    model = nets.build("resnet", "pooled")
    together, alone = nets.scene(model), nets.scene(model, nets.QUESTIONS[1:2])
    alone.question_ids, alone.batch = together.question_ids[1:2], 1
    before = torch.random.get_rng_state()
    found = method.explain(together).arrays["map"]
    wanted = method.explain(alone).arrays["map"]
    assert torch.equal(torch.random.get_rng_state(), before)
    own = [i for i, row in enumerate(together.rows) if row.question == 1]
    np.testing.assert_allclose(found[own], wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


def test_lasso_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.methods.adapters.ITERATIONS", 1)
    scene = nets.scene(nets.build("resnet", "pooled"), nets.QUESTIONS[:1])
    with pytest.raises(ConvergenceWarning):
        Lime(grid=3, samples=30, penalty=1e-12).explain(scene)


def test_grid_finer_than_the_input_is_refused() -> None:
    geometry = nets.build("plain").geometry
    with pytest.raises(UserError, match="a grid of 21 cells does not fit an input of 24 x 20"):
        Lime(grid=21).arrays(geometry)
    (spec,) = Lime(grid=20).arrays(geometry)
    assert spec.shape == (20, 20)


def test_cells_are_as_equal_as_they_can_be() -> None:
    cells = grid_cells(torch.zeros(3, 7, 6), 3)[0, 0]
    assert cells.unique().tolist() == list(range(9))
    assert torch.bincount(cells.flatten()).tolist() == [4, 4, 4, 4, 4, 4, 6, 6, 6]


def test_cells_are_those_of_occlusion() -> None:
    cells = grid_cells(torch.zeros(3, 50, 37), 16)[0, 0]
    for number, (top, bottom, left, right) in enumerate(grid_windows(50, 37, 16)):
        assert (cells[top:bottom, left:right] == number).all()
