"""What an explanation method is, and the scene it explains: one image with all its questions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from schemas.arrays import ArraySpec
from schemas.base import Frozen
from workers.models.base import Capability, Geometry, HeadOutput, SplitModel, Tokens, VQAModel

Score = Literal["probability", "logit", "log_probability"]
Target = Literal["predicted", "truth"]


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
    shared: dict[object, object] = field(default_factory=dict)
    """Results methods leave for one another, keyed by what was computed."""

    def once(self, key: object, compute: Callable[[], object]) -> object:
        """``compute()`` the first time a key is asked for, the same object afterwards."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]

    @property
    def split(self) -> SplitModel:
        """The model as a late-fusion one; the plan has checked that it is."""
        assert isinstance(self.model, SplitModel)
        return self.model

    @cached_property
    def pixels(self) -> Tensor:
        """The clean normalised input ``(1, 3, y, x)``."""
        return self.split.normalise(self.canvas[None].to(self.model.dtype))

    @cached_property
    @torch.no_grad()
    def features(self) -> Tensor:
        """The clean trunk output ``(1, channel, y, x)``, without a graph."""
        return self.split.trunk(self.pixels)

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
            canvas = self.canvas[None].expand(len(self.questions), -1, -1, -1)
            return HeadOutput(self.model.logits(canvas, self.questions))
        features = self.features.expand(len(self.questions), -1, -1, -1)
        return self.split.head(features, self.states)

    @cached_property
    def predictions(self) -> list[int]:
        """Top answer of every question on the clean image."""
        return self.output.logits.argmax(1).tolist()

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


def scores(logits: Tensor, answers: Tensor, score: Score) -> Tensor:
    """The explained score of ``answers (n,)`` under ``logits (n, answer)`` -> ``(n,)``."""
    if score == "logit":
        values = logits
    elif score == "probability":
        values = logits.softmax(-1)
    else:
        values = logits.log_softmax(-1)
    return values.gather(-1, answers[:, None])[:, 0]


@dataclass(frozen=True)
class Maps:
    """Named arrays: ``(row, *dims)`` where the spec is per target, else ``(question, *dims)``."""

    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class WordScores:
    """Per row, one float per token; ``top_answers`` (per question) where words were dropped."""

    importances: list[np.ndarray]
    top_answers: list[np.ndarray] | None = None


class Method(Frozen, ABC):
    """A frozen object whose fields are its parameters; knows no model, only capabilities."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGITS})
    kind: ClassVar[Literal["image", "words"]] = "image"
    primary: ClassVar[str] = "map"
    """The array that metrics and pictures use."""
    score: Score = "logit"
    """What is explained: probability, logit or log_probability."""

    def passes(self, geometry: Geometry) -> int:
        """Trunk forward passes an image costs beyond the clean one."""
        return 0


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
