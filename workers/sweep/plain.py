"""The plain sweep: every changed canvas goes through the whole model, once for all questions."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from workers.methods.base import Scene
from workers.models.base import Capability
from workers.sweep.batches import in_batches
from workers.sweep.windows import Window, Windows, paint

ROWS = 4096
"""Pairs of a canvas and a question that are classified at once; bounds memory, not results."""


class Sweep(NamedTuple):
    """Logits ``clean (question, answer)`` and ``painted (window, question, answer)``."""

    clean: Tensor
    painted: Tensor


@torch.no_grad()
def sweep(scene: Scene, windows: Windows, fill: Tensor, only: Sequence[int] | None = None) -> Sweep:
    """Logits of every question with each window (or ``only`` some) showing ``fill (3, y, x)``,
    0..255 as the canvas.

    The trunk of a late-fusion model sees each painted canvas once, whatever is asked about it.
    Sums in float32 differ with the batch's size: compare maps with a tolerance, never bitwise.
    """
    canvas, listed = scene.canvas.to(scene.model.dtype), list(windows)
    listed = listed if only is None else [listed[i] for i in only]
    fill, groups = fill.to(canvas), _groups(scene, listed)
    parts = []
    for group in groups:
        own = [listed[i] for i in group]
        parts.append(in_batches(scene, len(own), partial(_painted, scene, canvas, own, fill)))
    pooled = torch.cat(parts)
    if len(groups) > 1:  # one is in order, and nothing waits for a copy
        order = torch.tensor([i for group in groups for i in group]).argsort()
        pooled = pooled[scene.model.moved(order)]
    return Sweep(scene.output.logits, classify(scene, pooled))


def _groups(scene: Scene, windows: Sequence[Window]) -> list[list[int]]:
    """Windows that a black box answers best together; any do where the trunk sees them alone."""
    if Capability.SPLIT in scene.model.provides:
        return [list(range(len(windows)))]
    return scene.near.groups(windows)


def _painted(
    scene: Scene, canvas: Tensor, windows: Sequence[Window], fill: Tensor, batch: slice
) -> Tensor:
    return pool(scene, paint(canvas, windows[batch], fill))


class Masks(Protocol):
    """Masks ``(n, y, x)`` in 0..1, a slice at a time; a tensor will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, batch: slice, /) -> Tensor: ...


@torch.no_grad()
def masked(scene: Scene, masks: Masks, fill: Tensor) -> Tensor:
    """Logits ``(mask, question, answer)`` of ``m * canvas + (1 - m) * fill`` for each mask m; as
    in ``sweep``, one trunk pass a mask serves all questions."""
    canvas = scene.canvas.to(scene.model.dtype)
    fill = fill.to(canvas)

    def answers(batch: slice) -> Tensor:
        blended = torch.lerp(fill, canvas, masks[batch].to(canvas)[:, None])
        return classify(scene, pool(scene, blended))

    return in_batches(scene, len(masks), answers)


def pool(scene: Scene, canvases: Tensor) -> Tensor:
    """Canvases ``(n, 3, y, x)`` -> what their answers need, ``(n, question, pooled)``. A black box
    gives its logits at once."""
    if Capability.SPLIT in scene.model.provides:
        features = scene.split.trunk(scene.split.normalise(canvases))
        return scene.split.pool(features, scene.states)
    return scene.near(canvases)


def classify(scene: Scene, pooled: Tensor) -> Tensor:
    """``(n, question, pooled)`` as ``pool`` gives it -> logits ``(n, question, answer)``."""
    if Capability.SPLIT not in scene.model.provides:
        return pooled
    chunks = pooled.split(max(1, ROWS // len(scene.questions)))
    return torch.cat([scene.split.classify(chunk, scene.states) for chunk in chunks])
