"""Methods of Captum, as it computes them: this module only tells it what to explain.

Kokhlikyan et al. 2020, "Captum: A unified and generic model interpretability library for PyTorch".
The library's name and version go into the run's definition of the method.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.errors import UserError
from workers.methods.base import ImageMethod, Maps, Row, Scene, Score, scores
from workers.methods.gradients import PixelMethod, Reduction
from workers.models.base import Capability, Geometry
from workers.sweep import patches
from workers.sweep.windows import grid_windows

CAPTUM = f"captum {version('captum')}"
"""Imported where it is used: it brings a plotting library, and takes a second."""
ITERATIONS = 100_000
"""Of the Lasso, at most; one that has not converged by then is the example's failure."""
Forward = Callable[[Tensor], Tensor]


class IntegratedGradients(PixelMethod):
    """``(x - x') int_0^1 d f(x' + a (x - x')) / d x da`` from a baseline ``x'`` of one colour
    (Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", equation 1), by
    ``captum.attr.IntegratedGradients`` with Gauss-Legendre quadrature.

    A map sums up to ``f(x) - f(x')`` where the channels are summed up, as by default.
    """

    library: ClassVar[str | None] = CAPTUM
    reduction: Reduction = "sum"
    steps: PositiveInt = 50
    """Points of the quadrature: a forward and a backward pass each, for every row."""
    patch: patches.Colour = patches.GRAY
    """The baseline's colour, RGB in 0..255 before normalisation."""

    def passes(self, geometry: Geometry) -> int:
        return self.steps

    def explain(self, scene: Scene) -> Maps:
        start = _painted(scene, self.patch)
        maps = [self._of(scene, row, start) for row in scene.rows]
        return self._reduced(torch.cat(maps))

    def _of(self, scene: Scene, row: Row, start: Tensor) -> Tensor:
        """Captum splits the points up by ``internal_batch_size``; a batch holds one at least."""
        from captum import attr

        explainer = attr.IntegratedGradients(_forward(scene, row, self.score))
        return explainer.attribute(
            scene.entered, start, n_steps=self.steps, internal_batch_size=scene.batch
        ).detach()


class SmoothGrad(PixelMethod):
    """The mean gradient over noisy copies of the image (Smilkov et al. 2017, "SmoothGrad: removing
    noise by adding noise", equation in section 3), by ``captum.attr.NoiseTunnel``.

    Signed gradients are averaged, then reduced over the channels. With one sample and no noise it
    is the gradient.
    """

    library: ClassVar[str | None] = CAPTUM
    samples: PositiveInt = 25
    """n; the paper sees little change above 50."""
    noise: float = Field(0.15, ge=0)
    """Standard deviation over the range of the input's values; the paper has 0.1 to 0.2."""
    seed: int = Field(0, ge=0)

    def passes(self, geometry: Geometry) -> int:
        return self.samples

    def explain(self, scene: Scene) -> Maps:
        return self._reduced(torch.cat([self._of(scene, row) for row in scene.rows]))

    def _of(self, scene: Scene, row: Row) -> Tensor:
        from captum import attr

        pixels = scene.entered.clone().requires_grad_()
        explainer = attr.NoiseTunnel(attr.Saliency(_forward(scene, row, self.score)))
        with _seeded(scene, row, self.seed):
            return explainer.attribute(
                pixels,
                nt_type="smoothgrad",
                nt_samples=self.samples,
                nt_samples_batch_size=1,  # one draw of noise whatever the batch
                stdevs=self.noise * float(scene.entered.max() - scene.entered.min()),
                abs=False,
            ).detach()


