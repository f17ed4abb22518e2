"""Models of Hugging Face as black boxes: classifiers, and decoders that candidates are read from.

Words are a question's words between white space, never sub-tokens: a question without its second
word is that shorter text, tokenised afresh.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from schemas.base import Frozen
from schemas.frame import Frame
from workers.errors import BadExample
from workers.models.base import Capability, Tokens, VQAModel
from workers.models.pixels import Pixels

ROWS = 256
"""Candidates that go through a decoder at once; bounds memory, not results."""


class TransformerConfig(Frozen):
    """What decides a transformer's logits beside its weights and its answers."""

    family: str
    processor: str
    """SHA-256 of the settings of image processor and tokeniser."""
    prompt: str
    size: int | None
    longest: int


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


class Transformer(Subwords):
    """One that looks at pixels: what an image processor makes of a canvas."""

    provides = frozenset({Capability.LOGITS, Capability.GRADIENTS})

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
        weights = self.weight_dtype
        values = self.pixels.values(canvas)
        return {
            name: tensor.to(self.device, weights if tensor.is_floating_point() else None)
            for name, tensor in values.items()
        }


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


class Chooser(Transformer):
    """A net that writes its answer; its logits are the log-likelihoods of the candidates.

    ``ids (answer, token)`` are the candidates' sub-tokens, padded at the end with ``-1``.
    """

    ids: Tensor

    def set_candidates(self, candidates: Sequence[Sequence[int]]) -> None:
        """Each candidate's sub-tokens, the token that ends an answer included."""
        ids = torch.full((len(candidates), max(map(len, candidates))), -1)
        for row, candidate in zip(ids, candidates, strict=True):
            row[: len(candidate)] = torch.tensor(candidate)
        self.register_buffer("ids", ids)

    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        groups: dict[Tokens, list[int]] = {}
        for row, question in enumerate(questions):
            groups.setdefault(tuple(question), []).append(row)
        rows = [i for own in groups.values() for i in own]
        parts = [self.answers_to_all(canvas[own], [q])[:, 0] for q, own in groups.items()]
        return torch.cat(parts)[torch.tensor(rows).argsort()]

    @abstractmethod
    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """``(n, question, answer)``; here it is the primitive."""


def likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """``sum_t log p(id_t)`` under ``logits (n, token, word)``; ``ids (n, token)``, -1 for none."""
    logp = logits.float().log_softmax(-1)
    own = logp.gather(-1, ids.clamp(min=0)[..., None])[..., 0]
    return own.masked_fill(ids < 0, 0).sum(-1)


class Blip(Chooser):
    """BLIP (Li et al. 2022): an image encoder, a question encoder that reads the image, and a
    decoder that reads the question's states. The image is encoded once for all questions.

    A candidate's logit is the sum of the log-probabilities of its sub-tokens and of the end.
    """

    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        image = self.net.vision_model(**self.seen(canvas)).last_hidden_state
        return torch.stack([self._answers(image, question) for question in questions], 1)

    def _answers(self, image: Tensor, question: Tokens) -> Tensor:
        text = self.asked([question])
        states = self.net.text_encoder(
            input_ids=text["input_ids"].expand(len(image), -1),
            attention_mask=text["attention_mask"].expand(len(image), -1),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], device=image.device).long(),
        ).last_hidden_state
        step = max(1, ROWS // len(image))
        return torch.cat([self._scores(states, ids) for ids in self.ids.split(step)], 1)

    def _scores(self, states: Tensor, ids: Tensor) -> Tensor:
        """Of some candidates ``(candidate, token)``: ``(n, candidate)``."""
        start = ids.new_full((len(ids), 1), self.net.decoder_start_token_id)
        given = torch.cat([start, ids[:, :-1].clamp(min=0)], 1).repeat(len(states), 1)
        states_of_each = states.repeat_interleave(len(ids), 0)
        logits = self.net.text_decoder(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            encoder_hidden_states=states_of_each,
            encoder_attention_mask=torch.ones(states_of_each.shape[:2], device=ids.device).long(),
        ).logits
        return likelihoods(logits, ids.repeat(len(states), 1)).unflatten(0, (len(states), -1))


class Generative(Chooser):
    """A language model that reads an image and a prompt (Qwen-VL, LLaVA, PaliGemma, SmolVLM ...).

    A candidate's logit is the teacher-forced sum of the log-probabilities of its sub-tokens and of
    the end, after the prompt. The prompt goes through once for all candidates.
    """

    prompt: Callable[[str], str]
    """A question -> the text that the model is given, the image's place included."""
    keeps: bool
    """Whether the net can be asked for the last position's logits alone."""
    new_cache: Callable[[], Any]
    """An empty cache of keys and values for the net."""

    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        return torch.stack([self._answers(canvas, " ".join(q)) for q in questions], 1)

    def inputs(self, canvas: Tensor, question: str) -> dict[str, Tensor]:
        """One prompt for every canvas, and the images, as the processor lays them out."""
        with warnings.catch_warnings():  # PaliGemma's lets numpy read tensors in an old way
            warnings.simplefilter("ignore", DeprecationWarning)
            made = self.processor(
                text=[self.prompt(question)] * len(canvas),
                images=self.pixels.listed(canvas),
                return_tensors="pt",
                **({"do_resize": False, "do_center_crop": False} if self.pixels.whole else {}),
            )
        weights = self.weight_dtype
        return {
            name: tensor.to(self.device, weights if tensor.is_floating_point() else None)
            for name, tensor in made.items()
            if name != "labels"
        }

    def _answers(self, canvas: Tensor, question: str) -> Tensor:
        given = self.inputs(canvas, question)
        last = {"logits_to_keep": 1} if self.keeps else {}
        cache = self.new_cache()
        prefix = self.net(**given, cache=cache, use_cache=True, **last)
        n, count = len(canvas), len(self.ids)
        cache.batch_repeat_interleave(count)
        ids = self.ids.repeat(n, 1)
        more = self.net(
            input_ids=ids[:, :-1].clamp(min=0),
            cache=cache,
            use_cache=True,
            **self._types(given, ids),
        )
        first = prefix.logits[:, -1:].repeat_interleave(count, 0)
        logits = torch.cat([first, more.logits], 1)
        return likelihoods(logits, ids).unflatten(0, (n, count))

    @staticmethod
    def _types(given: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """PaliGemma's prompt is read both ways, what follows causally."""
        if "token_type_ids" not in given:
            return {}
        return {"token_type_ids": torch.ones_like(ids[:, :-1])}
