"""Word occlusion and word gradients of Goyal et al. 2016, one word at a time."""

import numpy as np
from torch import Tensor

from tests.nets import TinyVQA
from tests.reference.gradients import Replica
from tests.reference.occlusion import logits, softmax
from workers.models.base import Tokens, VQAModel


def word_occlusion(
    model: VQAModel, canvas: Tensor, question: Tokens, answer: int
) -> tuple[list[float], list[int]]:
    """Drops in probability, and the top answer, without each word."""
    clean = softmax(logits(model, canvas, question))[answer]
    drops, top_answers = [], []
    for i in range(len(question)):
        without = logits(model, canvas, question[:i] + question[i + 1 :])
        drops.append(clean - softmax(without)[answer])
        top_answers.append(int(np.argmax(without)))
    return drops, top_answers


def word_gradient(
    model: TinyVQA, canvas: Tensor, question: Tokens, answer: int, score: str, reduction: str
) -> list[float]:
    replica = Replica(model, canvas, question, "saliency")
    values = []
    for word in replica.words:
        gradient = replica.gradient(answer, score, word)
        values.append(
            np.sqrt((gradient**2).sum())
            if reduction == "l2_norm"
            else (gradient * word.value).sum()
        )
    return values
