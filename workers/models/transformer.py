"""Models of Hugging Face: what all of them have in common, and classifiers.

Words are a question's words between white space, never sub-tokens: a question without its second
word is that shorter text, tokenised afresh.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from schemas.base import Frozen
from schemas.frame import Frame
from workers.errors import BadExample
from workers.models.base import (
    Attended,
    Capability,
    Embedded,
    Layer,
    Places,
    TokenModel,
    Tokens,
    VQAModel,
)
from workers.models.pixels import TYPICAL, Pixels
from workers.models.tokens import tapped, word_tokens


class TransformerConfig(Frozen):
    """What decides a transformer's logits beside its weights and its answers."""

    family: str
    processor: str
    """SHA-256 of the settings of image processor and tokeniser."""
    prompt: str
    size: int | None
    longest: int
    mode: str
    longest_answer: int


class Subwords(VQAModel):
    """What all have in common: a net, words, a limit of sub-tokens."""

    net: Any
    tokenizer: Any
    limit: int | None = None
    """Sub-tokens a question may have."""

    @property
    def dtype(self) -> torch.dtype:
        """Of images, whatever the weights are in: neither pixels of 0..255 nor boxes fit a half."""
        return torch.float32

    @property
    def weight_dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def tokenise(self, question: str) -> Tokens:
        count = len(self.tokenizer(question)["input_ids"])
        if self.limit is not None and count > self.limit:
            raise BadExample(
                f"question {question[:57]!r} has {count} sub-tokens, the limit of this model is "
                f"{self.limit}; shorten it"
            )
        return tuple(question.split())

    def known(self, token: str) -> bool:
        """Whether any part of the word has an embedding of its own."""
        ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        return any(i != self.tokenizer.unk_token_id for i in ids)

    def asked(self, questions: Sequence[Tokens]) -> dict[str, Tensor]:
        """The questions' sub-tokens, padded at the end, on the model's device."""
        texts = [" ".join(tokens) for tokens in questions]
        made = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in made.items()}


class Transformer(Subwords, TokenModel):
    """One that looks at pixels: what an image processor makes of a canvas."""

    provides = frozenset(
        {Capability.LOGITS, Capability.GRADIENTS, Capability.EMBEDDINGS, Capability.TOKENS}
    )

    def __init__(
        self, net: Any, processor: Any, pixels: Pixels, answers: Sequence[str], config: Frozen
    ) -> None:
        super().__init__()
        self.net = net
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.pixels = pixels
        self.answers = tuple(answers)
        self.geometry = pixels.geometry
        self.config = config

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        return self.pixels.prepare(image)

    def seen(self, canvas: Tensor) -> dict[str, Tensor]:
        """The images as the net takes them."""
        return self._placed(self.pixels.values(canvas))

    def _placed(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the model's device, in the type of its weights."""
        weights = self.weight_dtype
        return {
            name: tensor.to(self.device, weights if tensor.is_floating_point() else None)
            for name, tensor in values.items()
        }

    def lay_out(self) -> None:
        """Count the image's tokens; where they form no grid, attention to them makes no map."""
        canvas, _ = self.prepare(np.zeros((*TYPICAL, 3), np.uint8))
        height, width = self.grid(canvas)
        sizes = {"token_height": height, "token_width": width}
        self.geometry = self.geometry.model_copy(update=sizes)
        if not height:
            self.provides -= {Capability.TOKENS}

    @abstractmethod
    def grid(self, canvas: Tensor) -> tuple[int, int]:
        """Cells of a canvas ``(3, y, x)`` by its tokens, ``(y, x)``; zeros if in no grid."""

    def embed(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Embedded:
        with tapped([self.word_embeddings]) as outputs:
            logits = self.some_logits(canvas, question, answers)
        return Embedded(logits, outputs[0], tuple(word_tokens(self.tokenizer, question)))

    @property
    @abstractmethod
    def word_embeddings(self) -> nn.Module:
        """What looks the question's sub-tokens up."""

    @abstractmethod
    def some_logits(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Tensor:
        """Of one canvas ``(3, y, x)`` and question: ``(answer,)`` of some answers."""


class _InOrder(TorchFunctionMode):
    """Drawing all of n without putting any back gives all of n: here in their order.

    ViLT draws its image patches so, which would make its sums of another order at every call.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        drawn = func is torch.multinomial and not kwargs and len(args) == 2
        if drawn and args[0].ndim == 1 and int(args[1]) == len(args[0]):
            return torch.arange(len(args[0]), device=args[0].device)
        return func(*args, **(kwargs or {}))


class Classifier(Transformer):
    """A net with one logit an answer (ViLT). Confidence is the softmax of its logits, as for every
    model here; it was trained with a sigmoid for each, which ranks the answers alike."""

    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        with _InOrder():
            return self.net(**self.asked(questions), **self.seen(canvas)).logits.float()

    def some_logits(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Tensor:
        return self.logits(canvas[None], [question])[0, list(answers)]

    @property
    def word_embeddings(self) -> nn.Module:
        return self.net.vilt.embeddings.text_embeddings.word_embeddings

    def grid(self, canvas: Tensor) -> tuple[int, int]:
        return in_patches(canvas, self.net.config.patch_size)

    def attend(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Attended:
        """Question and image are one sequence; the answer is read from its first token. After the
        question's tokens comes the image's own, then its patches row by row."""
        layers = [layer.attention.attention.dropout for layer in self.net.vilt.encoder.layer]
        with tapped(layers) as outputs:
            logits = self.some_logits(canvas, question, answers)
        words = word_tokens(self.tokenizer, question)
        text = len(self.tokenizer(" ".join(question))["input_ids"])
        cells = self.grid(canvas)
        return Attended(
            logits=logits,
            layers=tuple(Layer("all", "all", probabilities) for probabilities in outputs),
            image=Places("all", tuple(range(text + 1, text + 1 + cells[0] * cells[1]))),
            cells=cells,
            words=tuple(Places("all", tokens) for tokens in words),
            output=(Places("all", (0,)),) * len(answers),
        )


def in_patches(canvas: Tensor, side: int) -> tuple[int, int]:
    """Patches that a canvas ``(3, y, x)`` is cut into, ``(y, x)``."""
    return canvas.shape[1] // side, canvas.shape[2] // side
