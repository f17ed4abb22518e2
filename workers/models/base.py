"""What a VQA model is: a black box, or a trunk that never sees the question and a head that does.

The split is what lets the 257 trunk passes of one image serve all its questions and targets.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from schemas.base import Frozen
from schemas.frame import Frame
from workers.errors import BadExample
from workers.vqa_accuracy import normalise

Tokens = tuple[str, ...]
GlimpseMap = Literal["mean", "last"]


class Capability(StrEnum):
    """What a model can be asked for; a method's ``needs`` is compared with it at plan time."""

    LOGITS = "logits"
    """``logits(canvas, questions)``: every model that looks at pixels."""
    SPLIT = "split"
    """``trunk`` / ``words`` / ``encode`` / ``head``: late fusion, the trunk is question-free."""
    GRADIENTS = "gradients"
    """Logits are differentiable with respect to the canvas; of a split model, trunk and head with
    respect to pixels, features and embeddings; of a model of regions, with respect to those."""
    FEATURE_MAP = "feature_map"
    """The trunk's output is the last convolutional feature map, ``(n, channel, y, x)``."""
    ATTENTION = "attention"
    """The head returns its own attention over the feature map's cells, or over the regions."""
    COMBINE = "combine"
    """The head fuses image and question in one layer and answers from that layer alone."""
    TOKENS = "tokens"
    """A transformer whose attention between tokens can be read, with gradients at it."""
    EMBEDDINGS = "embeddings"
    """Logits are differentiable with respect to the embeddings of the question's words."""
    REGIONS = "regions"
    """``logits(regions, questions)``: the model sees regions, their features computed beforehand;
    what is painted on the canvas does not reach it."""


class Geometry(Frozen):
    """Sizes a plan needs before any image is read: input, feature map, glimpses, combine layer,
    image tokens, regions."""

    input_height: int
    input_width: int
    varies: bool = False
    """Canvases follow their image's shape and this is but a typical one; maps at the input's
    pixels, which one array has to hold, are out of question then."""
    feature_height: int = 0
    feature_width: int = 0
    glimpses: int = 0
    glimpse_map: GlimpseMap = "mean"
    """Which map the glimpses make: the mean of glimpses that count alike, or the last of those that
    follow one another."""
    combine: int = 0
    token_height: int = 0
    token_width: int = 0
    regions: int = 0
    """Regions an image has at most."""
    region_channels: int = 0
    """Features of each."""


@dataclass(frozen=True)
class Words:
    """Embedded questions, end-padded: ``embeddings (n, word, channel)``, ``lengths (n,)``."""

    embeddings: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class HeadOutput:
    """``logits (n, answer)`` and, where the model has it, ``attention (n, glimpse, y, x)``."""

    logits: Tensor
    attention: Tensor | None = None


Stream = Literal["all", "image", "text", "answer"]
"""A sequence of tokens that attends and is attended to; ``all`` is image and text in one."""


@dataclass(frozen=True)
class Places:
    """Which tokens of a stream something is in."""

    stream: Stream
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One attention layer: ``probabilities (n, head, query, key)``, part of the logits' graph. Of a
    stream with a sequence for every answer, n is the number of answers."""

    queries: Stream
    keys: Stream
    probabilities: Tensor


@dataclass(frozen=True)
class Attended:
    """One pass of one image and one question."""

    logits: Tensor
    """``(answer,)`` of the answers that were asked for."""
    layers: tuple[Layer, ...]
    """In the order they ran."""
    image: Places
    """The image's tokens."""
    cells: tuple[int, int]
    """How many cells the image has, ``(y, x)``; they come row by row."""
    words: tuple[Places, ...]
    """Each word's sub-tokens."""
    output: tuple[Places, ...]
    """For each answer, the tokens that it is read from."""
    cover: Tensor | None = None
    """Which of the image's tokens each cell lies in, ``(level, cell)``; None where cells and tokens
    are the same."""


@dataclass(frozen=True)
class Embedded:
    """One pass of one image and one question, to take gradients at the question."""

    logits: Tensor
    """``(answer,)`` of the answers that were asked for."""
    embeddings: Tensor
    """``(1, token, channel)``, part of the logits' graph."""
    words: tuple[tuple[int, ...], ...]
    """Each word's sub-tokens."""


@dataclass(frozen=True)
class Seen:
    """An image as a model takes it: ``canvas (3, y, x)`` and the frame it shows, and of a model of
    regions ``regions (region, 4 + channel)`` as ``RegionModel`` has them."""

    canvas: Tensor
    frame: Frame
    regions: Tensor | None = None


class Near:
    """An image's questions, asked of canvases that are the image's own but for what is painted over
    it. A model that need not compute anew what they share with it has a kind of its own."""

    def __init__(self, model: "VQAModel", questions: Sequence[Tokens]) -> None:
        self.model, self.questions = model, questions

    def groups(self, windows: Sequence[tuple[int, int, int, int]]) -> list[list[int]]:
        """Which windows (top, bottom, left, right) are best painted in one batch: every one's
        number once."""
        return [list(range(len(windows)))]

    def __call__(self, canvases: Tensor) -> Tensor:
        """Canvases ``(n, 3, y, x)`` -> ``(n, question, answer)``."""
        return self.model.answers_to_all(canvases, self.questions)


