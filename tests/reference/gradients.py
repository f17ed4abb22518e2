"""Saliency, deconvnet and guided backpropagation on the hand-made tape."""

import numpy as np
from torch import Tensor

from tests.nets import TinyVQA
from tests.reference import networks, tape
from tests.reference.occlusion import softmax
from tests.reference.tape import Node, Rule
from workers.models.base import Tokens


class Replica:
    """One question about one image, forward, with every node that a method differentiates."""

    def __init__(self, model: TinyVQA, canvas: Tensor, question: Tokens, rule: Rule) -> None:
        self.pixels = Node(networks.values(model.normalise(canvas[None])[0]))
        self.features = networks.trunk(model.trunk_net, self.pixels, rule)
        self.words = [Node(e) for e in networks.values(model.words([question]).embeddings[0])]
        self.words = self.words[: len(question)]
        state = networks.encode(model, self.words)
        self.logits = networks.head(model.head_net, self.features, state, rule)

    def gradient(self, answer: int, score: str, wanted: Node) -> np.ndarray:
        return tape.gradient(self.logits, score_gradient(self.logits.value, answer, score), wanted)


def score_gradient(logits: np.ndarray, answer: int, score: str) -> np.ndarray:
    """d score / d logits: one-hot, ``p_a (e_a - p)``, or ``e_a - p``."""
    one_hot = np.eye(len(logits))[answer]
    if score == "logit":
        return one_hot
    p = softmax(logits)
    return (one_hot - p) * (p[answer] if score == "probability" else 1)


def pixel_gradient(
    model: TinyVQA, canvas: Tensor, question: Tokens, answer: int, score: str, rule: Rule
) -> np.ndarray:
    """``(3, y, x)``, with respect to the normalised pixels."""
    replica = Replica(model, canvas, question, rule)
    return replica.gradient(answer, score, replica.pixels)


def reduce_channels(pixels: np.ndarray, reduction: str) -> np.ndarray:
    if reduction == "abs_max":
        return np.max(np.abs(pixels), 0)
    return np.sum(np.abs(pixels), 0) if reduction == "abs_sum" else np.sum(pixels, 0)
