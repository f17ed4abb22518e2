"""What a model of regions relies on: importance of each region, painted where its box lies."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.methods.base import ImageMethod, Maps, Scene, Score, score_drops, scores
from workers.models.base import Capability, Geometry, present
from workers.sweep.batches import in_batches

Paint = Literal["max", "mean", "sum_over_area"]
BY_REGION = "regions"
"""The array that a map is painted of."""


class RegionMethod(ImageMethod, ABC):
    """One value a region. Arrays: ``regions (row, region)``, 0 where an image has fewer regions
    than others; ``boxes (question, region, 4)``, their x1, y1, x2, y2 as fractions of the canvas,
    zeros there; and ``map (row, y, x)``, the values painted by ``paint``.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.REGIONS})
    grid: int = Field(28, ge=2, le=1024)
    """Cells of the map along each side. A cell shows the regions whose boxes hold its centre; a box
    that is too narrow for any lies in the row, or the column, of its own centre."""
    paint: Paint = "max"
    """What a cell shows of them: the largest value (as LXMERT's demonstration), their ``mean``, or
    with ``sum_over_area`` each box's value spread evenly over its cells, so that the map sums up to
    the sum of all regions. A cell without any shows 0: what no region sees has no influence."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        n, cells = geometry.regions, (self.grid, self.grid)
        return (
            ArraySpec(name="map", dims=("y", "x"), shape=cells),
            ArraySpec(name=BY_REGION, dims=("region",), shape=(n,)),
            ArraySpec(name="boxes", dims=("region", "corner"), shape=(n, 4), per_target=False),
        )

    def explain(self, scene: Scene) -> Maps:
        regions = scene.seen[0]
        values = self.values(scene).masked_fill(~present(regions), 0)
        boxes = regions[:, :4].expand(len(scene.questions), -1, -1)
        painted = paint(values, regions[:, :4], self.grid, self.paint)
        return Maps.of({"map": painted, BY_REGION: values, "boxes": boxes})

    @abstractmethod
    def values(self, scene: Scene) -> Tensor:
        """Importance ``(row, region)``, signed and un-normalised."""


class RegionOcclusion(RegionMethod):
    """``f(all) - f(all but region r)``: occlusion (Zeiler and Fergus 2014, section 4.2; on VQA,
    Goyal et al. 2016, section 3.2) with a region in place of a window."""

    score: Score = "probability"
    how: Literal["remove", "zero"] = "remove"
    """``remove``: the model is asked as if the region had not been detected, by its own mask over
    regions; ``zero``: the region stays where it is, its features are 0."""

    def passes(self, geometry: Geometry) -> int:
        return geometry.regions

    def values(self, scene: Scene) -> Tensor:
        without = scene.once(("region occlusion", self.how), lambda: self._without(scene))
        clean = scene.output.logits
        return torch.stack(
            [
                score_drops(clean[row.question], without[:, row.question], row.answer, self.score)
                for row in scene.rows
            ]
        )

    @torch.no_grad()
    def _without(self, scene: Scene) -> Tensor:
        """Logits ``(region, question, answer)`` without each region."""
        seen, first = scene.seen[0], 4 if self.how == "zero" else 0

        def answers(batch: slice) -> Tensor:
            numbers = torch.arange(len(seen))[batch]
            changed = seen.repeat(len(numbers), 1, 1)
            changed[torch.arange(len(numbers)), numbers, first:] = 0
            return scene.model.answers_to_all(changed, scene.questions)

        return in_batches(scene, len(seen), answers)


class RegionGradient(RegionMethod):
    """The gradient with respect to a region's features ``v_r``, reduced over them."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.REGIONS, Capability.GRADIENTS})
    reduction: Literal["l2_norm", "grad_x_input", "sum"] = "l2_norm"
    """``l2_norm`` is ``||d f / d v_r||``; ``grad_x_input`` is ``sum_c v_rc (d f / d v_rc)``;
    ``sum`` is ``alpha_r = sum_c d f / d v_rc`` (Selvaraju et al. 2019, "Taking a HINT", section
    3.2). The last two keep the sign."""

    def values(self, scene: Scene) -> Tensor:
        gradients = scene.once(("region gradients", self.score), lambda: self._gradients(scene))
        if self.reduction == "l2_norm":
            return gradients.norm(dim=-1)
        if self.reduction == "sum":
            return gradients.sum(-1)
        return (gradients * scene.seen[..., 4:]).sum(-1)

    def _gradients(self, scene: Scene) -> Tensor:
        """``(row, region, channel)``."""
        return in_batches(scene, len(scene.rows), lambda rows: self._of(scene, rows))

    def _of(self, scene: Scene, rows: slice) -> Tensor:
        own = scene.rows[rows]
        seen = scene.seen.repeat(len(own), 1, 1).requires_grad_()
        answers = torch.tensor([row.answer for row in own], device=seen.device)
        with torch.enable_grad():
            logits = scene.model.logits(seen, [scene.questions[row.question] for row in own])
            total = scores(logits, answers, self.score).sum()
        return torch.autograd.grad(total, seen)[0][..., 4:]


class RegionAttention(RegionMethod):
    """The model's own attention over regions (Anderson et al. 2018, section 3.2). It is the same
    whichever answer is to be explained."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.REGIONS, Capability.ATTENTION})

    @torch.no_grad()
    def values(self, scene: Scene) -> Tensor:
        def attended(batch: slice) -> Tensor:
            asked = scene.questions[batch]
            output = scene.region_model.answer(scene.seen.expand(len(asked), -1, -1), asked)
            assert output.attention is not None  # what Capability.ATTENTION promises
            return output.attention

        attention = in_batches(scene, len(scene.questions), attended)
        return attention[[row.question for row in scene.rows]]


def paint(values: Tensor, boxes: Tensor, grid: int, rule: Paint) -> Tensor:
    """``values (row, region)`` at ``boxes (region, 4)`` -> ``(row, grid, grid)``. Boxes without an
    area are none."""
    covered = cells(boxes, grid)
    spread = covered.to(values.dtype).flatten(1)
    if rule == "sum_over_area":
        area = spread.sum(1, keepdim=True).clamp(min=1)
        return (values @ (spread / area)).unflatten(1, (grid, grid))
    if rule == "mean":
        count = spread.sum(0).clamp(min=1)
        return (values @ spread / count).unflatten(1, (grid, grid))
    shown = values[:, :, None].masked_fill(~covered.flatten(1), -torch.inf).amax(1)
    return shown.masked_fill(~covered.flatten(1).any(0), 0).unflatten(1, (grid, grid))


def cells(boxes: Tensor, grid: int) -> Tensor:
    """Which cells show each box, ``(region, y, x)``."""
    x1, y1, x2, y2 = boxes.unbind(1)
    there = (x2 > x1) & (y2 > y1)
    rows, columns = _along(y1, y2, grid), _along(x1, x2, grid)
    return rows[:, :, None] & columns[:, None, :] & there[:, None, None]


def _along(low: Tensor, high: Tensor, grid: int) -> Tensor:
    """Which cells of an axis have their centre in ``[low, high)``; where none has, the one that
    the middle lies in. ``(region, grid)``."""
    centres = (torch.arange(grid, device=low.device, dtype=low.dtype) + 0.5) / grid
    inside = (centres >= low[:, None]) & (centres < high[:, None])
    middle = ((low + high) / 2 * grid).long().clamp(max=grid - 1)
    own = torch.nn.functional.one_hot(middle, grid).bool()
    return torch.where(inside.any(1, keepdim=True), inside, own)
