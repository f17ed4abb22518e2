"""RISE: a pixel counts as much as the answer is sure while the pixel is seen."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.errors import UserError
from workers.methods.base import ImageMethod, Maps, Scene, scores
from workers.models.base import Geometry
from workers.sweep import patches
from workers.sweep.plain import masked


class RISE(ImageMethod):
    """``S = sum_i f(I * M_i) M_i / (N p)`` over N random masks (Petsiuk, Das and Saenko 2018,
    "RISE: Randomized Input Sampling for Explanation of Black-box Models", equation 6).

    Array ``map (row, y, x)`` at the input's pixels. A mask is a grid of ``cells x cells`` zeros and
    ones, scaled up bilinearly to one cell more than the image and cropped at random within that
    cell (section 3.2). As in the authors' code a cell is ``ceil(side / cells)`` pixels; they use
    the same masks for all images, which gives all maps the same noise: here an image has its own.
    Where a mask is 0 the image shows ``patch``, by default the paper's zero after normalisation.
    """

    score: Literal["probability"] = "probability"
    """A map is a mean of the score itself, not of its changes: of one below zero, large magnitudes
    would mean unimportant pixels."""
    masks: PositiveInt = 1000
    """N; the paper has 4000 or 8000, by model. The noise falls with its square root."""
    cells: int = Field(7, ge=2)
    """Along each side of a mask."""
    keep: float = Field(0.5, gt=0, lt=1)
    """p, the probability that a cell is seen."""
    seed: int = Field(0, ge=0)
    patch: patches.Colour = patches.GRAY
    """The colour where a mask hides the image, RGB in 0..255 before normalisation."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        shape = (geometry.input_height, geometry.input_width)
        if self.cells > min(shape):
            raise UserError(
                f"rise: masks of {self.cells} cells a side do not fit an input of {shape[0]} x "
                f"{shape[1]} pixels; choose 2 to {min(shape)} cells."
            )
        return (ArraySpec(name="map", dims=("y", "x"), shape=shape, pixels=True),)

    def passes(self, geometry: Geometry) -> int:
        return self.masks

    def explain(self, scene: Scene) -> Maps:
        masks = RandomMasks.draw(self, scene.canvas)
        key = ("rise", self.masks, self.cells, self.keep, self.seed, self.patch)
        fill = patches.constant(scene.canvas, self.patch)
        logits = scene.once(key, lambda: masked(scene, masks, fill)).double()
        kept = torch.stack([self._kept(logits[:, r.question], r.answer) for r in scene.rows])
        return Maps.of({"map": _weighted(masks, kept, scene.batch) / (self.masks * self.keep)})

    def _kept(self, logits: Tensor, answer: int) -> Tensor:
        """Logits ``(mask, answer)`` -> the score of one answer under each mask."""
        answers = torch.full((len(logits),), answer, device=logits.device)
        return scores(logits, answers, self.score)


@dataclass(frozen=True)
class RandomMasks:
    """Masks ``(n, y, x)`` in 0..1 of the canvas' size, made when a slice of them is asked for."""

    grids: Tensor
    """``(mask, 1, cell, cell)`` of zeros and ones."""
    indents: np.ndarray
    """Where each is cropped, ``(mask, 2)``: pixels from the top and from the left."""
    size: torch.Size

    @classmethod
    def draw(cls, options: RISE, canvas: Tensor) -> "RandomMasks":
        """Mask i of an image depends on the seed and on i, not on how many there are."""
        side, size = options.cells, canvas.shape[1:]
        drawn = patches.generator(canvas, options.seed).random((options.masks, side**2 + 2))
        grids = torch.from_numpy(drawn[:, :-2] < options.keep).to(canvas)
        cell = [ceil(pixels / side) for pixels in size]
        indents = np.floor(drawn[:, -2:] * cell).astype(int)
        return cls(grids.unflatten(1, (1, side, side)), indents, size)

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, batch: slice) -> Tensor:
        side, (height, width) = self.grids.shape[-1], self.size
        scaled = [(side + 1) * ceil(pixels / side) for pixels in self.size]
        large = F.interpolate(self.grids[batch], scaled, mode="bilinear", align_corners=False)
        return torch.stack(
            [
                mask[top : top + height, left : left + width]
                for mask, (top, left) in zip(large[:, 0], self.indents[batch], strict=True)
            ]
        )


def _weighted(masks: RandomMasks, weights: Tensor, batch: int) -> Tensor:
    """``sum_i w_i M_i`` of ``weights (row, mask)`` -> ``(row, y, x)``, so many masks at a time."""
    total = weights.new_zeros(len(weights), *masks.size)
    for some in (slice(i, i + batch) for i in range(0, len(masks), batch)):
        total += torch.einsum("rm,myx->ryx", weights[:, some], masks[some].to(weights))
    return total
