"""Maps that have seen neither image nor model; a method that does not beat them says nothing."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from schemas.arrays import ArraySpec
from workers.methods.base import ImageMethod, Maps, Scene
from workers.models.base import Capability, Geometry


class _Baseline(ImageMethod):
    needs: ClassVar[frozenset[Capability]] = frozenset()
    grid: int = Field(14, ge=1)
    """Cells along each side; 14 is the grid of Goyal et al.'s rank correlation."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        return (ArraySpec(name="map", dims=("y", "x"), shape=(self.grid, self.grid)),)


class Random(_Baseline):
    """Uniform noise in [0, 1), the same for an example on every machine and in every run (the
    random baseline of Goyal et al. 2016, table 1)."""

    seed: int = Field(0, ge=0)

    def explain(self, scene: Scene) -> Maps:
        maps = [self._noise(scene.question_ids[row.question]) for row in scene.rows]
        return Maps({"map": np.stack(maps)})

    def _noise(self, question_id: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, question_id])
        return generator.random((self.grid, self.grid), dtype=np.float32)


class Center(_Baseline):
    """A centred Gaussian, ``exp(-(u^2 + v^2) / (2 sigma^2))`` with u, v from the centre in units of
    the side: human attention is biased to the centre (Tatler 2007)."""

    sigma: float = Field(0.25, gt=0)
    """Standard deviation, as a fraction of the side."""

    def explain(self, scene: Scene) -> Maps:
        offsets = (np.arange(self.grid) + 0.5) / self.grid - 0.5
        profile = np.exp(-(offsets**2) / (2 * self.sigma**2))
        gaussian = np.outer(profile, profile).astype(np.float32)
        return Maps({"map": np.repeat(gaussian[None], len(scene.rows), 0)})
