"""A user's own class as a model: ``logits`` and ``answers`` suffice, more methods unlock more."""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from schemas.base import Frozen
from schemas.frame import Frame
from workers.errors import UserError
from workers.models.base import (
    Capability,
    Geometry,
    GlimpseMap,
    HeadOutput,
    ModelSpec,
    SplitModel,
    Tokens,
    VQAModel,
    Words,
    freeze,
)
from workers.models.modules import find_module
from workers.models.preprocessing import Resize, square_crop, to_canvas

SPLIT = ("trunk", "words", "encode", "head")
"""A class with all four is a late-fusion model; with some of them it is told what is missing."""
SIZE = 224
"""Side of the canvas where a class says none."""


class PythonSpec(ModelSpec):
    """A class of one's own, looked for in the working directory and among installed packages.

    Its instances have ``answers``, a list, and ``logits(images, questions) -> (n, answer)``:
    ``images`` float32 RGB in 0..255, resized, ``(n, 3, y, x)``; ``questions`` n strings. Weights
    are frozen and the mode is eval whatever the class does. Optional attributes: ``image_size``
    (224), ``resize`` (``squash``, or ``shorter_side_crop``), ``central_fraction`` (1),
    ``glimpse_map`` (``mean``, or ``last``: which map several glimpses make). Optional methods:
    ``tokenise(question)`` -> its words, ``cut_off(question)`` -> those behind them where it leaves
    some out, ``known(word)``, and, together,

    * ``trunk(images) -> (n, channel, y, x)``, images after ``normalise(images)`` if there is one;
    * ``words(questions) -> (embeddings (n, word, channel), lengths (n,))``, padded at the end;
    * ``encode(embeddings, lengths) -> (n, state)``;
    * ``head(features, states) -> logits``, or ``(logits, attention (n, glimpse, y, x))``;

    which make it a late-fusion model that ``logits`` need not be written for. A class on
    ``workers.models.base.VQAModel`` is taken as it is.
    """

    target: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``package.module:Class``."""
    arguments: dict[str, Any] = Field(default={})
    """Of its constructor, by name."""

    def build(self, device: torch.device) -> VQAModel:
        own = find_class(self.target)
        try:
            inspect.signature(own).bind(**self.arguments)
        except TypeError as error:
            raise UserError(
                f"model.arguments: {self.target} cannot be made with {self.arguments}: {error}; "
                f"its constructor is {own.__name__}{inspect.signature(own)}"
            ) from None
        made = own(**self.arguments)
        if isinstance(made, nn.Module):
            made.to(device)
        if isinstance(made, VQAModel):
            return freeze(made)
        return wrap(made, self._config(own), device)

    def _config(self, own: type) -> "OwnConfig":
        source = Path(inspect.getfile(own)).read_bytes()
        return OwnConfig(
            target=self.target,
            arguments=self.arguments,
            source=hashlib.sha256(source).hexdigest(),
        )


class OwnConfig(Frozen):
    """What decides the answers of a model of one's own beside its weights."""

    target: str
    arguments: dict[str, Any]
    source: str
    """SHA-256 of the module's file: another forward pass is another model."""


def find_class(target: str) -> type:
    """The class at ``package.module:Class``, which must look like a model before it is called:
    a recipe names models, not any code at all."""
    module_name, _, name = target.partition(":")
    module = find_module(module_name, target)
    own = getattr(module, name, None)
    if not inspect.isclass(own):
        classes = [n for n, c in vars(module).items() if inspect.isclass(c) and is_model(c)]
        raise UserError(
            f"model.target: {module_name} has no class {name!r}; its classes with `logits` or "
            f"`trunk`: {', '.join(classes) or 'none'}"
        )
    if not is_model(own):
        raise UserError(
            f"model.target: {target} has neither logits(images, questions) nor all of "
            f"{', '.join(SPLIT)}; it has {', '.join(_public(own)) or 'no public methods'}"
            f"{_unfinished(own)}"
        )
    return own


