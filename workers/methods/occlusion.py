"""Occlusion: how much an answer's score drops when a cell of the image is painted over."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.methods.base import ImageMethod, Maps, Scene, Score, score_drops
from workers.models.base import Geometry
from workers.sweep.plain import Sweep, sweep
from workers.sweep.windows import grid_windows


class Occlusion(ImageMethod):
    """``drop_ij = f(I) - f(I with cell ij painted)`` (Goyal et al. 2016, section 3.2; the idea is
    that of Zeiler and Fergus 2014, section 4.2).

    Arrays: ``drop`` of the chosen score and ``log_drop`` of the log-probability, both
    ``(row, y, x)`` over the grid's cells; ``top_answer (question, y, x)``, the answer each painted
    image gets. A side that the grid does not divide has cells that differ by one pixel.
    """

    primary: ClassVar[str] = "drop"
    score: Score = "probability"
    grid: int = Field(16, ge=1)
    """Cells along each side."""
    patch: tuple[float, float, float] = (123.68, 116.779, 103.939)
    """The painted colour, RGB in 0..255 before normalisation; the default is ImageNet's mean."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        grid_windows(geometry.input_height, geometry.input_width, self.grid)
        dims, shape = ("y", "x"), (self.grid, self.grid)
        return (
            ArraySpec(name="drop", dims=dims, shape=shape),
            ArraySpec(name="log_drop", dims=dims, shape=shape),
            ArraySpec(name="top_answer", dims=dims, shape=shape, dtype="int32", per_target=False),
        )

    def passes(self, geometry: Geometry) -> int:
        return self.grid**2

    def explain(self, scene: Scene) -> Maps:
        swept = scene.once(("occlusion", self.grid, self.patch), lambda: self._sweep(scene))
        arrays = {
            "drop": self._drops(scene, swept, self.score),
            "log_drop": self._drops(scene, swept, "log_probability"),
            "top_answer": swept.painted.argmax(-1).T.to(torch.int32),
        }
        return Maps.of({n: a.unflatten(1, (self.grid, self.grid)) for n, a in arrays.items()})

    def _sweep(self, scene: Scene) -> Sweep:
        _, height, width = scene.canvas.shape
        colour = scene.canvas.new_tensor(self.patch)[:, None, None]
        return sweep(scene, grid_windows(height, width, self.grid), colour.expand_as(scene.canvas))

    @staticmethod
    def _drops(scene: Scene, swept: Sweep, score: Score) -> Tensor:
        """Drops ``(row, window)`` of the score."""
        return torch.stack(
            [
                score_drops(
                    swept.clean[row.question], swept.painted[:, row.question], row.answer, score
                )
                for row in scene.rows
            ]
        )
