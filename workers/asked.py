"""An image's questions put to a model, whether it has a list of answers or writes its own."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.models.base import OpenModel, Tokens, VQAModel, Written
from workers.vqa_accuracy import normalise


class Asked(NamedTuple):
    """The model that explains these questions, and what the answers are in its numbers."""

    model: VQAModel
    truths: list[int | None]
    """None where the model does not have it, or there is none."""
    predictions: list[int] | None
    """What the model wrote; None where its logits say it."""


def ask(
    model: VQAModel, canvas: Tensor, questions: Sequence[Tokens], truths: Sequence[str | None]
) -> Asked:
    """A model with a list of answers as it is. One that writes is bound to what it writes about
    this canvas ``(3, y, x)`` and to the truths."""
    if not model.open:
        return Asked(model, [model.answer_index(truth) for truth in truths], None)
    assert isinstance(model, OpenModel)
    with torch.no_grad():
        written = model.write(canvas.to(model.dtype), questions)
    given = [None if truth is None else Written(truth) for truth in truths]
    # A truth that the model wrote itself is what it wrote, however it spelt it.
    own = [
        one if truth is not None and normalise(truth.answer) == normalise(one.answer) else truth
        for one, truth in zip(written, given, strict=True)
    ]
    answers = list(dict.fromkeys([*written, *filter(None, own)]))
    places = [None if truth is None else answers.index(truth) for truth in own]
    return Asked(model.among(answers), places, [answers.index(one) for one in written])