def is_model(own: type) -> bool:
    """Whether a class has what a model cannot do without."""
    return callable(getattr(own, "logits", None)) or not missing_for_split(own)


def missing_for_split(own: object) -> list[str]:
    """The methods of a late-fusion model that an object or a class does not have."""
    return [name for name in SPLIT if not callable(getattr(own, name, None))]


def _unfinished(own: type) -> str:
    missing = missing_for_split(own)
    return f"; still missing: {', '.join(missing)}" if len(missing) < len(SPLIT) else ""


def _public(own: type) -> list[str]:
    return [
        name
        for name, value in inspect.getmembers(own, callable)
        if not name.startswith("_") and not hasattr(nn.Module, name)
    ]


def wrap(own: Any, config: OwnConfig, device: torch.device) -> VQAModel:
    """An object with the methods that ``PythonSpec`` tells of, as a model on its device."""
    kind = OwnModel if missing_for_split(own) else OwnSplitModel
    model = kind(own, config).to(device)
    freeze(model)
    model.look()
    return model


class _Own(VQAModel):
    """What both kinds share: answers, canvas and words, all but the canvas by the user's leave."""

    config: OwnConfig

    def __init__(self, own: Any, config: OwnConfig) -> None:
        super().__init__()
        self.own: Any = own
        self.config = config
        self.answers = _answers(own, config.target)
        self.size, self.fraction, self.how = _canvas_of(own, config.target)
        self.geometry = Geometry(input_height=self.size, input_width=self.size)
        # Knows device and type where the user's object has no tensors of its own.
        self.register_buffer("anchor", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.get_buffer("anchor").device

    @property
    def dtype(self) -> torch.dtype:
        return self.get_buffer("anchor").dtype

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        height, width = image.shape[:2]
        crop = square_crop(height, width, self.size, self.fraction, self.how)
        return to_canvas(image, crop), crop.frame(height, width)

    def tokenise(self, question: str) -> Tokens:
        if hasattr(self.own, "tokenise"):
            return tuple(self.own.tokenise(question))
        return tuple(question.split())

    def cut_off(self, question: str) -> Tokens:
        return tuple(self.own.cut_off(question)) if hasattr(self.own, "cut_off") else ()

    def known(self, token: str) -> bool:
        return not hasattr(self.own, "known") or bool(self.own.known(token))

    def look(self) -> None:
        """A pass over a gray canvas: what the model can do, and whether it gives what it should."""
        canvas = torch.full((1, 3, self.size, self.size), 128.0, device=self.device)
        with torch.enable_grad():
            logits = self.logits(canvas.requires_grad_().clone(), [self.tokenise("what is this")])
        self._found(logits.requires_grad)

    def _found(self, gradients: bool) -> None:
        found = {Capability.LOGITS, *([Capability.GRADIENTS] if gradients else [])}
        self.provides = frozenset(found)

    def _checked(self, logits: Any, n: int, method: str) -> Tensor:
        wanted = (n, len(self.answers))
        if isinstance(logits, Tensor) and tuple(logits.shape) == wanted:
            return logits
        shape = list(logits.shape) if hasattr(logits, "shape") else repr(logits)[:80]
        raise UserError(
            f"{self.config.target}.{method} gave a {type(logits).__name__} of {shape} for {n} "
            f"questions; give a torch tensor of shape {list(wanted)}, a row a question and a "
            f"column for each of the {wanted[1]} answers"
        )


class OwnModel(_Own):
    """A black box: images and questions in, logits out."""

    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        given = self.own.logits(canvas, [" ".join(tokens) for tokens in questions])
        return self._checked(given, len(questions), "logits")


class OwnSplitModel(_Own, SplitModel):
    """A late-fusion model of the user's four methods."""

    def normalise(self, canvas: Tensor) -> Tensor:
        return self.own.normalise(canvas) if hasattr(self.own, "normalise") else canvas

    def trunk(self, pixels: Tensor) -> Tensor:
        return self.own.trunk(pixels)

    def words(self, questions: Sequence[Tokens]) -> Words:
        words = Words(*self.own.words([" ".join(tokens) for tokens in questions]))
        for tokens, length in zip(questions, words.lengths.tolist(), strict=True):
            if tokens and length != len(tokens):  # importances would be of other words
                raise UserError(
                    f"{self.config.target}.words embeds {length} words of {' '.join(tokens)!r}, "
                    f"which its tokenise cuts into {len(tokens)}: let both see the same words, "
                    "without marks of your own before or between them"
                )
        return words

    def encode(self, words: Words) -> Tensor:
        return self.own.encode(words.embeddings, words.lengths)

    def head(self, features: Tensor, states: Tensor) -> HeadOutput:
        given = self.own.head(features, states)
        output = HeadOutput(*given) if isinstance(given, tuple) else HeadOutput(given)
        self._checked(output.logits, len(states), "head")
        return output

    def look(self) -> None:
        super().look()
        with torch.no_grad():
            canvas = torch.full((1, 3, self.size, self.size), 128.0, device=self.device)
            features = self.trunk(self.normalise(canvas))
            if features.ndim != 4:
                raise UserError(
                    f"{self.config.target}.trunk gave features of shape {list(features.shape)} for "
                    "one image; give a feature map (1, channel, y, x)"
                )
            output = self.head(features, self.encode(self.words([self.tokenise("what is this")])))
        attention = output.attention
        self.geometry = Geometry(
            input_height=self.size,
            input_width=self.size,
            feature_height=features.shape[2],
            feature_width=features.shape[3],
            glimpses=0 if attention is None else attention.shape[1],
            glimpse_map=_glimpse_map(self.own, self.config.target),
        )
        own = {Capability.SPLIT, Capability.FEATURE_MAP, Capability.EMBEDDINGS}
        self.provides |= own if attention is None else own | {Capability.ATTENTION}


def _answers(own: Any, target: str) -> tuple[str, ...]:
    answers = getattr(own, "answers", None)
    if not isinstance(answers, list | tuple) or not all(isinstance(a, str) for a in answers):
        raise UserError(
            f"{target}.answers is {answers!r:.100}; give the list of answers, as strings, in the "
            "order of the logits' columns"
        )
    if len(set(answers)) < max(2, len(answers)):
        raise UserError(
            f"{target}.answers has {len(answers)} entries, {len(set(answers))} of them different; "
            "give two answers or more, each once"
        )
    return tuple(answers)


def _canvas_of(own: Any, target: str) -> tuple[int, float, Resize]:
    """Side, part of the shorter side that a crop keeps, and the kind of resizing."""
    size = getattr(own, "image_size", SIZE)
    fraction = getattr(own, "central_fraction", 1.0)
    how: Resize = getattr(own, "resize", "squash")
    if not (isinstance(size, int) and size > 0):
        raise UserError(f"{target}.image_size is {size!r}; give the side in pixels, a whole number")
    if not (isinstance(fraction, int | float) and 0 < fraction <= 1):
        raise UserError(f"{target}.central_fraction is {fraction!r}; give a number in 0..1")
    if how not in get_args(Resize):
        raise UserError(f"{target}.resize is {how!r}; give one of {', '.join(get_args(Resize))}")
    return size, float(fraction), how


def _glimpse_map(own: Any, target: str) -> GlimpseMap:
    """Which map the glimpses of its attention make."""
    how: GlimpseMap = getattr(own, "glimpse_map", "mean")
    if how not in get_args(GlimpseMap):
        known = ", ".join(get_args(GlimpseMap))
        raise UserError(f"{target}.glimpse_map is {how!r:.100}; give one of {known}")
    return how
