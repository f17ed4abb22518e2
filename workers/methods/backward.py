"""The backward passes of a scene, each made once and shared by every gradient method.

The trunk runs forward once an image, the head once a row. From there a rule costs one head pass
backward for all rows, and, only where pixels are asked for, one batched trunk pass backward.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from workers.errors import BadExample
from workers.methods.base import Row, Scene, Score, scores
from workers.methods.relu_rules import Rule, Trace, record
from workers.models.base import (
    Attended,
    Capability,
    CombineModel,
    EmbeddingModel,
    Places,
    TokenModel,
    Words,
)
from workers.sweep.batches import in_batches


class HeadGradients(NamedTuple):
    """Of each row's score: with respect to ``features (row, channel, y, x)`` and the question's
    ``states (row, state)``."""

    features: Tensor
    states: Tensor


def head_gradients(scene: Scene, score: Score, rule: Rule) -> HeadGradients:
    """d score / d features and d score / d question state, ReLUs of the head by ``rule``."""

    def compute() -> HeadGradients:
        trace = _head_trace(scene)
        answers = [row.answer for row in scene.rows]
        return HeadGradients(*trace.pull_back(_logit_gradients(trace, answers, score), rule))

    return scene.once(("head gradients", score, rule), compute)


def pixel_gradients(scene: Scene, score: Score, rule: Rule) -> Tensor:
    """d score / d normalised pixels, ``(row, 3, y, x)``, every ReLU by ``rule``; of a model that
    gives logits only, d score / d canvas."""

    def compute() -> Tensor:
        if Capability.SPLIT not in scene.model.provides:
            return _canvas_gradients(scene, score, rule)
        gradients = head_gradients(scene, score, rule).features[:, None]
        return in_batches(
            scene,
            len(gradients),
            lambda rows: scene.trunk_trace.pull_back_many(gradients[rows], rule)[0][:, 0],
        )

    return scene.once(("pixel gradients", score, rule), compute)


def _canvas_gradients(scene: Scene, score: Score, rule: Rule) -> Tensor:
    """Straight through the model, a forward and a backward pass a row."""
    canvas = scene.canvas[None].to(scene.model.dtype)

    def compute(rows: slice) -> Tensor:
        asked = [scene.questions[row.question] for row in scene.rows[rows]]
        answers = [row.answer for row in scene.rows[rows]]
        trace = record(lambda c: scene.model.logits(c, asked), canvas.repeat(len(asked), 1, 1, 1))
        return trace.pull_back(_logit_gradients(trace, answers, score), rule)[0]

    return in_batches(scene, len(scene.rows), compute)


class WordGradients(NamedTuple):
    """Per row: ``embeddings`` and ``gradients (row, word, channel)``, padded at the end."""

    embeddings: Tensor
    gradients: Tensor


def word_gradients(scene: Scene, score: Score) -> WordGradients:
    """d score / d word embedding: the plain derivative, whatever rules the image methods use."""
    words = scene.split.words([scene.questions[row.question] for row in scene.rows])
    trace = record(
        lambda embeddings: scene.split.encode(Words(embeddings, words.lengths)), words.embeddings
    )
    states = head_gradients(scene, score, "saliency").states
    return WordGradients(words.embeddings, *trace.pull_back(states, "saliency"))


def token_gradients(
    scene: Scene, row: Row, score: Score
) -> tuple[Sequence[Sequence[int]], WordGradients]:
    """Each word's sub-tokens; d score / d embedding of all sub-tokens, ``(token, channel)``."""
    asked, own = answers_for(scene, row, score)
    assert isinstance(scene.model, EmbeddingModel)  # what Capability.EMBEDDINGS promises
    seen = scene.model.embed(scene.seen[0], scene.questions[row.question], asked)
    (gradients,) = _row_gradients(seen.logits, own, score, [seen.embeddings])
    return seen.words, WordGradients(seen.embeddings.detach()[0], gradients[0])


class AttentionPass(NamedTuple):
    """One row's pass: of each layer the ``probabilities`` and the score's ``gradients`` at them,
    ``(head, query, key)``, without a graph."""

    attended: Attended
    probabilities: list[Tensor]
    gradients: list[Tensor]
    output: Places
    """Of the row's answer."""


