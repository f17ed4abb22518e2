"""Max-sensitivity: how far a map moves when the image hardly does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from workers.checks.base import (
    Check,
    Explained,
    Passes,
    Subject,
    distinct_rows,
    keeps_graph,
    maps_again,
    scene_like,
)
from workers.errors import BadExample
from workers.methods.base import ImageMethod, Scene
from workers.metrics.base import DEGENERATE_MODEL, Scores
from workers.models.base import VQAModel
from workers.sweep import patches


class MaxSensitivity(Check):
    """``max_d |phi(x + d) - phi(x)| / |phi(x)|`` over perturbations d of at most ``radius``, the
    answer held fixed (Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations",
    definition 3; the maximum is taken over random d as in their section 6).

    Norms are Frobenius norms of the whole map. The paper does not divide by the map's norm; maps
    of different methods have different units, so here it is (as in Captum). Each channel of each
    pixel moves by a uniform amount in ``[-radius, radius]``, and stays in 0..255. A constant map is
    ``degenerate_model``.
    """

    names: ClassVar[tuple[str, ...]] = ("max_sensitivity",)
    draws: int = Field(10, ge=1)
    radius: float = Field(5.1, gt=0, le=255)
    """In levels of 0..255; by default 2 % of the range."""
    max_passes: int = Field(0, ge=0)
    """Methods that cost more trunk passes an image are left out: each draw pays them again. With 0
    sweeps (occlusion, RISE) are."""

    def conventions(self) -> str:
        return (
            f"largest of {self.draws} uniform perturbations of {self.radius:g} of 255 levels; "
            "Frobenius norm over the map's own"
        )

    def applies(self, method: ImageMethod, model: VQAModel) -> bool:
        return method.passes(model.geometry) <= self.max_passes

    def passes(self, methods: Mapping[str, ImageMethod], model: VQAModel) -> Passes:
        each = 1 + sum(method.passes(model.geometry) for method in methods.values())
        return Passes(self.draws * each, 0)

    def score(
        self, subject: Subject, scene: Scene, explained: Sequence[Explained]
    ) -> dict[str, Scores]:
        rows = distinct_rows(explained)
        own = [e.values.astype(np.float64) for e in explained]
        moved = np.zeros(len(own))
        for canvas in self._perturbed(scene.canvas):
            other = scene_like(
                scene, rows, canvas=canvas, engine=subject.engine, gradients=keeps_graph(explained)
            )
            again = maps_again(other, explained, rows)
            distances = [np.linalg.norm(a - b) for a, b in zip(again, own, strict=True)]
            if not np.isfinite(distances).all():
                raise BadExample("max_sensitivity: a map of the perturbed image is not finite")
            moved = np.maximum(moved, distances)
        flat = np.array([np.ptp(values) == 0 for values in own])
        norms = np.array([np.linalg.norm(values) for values in own])
        faults = {DEGENERATE_MODEL: flat}
        return {"max_sensitivity": Scores.where(moved / np.where(flat, 1, norms), faults)}

    def _perturbed(self, canvas: Tensor) -> Iterator[Tensor]:
        numbers = patches.generator(canvas, self.seed)
        for _ in range(self.draws):
            change = torch.from_numpy(numbers.uniform(-self.radius, self.radius, canvas.shape))
            yield (canvas + change.to(canvas)).clamp(0, 255)
