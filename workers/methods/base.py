"""What an explanation method is, and the scene it explains: one image with all its questions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.arrays import ArraySpec
from schemas.base import Frozen
from workers.methods.relu_rules import Trace, record
from workers.models.base import (
    Capability,
    Geometry,
    HeadOutput,
    Near,
    RegionModel,
    SplitModel,
    Tokens,
    VQAModel,
)

if TYPE_CHECKING:
    from workers.sweep.engine import Engine
    from workers.sweep.windows import Request

Score = Literal["probability", "logit", "log_probability"]
Target = Literal["predicted", "truth"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One explanation wanted: a question of the scene, a target's name and its answer index."""

    question: int
    target: Target
    answer: int


@dataclass
class Scene:
    """One image, its questions and every computation that methods share, made at most once.

    ``canvas (3, y, x)`` is on the model's device; ``rows`` are the R explanations wanted;
    ``batch`` bounds how many images go through the trunk at once.
    """

    model: VQAModel
    canvas: Tensor
    questions: Sequence[Tokens]
    question_ids: Sequence[int]
    truths: Sequence[int | None]
    targets: Sequence[Target] = ("predicted", "truth")
    batch: int = 32
    engine: "Engine | None" = None
    """Sweeps the model; plain calls where there is none."""
    gradients: bool = False
    """Whether a gradient method will follow: the clean pass then keeps its graph for it."""
    image_questions: Mapping[int, Tokens] | None = None
    """Every question that the image has, by its id, whichever of them are to be explained; those
    of the scene where not given."""
    regions: Tensor | None = None
    """What a model of regions sees in place of the canvas, ``(region, 4 + channel)``."""
    cut_off: Sequence[Tokens] | None = None
    """The words of each question that the model does not see, behind those it does; none where not
    given."""
    written: Sequence[int] | None = None
    """The answer that the model wrote to every question; None where its logits say it."""
    shared: dict[object, object] = field(default_factory=dict)
    """Results methods leave for one another, keyed by what was computed."""

    def once(self, key: object, compute: Callable[[], Result]) -> Result:
        """``compute()`` the first time a key is asked for, the same object afterwards."""
        if key not in self.shared:
            self.shared[key] = compute()
        return cast(Result, self.shared[key])

    @property
    def split(self) -> SplitModel:
        """The model as a late-fusion one; the plan has checked that it is."""
        assert isinstance(self.model, SplitModel)
        return self.model

    @property
    def region_model(self) -> RegionModel:
        """The model as one of regions; the plan has checked that it is."""
        assert isinstance(self.model, RegionModel)
        return self.model

    @property
    def seen(self) -> Tensor:
        """The image as ``logits`` take it, ``(1, ...)``: its canvas, or its regions."""
        seen = self.canvas if self.regions is None else self.regions
        return seen[None].to(self.model.dtype)

    @cached_property
    def near(self) -> Near:
        """What a black box is asked with about painted canvases; not of a model of regions."""
        return self.model.near(self.canvas.to(self.model.dtype), self.questions)

    @cached_property
    def pixels(self) -> Tensor:
        """The clean normalised input ``(1, 3, y, x)``, or the regions that are its place."""
        return self.split.normalise(self.seen)

    @property
    def entered(self) -> Tensor:
        """What gradients are taken at: ``pixels``, or the canvas of a model that gives logits
        only, ``(1, 3, y, x)``."""
        split = Capability.SPLIT in self.model.provides
        return self.pixels if split else self.canvas[None].to(self.model.dtype)

    @cached_property
    def trunk_trace(self) -> Trace:
        """The clean trunk pass ``(1, 3, y, x) -> (1, channel, y, x)`` with its graph."""
        return record(self.split.trunk, self.pixels)

    @cached_property
    @torch.no_grad()
    def features(self) -> Tensor:
        """The clean trunk output ``(1, channel, y, x)``, without a graph."""
        if self.gradients:
            return self.trunk_trace.output.detach()
        if self.engine is not None:
            return self.engine.features(self.pixels)
        return self.split.trunk(self.pixels.clone())

    @cached_property
    @torch.no_grad()
    def states(self) -> Tensor:
        """Question states ``(question, state)``."""
        return self.split.encode(self.split.words(self.questions))

    @cached_property
    @torch.no_grad()
    def output(self) -> HeadOutput:
        """Clean logits and attention of every question."""
        if Capability.SPLIT not in self.model.provides:
            return HeadOutput(self.model.answers_to_all(self.seen, self.questions)[0])
        return self.answer(self.states)

    def answer(self, states: Tensor) -> HeadOutput:
        """The clean image's answers to questions of these ``states (n, state)``. The head gets a
        copy of the features, which it may overwrite."""
        return self.split.head(self.features.expand(len(states), -1, -1, -1).clone(), states)

    @cached_property
    def predictions(self) -> list[int]:
        """The answer to every question on the clean image: what was written, or the top one."""
        if self.written is not None:
            return list(self.written)
        return self.output.logits.argmax(1).tolist()

    def top_answers(self, question: int, clean: Tensor, changed: Tensor) -> Tensor:
        """The answer to a question under changed inputs: ``clean (answer,)`` and ``changed
        (n, answer)`` logits -> ``(n,)``.

        What a model wrote, token by token, need not be the likeliest of its answers, the rest of
        all texts less so. Those that were likelier than it from the start are left out: that they
        still are is no change.
        """
        if self.written is not None:
            changed = changed.masked_fill(clean > clean[self.written[question]], -torch.inf)
        return changed.argmax(1).to(torch.int32)

    @cached_property
    def rows(self) -> list[Row]:
        """``predicted`` for every question; ``truth`` where it is in the vocabulary and differs."""
        rows = []
        for q, (predicted, truth) in enumerate(zip(self.predictions, self.truths, strict=True)):
            if "predicted" in self.targets:
                rows.append(Row(q, "predicted", predicted))
            if "truth" in self.targets and truth is not None and truth != predicted:
                rows.append(Row(q, "truth", truth))
        return rows


