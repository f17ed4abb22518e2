"""The plain sweep: every painted canvas goes through the whole model, once for all questions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.methods.base import Scene
from workers.models.base import Capability
from workers.sweep.batches import in_batches
from workers.sweep.windows import Window, paint


@torch.no_grad()
def sweep(scene: Scene, windows: Sequence[Window], colour: Sequence[float]) -> Tensor:
    """Logits of every question with each window painted, ``(window, question, answer)``.

    The trunk of a late-fusion model sees each painted canvas once, whatever is asked about it.
    Sums in float32 differ with the batch's size: compare maps with a tolerance, never bitwise.
    """
    answer = _answer_split if Capability.SPLIT in scene.model.provides else _answer_black_box
    canvas = scene.canvas.to(scene.model.dtype)
    return in_batches(
        scene,
        len(windows),
        lambda batch: answer(scene, paint(canvas, windows[batch], colour)),
    )


def _answer_split(scene: Scene, canvases: Tensor) -> Tensor:
    """Canvases ``(n, 3, y, x)`` -> logits ``(n, question, answer)``."""
    features = scene.split.trunk(scene.split.normalise(canvases))
    states = scene.states[:, None].expand(-1, len(canvases), -1)
    # A head may overwrite its input, and the next question needs the same features.
    return torch.stack([scene.split.head(features.clone(), s).logits for s in states], 1)


def _answer_black_box(scene: Scene, canvases: Tensor) -> Tensor:
    questions = scene.questions
    return torch.stack([scene.model.logits(canvases, [q] * len(canvases)) for q in questions], 1)
