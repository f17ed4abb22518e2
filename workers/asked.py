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
    own = [_given(model, truth, one) for truth, one in zip(truths, written, strict=True)]
    # One text is one answer, whoever wrote it or was given it: twice it would count twice.
    distinct: dict[tuple[int, ...] | None, Written] = {}
    for one in [*written, *filter(None, own)]:
        distinct.setdefault(one.tokens, one)
    numbers = {tokens: number for number, tokens in enumerate(distinct)}
    places = [None if truth is None else numbers[truth.tokens] for truth in own]
    bound = model.among([*distinct.values()])
    return Asked(bound, places, [numbers[one.tokens] for one in written])


def _given(model: OpenModel, truth: str | None, written: Written) -> Written | None:
    """A truth that the model wrote itself is what it wrote, however it spelt it."""
    if truth is None:
        return None
    if normalise(truth) == normalise(written.answer):
        return written
    return Written(truth, tuple(model.spelt(truth)))