class _Surrogate(ImageMethod, ABC):
    """A linear model of the score over grid cells that are seen or painted over.

    Array ``map (row, y, x)`` over ``grid x grid`` cells. It asks for nothing but logits.
    """

    library: ClassVar[str | None] = CAPTUM
    grid: int = Field(8, ge=2)
    """Cells along each side."""
    samples: int = Field(500, ge=2)
    """Painted images, for every row; fewer than cells leave the linear model undetermined."""
    seed: int = Field(0, ge=0)
    patch: patches.Colour = patches.GRAY
    """What a hidden cell shows, RGB in 0..255 before normalisation."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        sides = (geometry.input_height, geometry.input_width)
        if self.grid > min(sides):
            raise UserError(
                f"a grid of {self.grid} cells does not fit an input of {sides[0]} x {sides[1]} "
                f"pixels; choose 2 to {min(sides)} cells."
            )
        return (ArraySpec(name="map", dims=("y", "x"), shape=(self.grid, self.grid)),)

    def passes(self, geometry: Geometry) -> int:
        return self.samples

    def explain(self, scene: Scene) -> Maps:
        cells = grid_cells(scene.canvas, self.grid)
        return Maps.of({"map": torch.stack([self._of(scene, row, cells) for row in scene.rows])})

    @torch.no_grad()
    def _of(self, scene: Scene, row: Row, cells: Tensor) -> Tensor:
        from sklearn.exceptions import ConvergenceWarning  # here: scikit-learn takes a second

        explainer = self._explainer(_forward(scene, row, self.score))
        with _seeded(scene, row, self.seed), warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            weights = explainer.attribute(
                scene.entered,
                _painted(scene, self.patch),
                feature_mask=cells,
                n_samples=self.samples,
                perturbations_per_eval=scene.batch,
                return_input_shape=False,
            )
        return weights.reshape(self.grid, self.grid).double()

    @abstractmethod
    def _explainer(self, forward: Forward) -> Any:
        """Captum's object."""


class Lime(_Surrogate):
    """Local linear surrogate with an L1 penalty (Ribeiro, Singh and Guestrin 2016, "Why Should I
    Trust You?", equation 1), by ``captum.attr.Lime`` with its default kernel.

    The segments are grid cells, not superpixels, so that all methods meet on one grid.
    """

    penalty: float = Field(0.01, gt=0)
    """Of the absolute weights, Captum's default; where no cell moves the score by much more, the
    map is zero everywhere, and recorded as degenerate."""

    def _explainer(self, forward: Forward) -> Any:
        from captum import attr
        from captum._utils.models.linear_model import SkLearnLasso

        lasso = SkLearnLasso(alpha=self.penalty, max_iter=ITERATIONS)
        return attr.Lime(forward, interpretable_model=lasso)


class KernelShap(_Surrogate):
    """Shapley values by weighted least squares (Lundberg and Lee 2017, "A Unified Approach to
    Interpreting Model Predictions", theorem 2), by ``captum.attr.KernelShap``.

    The values of all cells sum up to the score less that of the painted image.
    """

    def _explainer(self, forward: Forward) -> Any:
        from captum import attr

        return attr.KernelShap(forward)


def grid_cells(canvas: Tensor, grid: int) -> Tensor:
    """The number of each pixel's cell, ``(1, 1, y, x)``; the cells are those of occlusion."""
    _, height, width = canvas.shape
    windows = grid_windows(height, width, grid)
    y, x = (
        torch.tensor([i for i, (start, stop) in enumerate(side) for _ in range(start, stop)])
        for side in (windows.rows, windows.columns)
    )
    return (y[:, None] * grid + x)[None, None].to(canvas.device)


def _painted(scene: Scene, colour: patches.Colour) -> Tensor:
    """A canvas of one colour as the image enters the model, ``(1, 3, y, x)``."""
    canvas = patches.constant(scene.canvas, colour)[None].to(scene.model.dtype)
    return scene.split.normalise(canvas) if Capability.SPLIT in scene.model.provides else canvas


def _forward(scene: Scene, row: Row, score: Score) -> Forward:
    """``(n, 3, y, x) -> (n,)``, the score of one row's answer."""

    def forward(pixels: Tensor) -> Tensor:
        answers = torch.full((len(pixels),), row.answer, device=pixels.device)
        return scores(_logits(scene, row.question, pixels), answers, score)

    return forward


def _logits(scene: Scene, question: int, pixels: Tensor) -> Tensor:
    if Capability.SPLIT not in scene.model.provides:
        return scene.model.logits(pixels, [scene.questions[question]] * len(pixels))
    states = scene.states[question].expand(len(pixels), -1)
    features = scene.split.trunk(pixels.clone())
    return scene.split.head(features.clone(), states).logits  # either may overwrite its input


@contextmanager
def _seeded(scene: Scene, row: Row, seed: int) -> Iterator[None]:
    """Captum draws from the global generators: they are set for one row, and set back."""
    told = f"{seed} {scene.question_ids[row.question]} {row.answer}".encode()
    device = scene.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(sha256(told).digest()[:8]) >> 1)
        yield