def attention_pass(scene: Scene, row: Row, score: Score) -> AttentionPass:
    """One forward and one backward pass, shared by all methods of one score."""

    def compute() -> AttentionPass:
        asked, own = answers_for(scene, row, score)
        canvas = scene.canvas.to(scene.model.dtype)
        seen = token_model(scene).attend(canvas, scene.questions[row.question], asked)
        _check_same(seen.logits.detach(), scene.output.logits[row.question][asked])
        layers = [layer.probabilities for layer in seen.layers]
        gradients = _row_gradients(seen.logits, own, score, layers)
        parts = (_of_answer(layers, own), _of_answer(gradients, own))
        return AttentionPass(_without_graph(seen), *parts, seen.output[own])

    return scene.once(("attention pass", row, score), compute)


def _check_same(spelt_out: Tensor, fast: Tensor) -> None:
    """Attention is read where it is computed step by step; the model answers by a fast kernel."""
    limit = sqrt(torch.finfo(fast.dtype).eps) * max(1.0, float(fast.abs().max()))
    apart = float((spelt_out - fast).abs().max())
    if not apart <= limit:
        raise BadExample(
            f"with its attention computed step by step the model's logits differ by {apart:.2g} "
            f"from those of its fast kernel, the limit is {limit:.2g}; its attention is not what "
            "answered"
        )


def _without_graph(seen: Attended) -> Attended:
    """What is kept of a pass while the scene lasts: not its activations."""
    layers = [replace(one, probabilities=one.probabilities.detach()) for one in seen.layers]
    return replace(seen, logits=seen.logits.detach(), layers=tuple(layers))


def answers_for(scene: Scene, row: Row, score: Score) -> tuple[list[int], int]:
    """The answers whose logits a row's score needs, and where its own is among them: a logit needs
    no other, what is relative to others needs all."""
    if score == "logit":
        return [row.answer], 0
    return list(range(len(scene.model.answers))), row.answer


def _row_gradients(
    logits: Tensor, own: int, score: Score, at: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """d score / d each of some tensors, for one row's ``logits (answer,)``."""
    with torch.enable_grad():
        value = scores(logits[None], torch.tensor([own], device=logits.device), score)[0]
    return torch.autograd.grad(value, list(at))


def _of_answer(layers: Sequence[Tensor], own: int) -> list[Tensor]:
    """``(n, head, query, key)`` -> the answer's own sequence, or the only one."""
    return [layer[min(own, len(layer) - 1)].detach() for layer in layers]


def token_model(scene: Scene) -> TokenModel:
    """The model as one that shows what its tokens hold; the plan has checked that it does."""
    assert isinstance(scene.model, TokenModel)
    return scene.model


def combine_model(scene: Scene) -> CombineModel:
    """The model as one with a combine layer; the plan has checked that it is."""
    assert isinstance(scene.model, CombineModel)
    return scene.model


def combine_gradients(scene: Scene, score: Score) -> Tensor:
    """d score / d combine layer, ``(row, combine)``."""

    def compute() -> Tensor:
        combined = combine_trace(scene).output
        trace = record(combine_model(scene).answer_from_combine, combined)
        answers = [row.answer for row in scene.rows]
        return trace.pull_back(_logit_gradients(trace, answers, score), "saliency")[0]

    return scene.once(("combine gradients", score), compute)


def combine_trace(scene: Scene) -> Trace:
    """Every row up to the combine layer: ``features -> a (row, combine)``. Made once, whatever part
    of the gradient at ``a`` is then let through."""

    def compute() -> Trace:
        model, states = combine_model(scene), scene.states[[row.question for row in scene.rows]]
        features = scene.features.expand(len(states), -1, -1, -1)
        return record(lambda f: model.combine(f, states), features)

    return scene.once("combine trace", compute)


def _head_trace(scene: Scene) -> Trace:
    """Every row through the head: ``(features, states) -> logits (row, answer)``."""

    def compute() -> Trace:
        states = scene.states[[row.question for row in scene.rows]]
        features = scene.features.expand(len(states), -1, -1, -1)
        return record(lambda f, s: scene.split.head(f, s).logits, features, states)

    return scene.once("head trace", compute)


def _logit_gradients(trace: Trace, answers: list[int], score: Score) -> Tensor:
    """d score / d logits ``(row, answer)``; softmax has no ReLU, so it is the same by any rule."""
    logits = trace.output.detach().requires_grad_()
    with torch.enable_grad():
        own = torch.tensor(answers, device=logits.device)
        total = scores(logits, own, score).sum()
    return torch.autograd.grad(total, logits)[0]
