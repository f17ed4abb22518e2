"""Grad-CAM through the neurons that depend on the question (Ummettuguli, "Towards visual
explanations that ground multiple modalities", section 3).

The sensitivity of the combine layer is computed here; what passes backward from the answer is in
``backward``.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.errors import BadExample, UserError
from workers.methods.backward import combine_gradients, combine_model, combine_trace
from workers.methods.base import ImageMethod, Maps, Scene
from workers.methods.gradients import PIXELS, weighted_features
from workers.methods.relu_rules import record
from workers.models.base import Capability, Geometry, Tokens, Words
from workers.sweep.batches import in_batches

Sensitivity = Literal["row_sum", "l2", "word", "random"]
NEURONS = 64
"""Rows of a Jacobian at once."""


class QuestionGradCam(ImageMethod):
    """Grad-CAM with the gradient at the combine layer ``a`` zeroed but at the n neurons that are
    most sensitive to the question embedding ``q`` (Ummettuguli, section 3.3).

    The paper takes "the top n indices of d a / d q", a matrix, without saying how a neuron's row
    becomes a number; ``sensitivity`` says it here. Ties go to the lower index. With all neurons it
    is Grad-CAM.

    Arrays ``(row, y, x)`` over the feature map's cells: ``map``, and ``signed`` before the ReLU;
    per question ``sensitivity (question, combine)``, which the neurons were chosen by, and for
    ``word`` the position of that ``word (question, 1)``.
    """

    needs: ClassVar[frozenset[Capability]] = PIXELS | {
        Capability.FEATURE_MAP,
        Capability.COMBINE,
    }
    n: int | Literal["all"] = Field(default=25)
    """Neurons that let the gradient through."""
    sensitivity: Sensitivity = "row_sum"
    """Of neuron i: ``row_sum`` is ``sum_j d a_i / d q_j``, with its sign; ``l2`` is the norm of
    that row; ``word`` is the row sum over one word's embedding ``w`` before its non-linearity,
    ``sum_j d a_i / d w_j`` (section 5); ``random`` is a number drawn for the question, so that n
    neurons are picked blindly: what a choice of neurons must beat (ours)."""
    word: int | Literal["max"] = "max"
    """With ``word``: its position, from the end where negative; ``max`` is the word to which the
    layer is most sensitive, by the norm over all neurons."""
    not_shared: bool = False
    """Of the top n only those that are in the top n of no other question that the image has in its
    shard (section 5). Where none is left the map is zero, and its row says why."""
    store_sensitivity: bool = True
    """Whether to store ``sensitivity`` and ``word``, the same for every n."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n != "all" and self.n < 1:
            raise ValueError(f"n is {self.n}; give 1 or more neurons, or all")
        if self.word != "max" and self.sensitivity != "word":
            raise ValueError("word goes with sensitivity: word")
        return self

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        if self.n != "all" and self.n > geometry.combine:
            raise UserError(
                f"question_grad_cam: n is {self.n}, the model's combine layer has "
                f"{geometry.combine} neurons; choose 1 to {geometry.combine}, or all."
            )
        shape = (geometry.feature_height, geometry.feature_width)
        maps = tuple(ArraySpec(name=n, dims=("y", "x"), shape=shape) for n in ("map", "signed"))
        return maps + (self._stored(geometry) if self.store_sensitivity else ())

    def _stored(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        vector = ArraySpec(
            name="sensitivity", dims=("combine",), shape=(geometry.combine,), per_target=False
        )
        place = ArraySpec(name="word", dims=("one",), shape=(1,), dtype="int32", per_target=False)
        return (vector, place) if self.sensitivity == "word" else (vector,)

    def explain(self, scene: Scene) -> Maps:
        sensitivity, words = self._sensitivities(scene, scene.questions)
        chosen = self._chosen(scene, sensitivity)
        rows = [row.question for row in scene.rows]
        gradients = combine_gradients(scene, self.score) * chosen[rows]
        features = combine_trace(scene).pull_back(gradients, "saliency")[0]
        signed = weighted_features(scene, features)
        arrays = {"map": signed.relu(), "signed": signed}
        if self.store_sensitivity:
            arrays["sensitivity"] = sensitivity
            if self.sensitivity == "word":
                arrays["word"] = words[:, None].to(torch.int32)
        none = (~chosen.any(1)).tolist()
        return Maps.of(
            arrays, {r: NOTHING_OWN for r, question in enumerate(rows) if none[question]}
        )

    def _sensitivities(self, scene: Scene, questions: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """``(question, combine)``, and the position of the word it refers to."""
        key = ("sensitivities", self.sensitivity, self.word, tuple(questions))
        return scene.once(key, lambda: self._computed(scene, questions))

    def _computed(self, scene: Scene, questions: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        if self.sensitivity == "word":
            return word_sensitivity(scene, questions, self.word)
        if self.sensitivity == "random":
            return noise(scene, questions), torch.zeros(len(questions), dtype=torch.long)
        model = combine_model(scene)
        with torch.no_grad():
            states = model.encode(model.words(questions))
        values = (row_sums if self.sensitivity == "row_sum" else row_norms)(scene, states)
        return values, torch.zeros(len(questions), dtype=torch.long)

    def _chosen(self, scene: Scene, sensitivity: Tensor) -> Tensor:
        """Which neurons let the gradient through: bool ``(question, combine)``."""
        chosen = self._top(sensitivity)
        if not self.not_shared:
            return chosen
        asked = scene.image_questions or dict(zip(scene.question_ids, scene.questions, strict=True))
        tops = self._top(self._sensitivities(scene, list(asked.values()))[0])
        for question, own in zip(scene.question_ids, chosen, strict=True):
            others = [number != question for number in asked]
            own &= ~tops[others].any(0)
        return chosen

    def _top(self, sensitivity: Tensor) -> Tensor:
        """The n largest of each ``(question, combine)``, as a mask."""
        n = sensitivity.shape[1] if self.n == "all" else self.n
        order = sensitivity.sort(dim=1, descending=True, stable=True).indices
        return torch.zeros_like(sensitivity, dtype=torch.bool).scatter_(1, order[:, :n], True)


NOTHING_OWN = "each of its top neurons is also one of another question of the image"


def noise(scene: Scene, questions: Sequence[Tokens]) -> Tensor:
    """Uniform in [0, 1), ``(question, combine)``: the same for a question wherever it is asked."""
    neurons = combine_model(scene).geometry.combine
    seeds = [zlib.crc32(" ".join(question).encode()) for question in questions]
    drawn = np.stack([np.random.default_rng(seed).random(neurons) for seed in seeds])
    return torch.from_numpy(drawn).to(scene.features)


def row_sums(scene: Scene, states: Tensor) -> Tensor:
    """``sum_j d a_i / d q_j`` at ``states (n, state)`` on the scene's image -> ``(n, combine)``."""
    ones = torch.ones_like(states)
    return in_batches(scene, len(states), lambda batch: _pushed(scene, states[batch], ones[batch]))


def _pushed(scene: Scene, states: Tensor, along: Tensor) -> Tensor:
    model = combine_model(scene)
    features = scene.features.expand(len(states), -1, -1, -1)
    return forward_product(lambda q: model.combine(features.clone(), q), states, along)[1]


def forward_product(
    function: Callable[[Tensor], Tensor], point: Tensor, along: Tensor
) -> tuple[Tensor, Tensor]:
    """``f(x)`` and the product ``J along`` of its Jacobian at ``x`` with a direction.

    A backward pass is linear in the gradient that it starts from, and the derivative by that is
    the product. PyTorch's own forward mode does not pass an LSTM.
    """
    x = point.detach().requires_grad_()
    with torch.enable_grad():
        output = function(x)
        start = torch.zeros_like(output, requires_grad=True)
        (pulled,) = torch.autograd.grad(output, x, start, create_graph=True)
        (product,) = torch.autograd.grad(pulled, start, along)
    return output.detach(), product


def row_norms(scene: Scene, states: Tensor) -> Tensor:
    """``(sum_j (d a_i / d q_j)^2)^1/2`` at ``states (n, state)`` -> ``(n, combine)``, some rows of
    the Jacobian at a time."""
    model = combine_model(scene)
    features = scene.features.expand(len(states), -1, -1, -1)
    trace = record(lambda q: model.combine(features.clone(), q), states)
    neurons = torch.eye(trace.output.shape[1], dtype=states.dtype, device=states.device)
    norms = [
        trace.pull_back_many(some[:, None].expand(-1, len(states), -1), "saliency")[0].norm(dim=2)
        for some in neurons.split(NEURONS)
    ]
    return torch.cat(norms).T


def word_sensitivity(
    scene: Scene, questions: Sequence[Tokens], word: int | Literal["max"]
) -> tuple[Tensor, Tensor]:
    """``sum_j d a_i / d w_j`` for one word ``w`` of each question -> ``(question, combine)``, and
    its position ``(question,)``."""
    places = [_places(question, word) for question in questions]
    repeated = [
        q for question, at in zip(questions, places, strict=True) for q in [question] * len(at)
    ]
    states, tangents = _word_tangents(scene, repeated, [k for at in places for k in at])
    sums = in_batches(
        scene, len(states), lambda batch: _pushed(scene, states[batch], tangents[batch])
    ).split([len(at) for at in places])
    best = [int(of_question.norm(dim=1).argmax()) for of_question in sums]
    chosen = [at[i] for at, i in zip(places, best, strict=True)]
    return torch.stack([s[i] for s, i in zip(sums, best, strict=True)]), torch.tensor(chosen)


def _places(question: Tokens, word: int | Literal["max"]) -> list[int]:
    """The positions to be looked at: all, or the one that is asked for."""
    length = len(question)
    if word == "max" and length:
        return list(range(length))
    if word == "max" or not -length <= word < length:
        raise BadExample(
            f"question_grad_cam: word {word} is asked for, the question has {length} words; choose "
            "a position that every question has, or max"
        )
    return [word % length]


def _word_tangents(
    scene: Scene, questions: Sequence[Tokens], places: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Question states, and how they move with one word each, ``sum_j d q / d w_j``: both
    ``(n, state)``."""
    model = combine_model(scene)
    with torch.no_grad():
        words = model.words(questions)
    along = torch.zeros_like(words.embeddings)
    along[range(len(places)), list(places)] = 1
    return forward_product(
        lambda embeddings: model.encode(Words(embeddings, words.lengths)), words.embeddings, along
    )
