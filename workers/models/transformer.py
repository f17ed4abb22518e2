"""Models of Hugging Face as black boxes: classifiers, and decoders that candidates are read from.

Words are a question's words between white space, never sub-tokens: a question without its second
word is that shorter text, tokenised afresh.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from math import isqrt, sqrt
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
    OpenModel,
    Places,
    Stream,
    TokenModel,
    Tokens,
    VQAModel,
    Written,
)
from workers.models.pixels import TYPICAL, Pixels
from workers.models.tokens import last_run, tapped, word_tokens

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
        weights = self.weight_dtype
        values = self.pixels.values(canvas)
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
        """How the image's tokens of a canvas ``(3, y, x)`` lie, ``(y, x)``; zeros if in no grid."""

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


REST = "(another answer)"
"""What stands for every text that is not among a writing model's answers."""
NOTHING = "(nothing)"
"""The answer of a model that ends before it has begun."""
MOST_LIKELY = -1e-7
"""Log-probability that all answers together have at most, so that the rest's is finite."""


class Chooser(Transformer, OpenModel):
    """A net that writes its answer; its logits are the log-likelihoods of the candidates.

    ``ids (answer, token)`` are the candidates' sub-tokens, padded at the end with ``-1``. Without
    candidates the model is open: ``among`` gives it some, and then its last logit is
    ``log(1 - sum_k p_k)``, every other text.
    """

    ids: Tensor
    rest: bool = False
    """Whether the last answer stands for every other text."""
    longest: int = 16
    """Sub-tokens that are written at most; an answer that does not end by then has no end."""

    def write(self, canvas: Tensor, questions: Sequence[Tokens]) -> list[Written]:
        return [self._written(self.generate(canvas, question)) for question in questions]

    @abstractmethod
    def generate(self, canvas: Tensor, question: Tokens) -> list[int]:
        """The sub-tokens that are likeliest one after another, the end included."""

    @abstractmethod
    def spelt(self, answer: str) -> list[int]:
        """The sub-tokens of a given answer, the end included."""

    def _written(self, ids: Sequence[int]) -> Written:
        """Named as datasets write answers: lower case, single spaces, no full stop."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Written(" ".join(text.lower().split()).rstrip(".") or NOTHING, tuple(ids))

    def among(self, answers: Sequence[Written]) -> "Chooser":
        other = copy(self)
        other._buffers = dict(self._buffers)
        other.answers, other.open, other.rest = (*(a.answer for a in answers), REST), False, True
        other.set_candidates([a.tokens or self.spelt(a.answer) for a in answers])
        return other.to(self.device)

    def set_candidates(self, candidates: Sequence[Sequence[int]]) -> None:
        """Each candidate's sub-tokens, the token that ends an answer included."""
        ids = torch.full((len(candidates), max(map(len, candidates), default=1)), -1)
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

    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        return self.with_rest(self.likelihoods(canvas, questions))

    @abstractmethod
    def likelihoods(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """Of all candidates, ``(n, question, candidate)``."""

    def with_rest(self, logits: Tensor) -> Tensor:
        """``(..., candidate)`` -> ``(..., answer)``."""
        if not self.rest:
            return logits
        total = logits.double().logsumexp(-1, keepdim=True).clamp(max=MOST_LIKELY)
        return torch.cat([logits, (-total.expm1()).log().to(logits)], -1)

    def asked_for(self, answers: Sequence[int]) -> tuple[Tensor, bool]:
        """The candidates among some answers, and whether the rest is, as the last of all."""
        rest = len(self.ids) in answers
        return self.ids[[a for a in answers if a < len(self.ids)]], rest


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

    def likelihoods(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        image = self._image(canvas)
        return torch.stack([self._answers(image, question) for question in questions], 1)

    def some_logits(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Tensor:
        ids, rest = self.asked_for(answers)
        logits = self._scores(self._states(self._image(canvas[None]), question), ids)[0]
        return self.with_rest(logits) if rest else logits

    def generate(self, canvas: Tensor, question: Tokens) -> list[int]:
        text = self.asked([question])
        said = self.net.generate(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            **self.seen(canvas[None]),
            **greedy(self.longest),
        )[0].tolist()
        return until(said[1:], self.tokenizer.sep_token_id)  # the first is where it starts from

    def spelt(self, answer: str) -> list[int]:
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.sep_token_id]

    @property
    def word_embeddings(self) -> nn.Module:
        return self.net.text_encoder.embeddings.word_embeddings

    def grid(self, canvas: Tensor) -> tuple[int, int]:
        return in_patches(canvas, self.net.config.vision_config.patch_size)

    def attend(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Attended:
        """Three sequences: the image, after a token of its own; the question, which reads the
        image; the answer, which reads the question. Each of an answer's tokens is read from the
        one before it."""
        modules, streams = self._attention_layers()
        with tapped(modules) as outputs:
            logits = self.some_logits(canvas, question, answers)
        cells = self.grid(canvas)
        words = word_tokens(self.tokenizer, question)
        lengths = (self.asked_for(answers)[0] >= 0).sum(1).tolist()
        return Attended(
            logits=logits,
            layers=tuple(Layer(q, k, p) for (q, k), p in zip(streams, outputs, strict=True)),
            image=Places("image", tuple(range(1, 1 + cells[0] * cells[1]))),
            cells=cells,
            words=tuple(Places("text", tokens) for tokens in words),
            output=tuple(Places("answer", tuple(range(length))) for length in lengths),
        )

    def _attention_layers(self) -> tuple[list[nn.Module], list[tuple[Stream, Stream]]]:
        """What puts out each layer's probabilities; who attends, and to whom."""
        encoder, decoder = self.net.text_encoder.encoder, self.net.text_decoder.bert.encoder
        found: list[tuple[nn.Module, tuple[Stream, Stream]]] = [
            (layer.self_attn, ("image", "image")) for layer in self.net.vision_model.encoder.layers
        ]
        for layer in encoder.layer:
            found.append((layer.attention.self, ("text", "text")))
            found.append((layer.crossattention.self, ("text", "image")))
        for layer in decoder.layer:
            found.append((layer.attention.self, ("answer", "answer")))
            found.append((layer.crossattention.self, ("answer", "text")))
        modules = [module.get_submodule("dropout") for module, _ in found]
        return modules, [streams for _, streams in found]

    def _image(self, canvas: Tensor) -> Tensor:
        """States of image tokens ``(n, token, channel)``."""
        return self.net.vision_model(**self.seen(canvas)).last_hidden_state

    def _answers(self, image: Tensor, question: Tokens) -> Tensor:
        states = self._states(image, question)
        step = max(1, ROWS // len(image))
        return torch.cat([self._scores(states, ids) for ids in self.ids.split(step)], 1)

    def _states(self, image: Tensor, question: Tokens) -> Tensor:
        """States of question tokens that have read the image, ``(n, token, channel)``."""
        text = self.asked([question])
        return self.net.text_encoder(
            input_ids=text["input_ids"].expand(len(image), -1),
            attention_mask=text["attention_mask"].expand(len(image), -1),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], device=image.device).long(),
        ).last_hidden_state

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


ALONG_THE_PROMPT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""What a processor gives for every token of a prompt."""


def _common(prompts: Sequence[Tensor]) -> int:
    """How many tokens all prompts begin with."""
    columns = zip(*(prompt.tolist() for prompt in prompts), strict=False)
    return next((i for i, tokens in enumerate(columns) if len(set(tokens)) > 1), len(prompts[0]))


class Generative(Chooser):
    """A language model that reads an image and a prompt (Qwen-VL, LLaVA, PaliGemma, SmolVLM ...).

    A candidate's logit is the teacher-forced sum of the log-probabilities of its sub-tokens and of
    the end, after the prompt. The prompt goes through once for all candidates, and of the prompts
    of one image's questions what they begin with, the image above all, once for all questions.
    """

    prompt: Callable[[str], str]
    """A question -> the text that the model is given, the image's place included."""
    continued: Callable[[str], list[int]]
    """The sub-tokens of an answer where it follows the prompt."""
    keeps: bool
    """Whether the net can be asked for the last position's logits alone."""
    new_cache: Callable[[], Any]
    """An empty cache of keys and values for the net."""

    shares: bool = False
    """Whether prompts share what they begin with; found by trying."""

    def likelihoods(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        texts = [" ".join(question) for question in questions]
        if self.shares and len(texts) > 1 and not canvas.requires_grad:
            return self._shared(canvas, texts)
        return torch.stack([self._scores(canvas, text, self.ids) for text in texts], 1)

    @torch.no_grad()
    def try_sharing(self) -> None:
        """Share where the answers to two questions about a picture are what they are alone: not
        where the image's tokens see the question behind them (PaliGemma)."""
        canvas, _ = self.prepare(np.zeros((*TYPICAL, 3), np.uint8))
        texts = ["what is this", "is it red ?"]
        ids = torch.tensor([self.spelt("yes")], device=self.device)
        alone = torch.stack([self._scores(canvas[None], text, ids) for text in texts], 1)
        together = self._shared(canvas[None], texts, ids)
        limit = sqrt(torch.finfo(self.net.dtype).eps) * max(1.0, float(alone.abs().max()))
        self.shares = bool((alone - together).abs().max() <= limit)

    def _shared(
        self, canvas: Tensor, questions: Sequence[str], own: Tensor | None = None
    ) -> Tensor:
        """All questions from one cache of what their prompts begin with, ``(n, question,
        candidate)``."""
        given = self.inputs(canvas, questions[0])
        prompts = [self.inputs(canvas[:1], text)["input_ids"][0] for text in questions]
        length = min(_common(prompts), min(map(len, prompts)) - 1)
        image = (given["input_ids"][0] == self.net.config.image_token_id).nonzero()
        if length <= int(image.max()):
            return torch.stack([self._scores(canvas, text, self.ids) for text in questions], 1)
        beginning = given | {
            name: given[name][:, :length] for name in ALONG_THE_PROMPT if name in given
        }
        cache, _ = self._read(beginning)
        found = []
        for prompt in prompts:
            rest = {"input_ids": prompt[None, length:].expand(len(canvas), -1)}
            found.append(self._choose(*self._read(rest, deepcopy(cache)), own, given))
        return torch.stack(found, 1)

    def generate(self, canvas: Tensor, question: Tokens) -> list[int]:
        given = self.inputs(canvas[None], " ".join(question))
        end = self.tokenizer.eos_token_id
        ends = {"eos_token_id": end, "pad_token_id": end}
        said = self.net.generate(**given, **greedy(self.longest), **ends)[0].tolist()
        return until(said[given["input_ids"].shape[1] :], end)

    def spelt(self, answer: str) -> list[int]:
        return [*self.continued(answer), self.tokenizer.eos_token_id]

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

    def _scores(self, canvas: Tensor, question: str, own: Tensor) -> Tensor:
        """Of some candidates ``(candidate, token)``: ``(n, candidate)``."""
        given = self.inputs(canvas, question)
        return self._choose(*self._read(given), own, given)

    def _read(self, given: dict[str, Tensor], cache: Any = None) -> tuple[Any, Tensor]:
        """A prompt, or the rest of one: the cache with it, and the logits ``(n, 1, word)`` of what
        follows."""
        last = {"logits_to_keep": 1} if self.keeps else {}
        cache = self.new_cache() if cache is None else cache
        output = self.net(**given, cache=cache, use_cache=True, **last)
        return cache, output.logits[:, -1:]

    def _choose(
        self, cache: Any, first: Tensor, own: Tensor | None, given: dict[str, Tensor]
    ) -> Tensor:
        """Candidates after a prompt, ``(n, candidate)``; all of the model's where none are given.
        The cache is used up."""
        own = self.ids if own is None else own
        n, count = len(first), len(own)
        cache.batch_repeat_interleave(count)
        ids = own.repeat(n, 1)
        more = self.net(
            input_ids=ids[:, :-1].clamp(min=0),
            cache=cache,
            use_cache=True,
            **self._types(given, ids),
        )
        logits = torch.cat([first.repeat_interleave(count, 0), more.logits], 1)
        return likelihoods(logits, ids).unflatten(0, (n, count))

    @staticmethod
    def _types(given: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """PaliGemma's prompt is read both ways, what follows causally."""
        if "token_type_ids" not in given:
            return {}
        return {"token_type_ids": torch.ones_like(ids[:, :-1])}

    # --- what its tokens hold -------------------------------------------------------------------

    def some_logits(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Tensor:
        ids, rest = self.asked_for(answers)
        logits = self._scores(canvas[None], " ".join(question), ids)[0]
        return self.with_rest(logits) if rest else logits

    @property
    def word_embeddings(self) -> nn.Module:
        return self.net.get_input_embeddings()

    def embed(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Embedded:
        prompt = self.inputs(canvas[None], " ".join(question))["input_ids"][0].tolist()
        with tapped([self.word_embeddings]) as outputs:
            logits = self.some_logits(canvas, question, answers)
        return Embedded(logits, outputs[0], self._words(question, prompt))

    def attend(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Attended:
        """Image, question and answer are one sequence, one for each answer; an answer's tokens are
        each read from the one before it."""
        ids, rest = self.asked_for(answers)
        given = self.inputs(canvas.expand(len(ids), -1, -1, -1), " ".join(question))
        prompt = given["input_ids"][0].tolist()
        modules = [self.word_embeddings, *(layer.self_attn for layer in self.decoder.layers)]
        with eager(self.net), tapped(modules) as outputs:
            logits = self.net(**self._continued(given, ids), use_cache=False).logits
        start = len(prompt) - 1
        likely = likelihoods(logits[:, start:], ids)
        image = [i for i, token in enumerate(prompt) if token == self.net.config.image_token_id]
        ends = (start + (ids >= 0).sum(1)).tolist()
        return Attended(
            logits=self.with_rest(likely) if rest else likely,
            layers=tuple(Layer("all", "all", probabilities) for probabilities in outputs[1:]),
            image=Places("all", tuple(image)),
            cells=self._cells(given),
            words=tuple(Places("all", tokens) for tokens in self._words(question, prompt)),
            output=tuple(Places("all", tuple(range(start, end))) for end in ends),
        )

    @property
    def decoder(self) -> Any:
        """The language model."""
        return self.net.get_decoder()

    def _continued(self, given: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """The prompts with the candidates behind, all but their last tokens."""
        more = {
            "input_ids": ids[:, :-1].clamp(min=0),
            "attention_mask": torch.ones_like(ids[:, :-1]),
            "mm_token_type_ids": torch.zeros_like(ids[:, :-1]),
            "token_type_ids": torch.ones_like(ids[:, :-1]),
        }
        return given | {
            name: torch.cat([given[name], behind], 1)
            for name, behind in more.items()
            if name in given
        }

    def grid(self, canvas: Tensor) -> tuple[int, int]:
        """By the placeholders in a prompt."""
        return self._cells(self.inputs(canvas[None], "what is this"))

    def _cells(self, given: dict[str, Tensor]) -> tuple[int, int]:
        """As its grid of merged patches says, or of one image a square."""
        count = int((given["input_ids"][0] == self.net.config.image_token_id).sum())
        if "image_grid_thw" in given:
            merge = self.processor.image_processor.merge_size
            _, height, width = (
                given["image_grid_thw"][0] // given["image_grid_thw"].new_tensor([1, merge, merge])
            ).tolist()
        else:
            height = width = isqrt(count) if self.pixels.whole else 0
        return (height, width) if height * width == count else (0, 0)

    def _words(self, question: Tokens, prompt: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Each word's sub-tokens in a prompt, which has more of the image's than its text has
        placeholders; the question's are found again by what they are."""
        text = self.prompt(" ".join(question))
        inside = word_tokens(self.tokenizer, question, text)
        first, last = inside[0][0], inside[-1][-1]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][first : last + 1]
        start = last_run(prompt, ids)
        if start is None:
            raise BadExample(
                f"the sub-tokens of question {' '.join(question)[:57]!r} are not in the prompt "
                "that the processor makes of it; leave out the methods of its words"
            )
        return tuple(tuple(i - first + start for i in tokens) for tokens in inside)


def greedy(longest: int) -> dict[str, Any]:
    """Options of ``generate``: the likeliest token at every step, and nothing that a checkpoint's
    own settings add."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": longest,
        "min_length": 0,
        "repetition_penalty": 1.0,
    }


def until(ids: list[int], end: int) -> list[int]:
    """Up to the end, and with it."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def in_patches(canvas: Tensor, side: int) -> tuple[int, int]:
    """Patches that a canvas ``(3, y, x)`` is cut into, ``(y, x)``."""
    return canvas.shape[1] // side, canvas.shape[2] // side


@contextmanager
def eager(net: Any) -> Iterator[None]:
    """With attention spelt out: the fast kernels do not show their probabilities."""
    before = net.config._attn_implementation
    net.set_attn_implementation("eager")
    try:
        yield
    finally:
        net.set_attn_implementation(before)