def log_odds(logits: Tensor, answers: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of ``answers (n,)`` under ``logits (n, answer)`` -> ``(n,)``: the
    answer's logit less the log-sum-exp of the others, which stays exact where ``1 - p`` is 0."""
    own = logits.gather(-1, answers[:, None])
    others = logits.scatter(-1, answers[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(-1)


def scores(logits: Tensor, answers: Tensor, score: Score) -> Tensor:
    """The explained score of ``answers (n,)`` under ``logits (n, answer)`` -> ``(n,)``."""
    if score == "logit":
        return logits.gather(-1, answers[:, None])[:, 0]
    log_probability = F.logsigmoid(log_odds(logits, answers))
    return log_probability.exp() if score == "probability" else log_probability


def score_drops(clean: Tensor, perturbed: Tensor, answer: int, score: Score) -> Tensor:
    """``score(clean) - score(perturbed)`` of one answer, in float64: ``clean (answer,)`` and
    ``perturbed (n, answer)`` logits -> ``(n,)``."""
    logits = torch.cat([clean[None], perturbed]).double()
    answers = logits.new_full((len(logits),), answer, dtype=torch.long)
    if score == "probability":
        odds = log_odds(logits, answers)
        return _sigmoid_difference(odds[0], odds[1:])
    values = scores(logits, answers, score)
    return values[0] - values[1:]


def _sigmoid_difference(a: Tensor, b: Tensor) -> Tensor:
    """``sigmoid(a) - sigmoid(b)`` without cancellation: of a confident answer both are near 1."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    size = high.sigmoid() * (-low).sigmoid() * -torch.expm1(low - high)
    return torch.copysign(size, a - b)


@dataclass(frozen=True)
class Maps:
    """Named arrays: ``(row, *dims)`` where the spec is per target, else ``(question, *dims)``.

    They are in the precision they were computed in; the store casts to the spec's type.
    """

    arrays: dict[str, np.ndarray]
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Row -> why its map is all equal, where the method can tell."""

    @classmethod
    def of(cls, arrays: dict[str, Tensor], reasons: Mapping[int, str] | None = None) -> "Maps":
        """From tensors on any device."""
        return cls({name: to_numpy(tensor) for name, tensor in arrays.items()}, reasons or {})


def to_numpy(tensor: Tensor) -> np.ndarray:
    """On the host; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


@dataclass(frozen=True)
class WordScores:
    """Per row, one float per token; ``top_answers`` (per question) where words were dropped;
    ``sub_tokens`` (per row) where each importance is the sum over so many of them."""

    importances: list[np.ndarray]
    top_answers: list[np.ndarray] | None = None
    sub_tokens: list[list[int]] | None = None


class Method(Frozen, ABC):
    """A frozen object whose fields are its parameters; knows no model, only capabilities."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGITS})
    kind: ClassVar[Literal["image", "words"]] = "image"
    library: ClassVar[str | None] = None
    """Name and version of the library that computes it; None for our own."""
    score: Score = "logit"
    """What is explained: probability, logit or log_probability."""

    @property
    def primary(self) -> str:
        """The array that metrics and pictures use; its cells divide the input evenly."""
        return "map"

    def passes(self, geometry: Geometry) -> int:
        """Trunk forward passes an image costs beyond the clean one."""
        return 0

    def objection(self, model: VQAModel) -> str | None:
        """Why it cannot explain a model that has all it ``needs``; None where it can."""
        return None

    def sweeps(self, geometry: Geometry) -> "tuple[Request, ...]":
        """What it asks of the sweep engine, all of it among ``passes``."""
        return ()

    @property
    def approximation(self) -> str | None:
        """What makes its maps approximate, by its own choice; None where they are exact."""
        return None

    def exact(self) -> Self:
        """The same method without its approximation."""
        return self

    def backward_passes(self) -> frozenset[tuple[str, Score]]:
        """The trunk backward passes it needs, one a row each; methods share those of one name."""
        return frozenset()


class ImageMethod(Method):
    """Importance over a grid or over pixels."""

    @abstractmethod
    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        """Every array the method stores, its shape known from the geometry alone."""

    @abstractmethod
    def explain(self, scene: Scene) -> Maps:
        """All rows of the scene at once, signed and un-normalised."""


class WordMethod(Method):
    """Importance over the question's words."""

    kind: ClassVar[Literal["image", "words"]] = "words"

    @abstractmethod
    def explain(self, scene: Scene) -> WordScores:
        """All rows of the scene at once."""