@dataclass(frozen=True)
class RegionOutput:
    """``logits (n, answer)`` and, where the model has it, ``attention (n, region)``."""

    logits: Tensor
    attention: Tensor | None = None


class VQAModel(nn.Module, ABC):
    """A frozen, evaluating VQA classifier; weights never require gradients, mode is always eval.

    ``canvas`` is the model's input image before normalisation: float RGB in 0..255, resized and
    cropped, ``(n, 3, y, x)``. Occlusion paints there, so a patch colour means what the papers mean.
    """

    provides: frozenset[Capability] = frozenset({Capability.LOGITS})
    answers: tuple[str, ...]
    """The answer vocabulary; an answer index is a position in it."""
    geometry: Geometry
    open: bool = False
    """It writes its answers and has no list of them: an ``OpenModel`` before ``among``."""
    rest: bool = False
    """Whether the last answer stands for every other text."""
    about: str = ""
    """What a person should know of it: what was found in its files, how it answers."""
    config: Frozen | None = None
    """Everything but the weights that decides the logits; part of the model's digest."""

    @abstractmethod
    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """Upright uint8 RGB ``(y, x, 3)`` -> canvas ``(3, y, x)`` on the CPU, and its frame."""

    def see(self, image: np.ndarray, image_id: int | None = None) -> Seen:
        """All that a scene needs of an image, its tensors on the model's device."""
        canvas, frame = self.prepare(image)
        return Seen(self.moved(canvas), frame)

    def moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the model's device; nothing waits for a copy to a GPU."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    @abstractmethod
    def tokenise(self, question: str) -> Tokens:
        """The question's words as the model was trained to see them; possibly none."""

    def cut_off(self, question: str) -> Tokens:
        """The words behind those of ``tokenise``, of a model that sees so many and no more: it sees
        the first of them where another is dropped."""
        return ()

    @abstractmethod
    def known(self, token: str) -> bool:
        """Whether the vocabulary has this word."""

    @abstractmethod
    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """Canvas ``(n, 3, y, x)`` and n token sequences -> ``(n, answer)``. An empty question is
        allowed (all padding)."""

    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """Every question asked of every canvas ``(n, 3, y, x)`` -> ``(n, question, answer)``.

        A model overrides it where its questions can share work, on the image above all.
        """
        return torch.stack([self.logits(canvas, [q] * len(canvas)) for q in questions], 1)

    def near(self, canvas: Tensor, questions: Sequence[Tokens]) -> Near:
        """What asks these questions of canvases that differ from ``canvas (3, y, x)`` in parts."""
        return Near(self, questions)

    def bound_like(self, other: "VQAModel") -> "VQAModel":
        """Itself; an open model with the answers that another copy of it has been given."""
        return self

    def answer_index(self, answer: str | None) -> int | None:
        """Position of an answer in the vocabulary, as it is written there or, failing that, as the
        official evaluation compares answers; None when it is not there."""
        if answer is None:
            return None
        if not hasattr(self, "_answer_index"):
            numbers = range(len(self.answers) - 1, -1, -1)  # of equals the first one stays
            self._answer_index = {self.answers[i]: i for i in numbers}
            self._normal_index = {normalise(self.answers[i]): i for i in numbers}
        found = self._answer_index.get(answer)
        return self._normal_index.get(normalise(answer)) if found is None else found

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class SplitModel(VQAModel):
    """A late-fusion model: ``head(trunk(normalise(canvas)), encode(words(questions)))``."""

    provides: frozenset[Capability] = frozenset(
        {
            Capability.LOGITS,
            Capability.SPLIT,
            Capability.GRADIENTS,
            Capability.FEATURE_MAP,
            Capability.EMBEDDINGS,
        }
    )

    @abstractmethod
    def normalise(self, canvas: Tensor) -> Tensor:
        """Canvas -> the trunk's input, ``(n, 3, y, x)``, element-wise."""

    @abstractmethod
    def trunk(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> features ``(n, channel, y, x)``. Never sees the question."""

    @abstractmethod
    def words(self, questions: Sequence[Tokens]) -> Words:
        """Token sequences -> padded embeddings (before any non-linearity) and lengths."""

    @abstractmethod
    def encode(self, words: Words) -> Tensor:
        """Embedded questions -> question states ``(n, state)``; padding has no influence."""

    @abstractmethod
    def head(self, features: Tensor, states: Tensor) -> HeadOutput:
        """Features ``(n, channel, y, x)`` fused with states ``(n, state)``."""

    def pool(self, features: Tensor, states: Tensor) -> Tensor:
        """All that answers need of images: features ``(n, channel, y, x)`` and states
        ``(question, state)``, each asked of every image -> ``(n, question, pooled)``.

        Together with ``classify`` it is ``head`` for many questions; a model overrides both where
        part of its head is the same for all questions. Here they are the logits themselves.
        """
        # A head may overwrite its input, and the next question needs the same features.
        heads = (self.head(features.clone(), s.expand(len(features), -1)) for s in states)
        return torch.stack([output.logits for output in heads], 1)

    def classify(self, pooled: Tensor, states: Tensor) -> Tensor:
        """``(n, question, pooled)`` and states ``(question, state)`` -> logits ``(n, question,
        answer)``."""
        return pooled

    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        features = self.trunk(self.normalise(canvas))
        return self.head(features, self.encode(self.words(questions))).logits


class CombineModel(SplitModel):
    """A late-fusion model whose head has a combine layer ``a``: ``answer(combine(features, q))``.

    The question states are the question embedding ``q``.
    """

    provides = SplitModel.provides | {Capability.COMBINE}

    @abstractmethod
    def combine(self, features: Tensor, states: Tensor) -> Tensor:
        """Features ``(n, channel, y, x)`` and states ``(n, state)`` -> ``a (n, combine)``."""

    @abstractmethod
    def answer_from_combine(self, combined: Tensor) -> Tensor:
        """``a (..., combine)`` -> logits ``(..., answer)``."""

    def head(self, features: Tensor, states: Tensor) -> HeadOutput:
        return HeadOutput(self.answer_from_combine(self.combine(features, states)))


class EmbeddingModel(VQAModel):
    """A model that shows the embeddings of a question's words; one pass a call, its graph kept."""

    @abstractmethod
    def embed(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Embedded:
        """The question's embeddings and the logits of some answers for a canvas ``(3, y, x)``, or
        for ``regions (region, 4 + channel)`` of a model that sees those."""


class TokenModel(EmbeddingModel):
    """A transformer that shows what its tokens hold too."""

    @abstractmethod
    def attend(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Attended:
        """The logits of some answers for a canvas ``(3, y, x)``, and its layers' attention."""


@dataclass(frozen=True)
class Written:
    """An answer and its tokens, the model's own spelling where there are none."""

    answer: str
    tokens: tuple[int, ...] | None = None


class OpenModel(VQAModel):
    """A model that writes its answers. It explains some of them: for an image and its questions
    those it writes and those it is given."""

    @abstractmethod
    def write(self, canvas: Tensor, questions: Sequence[Tokens]) -> list[Written]:
        """What it answers to each question about a canvas ``(3, y, x)``; greedy, so the same each
        time."""

    @abstractmethod
    def spelt(self, answer: str) -> list[int]:
        """The tokens of a given answer, the end included."""

    @abstractmethod
    def among(self, answers: Sequence[Written]) -> VQAModel:
        """The same model with these answers, and one more that stands for every other text: the
        softmax of its logits is the probability that it writes exactly this."""


class RegionModel(VQAModel):
    """A model that sees regions in place of pixels: rectangles that a detector has found, with
    features that were computed beforehand. Its canvas is the photo, for people alone.

    ``regions (n, region, 4 + channel)`` are rows of ``x1, y1, x2, y2``, fractions of the canvas,
    and features. A row without an area (zeros) is no region: it has no influence.
    """

    provides: frozenset[Capability] = frozenset({Capability.REGIONS, Capability.GRADIENTS})

    @abstractmethod
    def regions(self, image_id: int, height: int, width: int) -> Tensor:
        """Those of an image, ``(region, 4 + channel)`` on the CPU, rows of zeros at the end where
        it has fewer than others; the photo is of this size."""

    @abstractmethod
    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        """Regions ``(n, region, 4 + channel)`` and n token sequences."""

    def see(self, image: np.ndarray, image_id: int | None = None) -> Seen:
        if image_id is None:
            raise BadExample(
                f"{type(self).__name__} sees regions, which are stored by the image's number, and "
                "none was given; give image_id, or a file whose name ends with it"
            )
        canvas, frame = self.prepare(image)
        regions = self.regions(image_id, *image.shape[:2])
        return Seen(self.moved(canvas), frame, self.moved(regions))

    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """In place of canvases it takes ``regions (n, region, 4 + channel)``."""
        return self.answer(canvas, questions).logits


def present(regions: Tensor) -> Tensor:
    """Which rows of ``(..., region, 4 + channel)`` are regions, ``(..., region)``."""
    return (regions[..., 2] > regions[..., 0]) & (regions[..., 3] > regions[..., 1])


class ModelSpec(Frozen, ABC):
    """A model's recipe fields; ``build`` loads checkpoint and vocabulary and validates both."""

    @abstractmethod
    def build(self, device: torch.device) -> VQAModel:
        """The model on its device, in eval mode, weights frozen. Deterministic."""


def freeze(model: VQAModel) -> VQAModel:
    """Eval mode for good and no weight gradients."""
    return model.eval().requires_grad_(False)
