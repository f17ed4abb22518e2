"""Language models that read an image and a prompt."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import isqrt, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.errors import BadExample
from workers.models.base import (
    Attended,
    Embedded,
    Layer,
    Near,
    Places,
    Tokens,
    Written,
)
from workers.models.causality import looks_back_only, same_inputs
from workers.models.chooser import Chooser, greedy, likelihoods, until
from workers.models.near import Clean, NearPrompt
from workers.models.tiles import tiles_of
from workers.models.tokens import called, last_run, tapped, word_tokens

ALONG_THE_PROMPT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""What a processor gives for every token of a prompt."""
SMALL, TRIED = (120, 160), ("what is this", "is it red ?")
"""Height and width of the picture, and questions, that sharing is tried with."""
STRANGE = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a net of a family that nobody has tried raises where it takes its inputs in another way."""
TILED = ("idefics3", "smolvlm")
"""Families whose tiles' tokens are known to lie row by row, the thumbnail's behind them."""


def _common(prompts: Sequence[Tensor]) -> int:
    """How many tokens all prompts begin with."""
    columns = zip(*(prompt.tolist() for prompt in prompts), strict=False)
    return next((i for i, tokens in enumerate(columns) if len(set(tokens)) > 1), len(prompts[0]))


def placed(positions: Tensor | None, count: int) -> dict[str, Tensor]:
    """Positions ``(..., 1, token)`` for each of so many sequences; nothing where the net counts."""
    if positions is None:
        return {}
    return {"position_ids": positions.expand(*positions.shape[:-2], count, -1)}


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
    reads_on: bool = False
    """Whether a painted image is read on from where it differs from the clean one; likewise."""

    def likelihoods(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        texts = [" ".join(question) for question in questions]
        if self.shares and len(texts) > 1 and not canvas.requires_grad:
            return self._shared(canvas, texts, self.ids)
        return torch.stack([self._scores(canvas, text, self.ids) for text in texts], 1)

    @torch.no_grad()
    def try_sharing(self) -> None:
        """Share where no token of a prompt's beginning sees the question behind it, as PaliGemma's
        do, and read on where none of the image sees the rest of it; the answers about a picture
        that is painted over must then be those of whole passes."""
        picture = np.random.default_rng(0).integers(0, 256, (*SMALL, 3), np.uint8)
        canvas = self.prepare(picture)[0].to(self.device)
        given = self.inputs(canvas[None], TRIED[0])
        image = (given["input_ids"][0] == self.net.config.image_token_id).nonzero()
        starts = [int(image.max()) + 1, int(image.min()) + 1]
        before_question, inside = (self._looks_back_only(given, start) for start in starts)
        painted = canvas.clone()
        painted[:, canvas.shape[1] // 2 :, canvas.shape[2] // 2 :] = 128
        model = self.among([Written("yes")])
        with called(self.decoder) as calls:
            alone = torch.stack([model._scores(painted[None], t, model.ids) for t in TRIED], 1)
        limit = sqrt(torch.finfo(self.net.dtype).eps) * max(1.0, float(alone.abs().max()))

        def same(found: Tensor | None) -> bool:
            return found is not None and bool((alone - found).abs().max() <= limit)

        self.reads_on = inside and same(model._read_on_trial(canvas, painted, calls[0]))
        self.shares = self.reads_on or (
            before_question and same(model._shared(painted[None], TRIED, model.ids))
        )

    def _looks_back_only(self, given: dict[str, Tensor], at: int) -> bool:
        last: dict[str, Any] = {"logits_to_keep": 1} if self.keeps else {}
        try:
            return looks_back_only(self.net, self.decoder, given | last, at)
        except STRANGE:
            return False

    def _read_on_trial(
        self, canvas: Tensor, painted: Tensor, call: dict[str, Any]
    ) -> Tensor | None:
        """A painted picture's answers from the clean one's pass; None where the net takes its
        inputs in another way, or others than in ``call``, a whole pass."""
        near = NearPrompt(self, canvas, [(text,) for text in TRIED])
        try:
            inputs = near.inputs(painted[None])
            return near(painted[None])[..., :-1] if same_inputs(call, *inputs) else None
        except STRANGE:
            return None

    def _shared(self, canvas: Tensor, questions: Sequence[str], own: Tensor) -> Tensor:
        """Some candidates after all questions, from one cache of what their prompts begin with,
        ``(n, question, candidate)``."""
        given = self.inputs(canvas, questions[0])
        prompts = [self.inputs(canvas[:1], text)["input_ids"][0] for text in questions]
        length = min(_common(prompts), min(map(len, prompts)) - 1)
        image = (given["input_ids"][0] == self.net.config.image_token_id).nonzero()
        if length <= int(image.max()):
            return torch.stack([self._scores(canvas, text, own) for text in questions], 1)
        beginning = given | {
            name: given[name][:, :length] for name in ALONG_THE_PROMPT if name in given
        }
        cache, _ = self._read(beginning)
        found = []
        for prompt in prompts:
            rest = {"input_ids": prompt[None, length:].expand(len(canvas), -1)}
            found.append(self.choose(*self._read(rest, deepcopy(cache)), own, given))
        return torch.stack(found, 1)

    # --- an image that is painted over in parts -------------------------------------------------

    def near(self, canvas: Tensor, questions: Sequence[Tokens]) -> Near:
        if not self.reads_on:
            return super().near(canvas, questions)
        return NearPrompt(self, canvas, questions)

    def read_clean(self, canvas: Tensor, texts: Sequence[str]) -> Clean | None:
        """The image's own pass, up to where its questions' prompts differ; None where they do so
        before the image ends."""
        given = self.inputs(canvas[None], texts[0])
        prompts = [self.inputs(canvas[None], text)["input_ids"][0] for text in texts[1:]]
        prompts.insert(0, given["input_ids"][0])
        length = min(_common(prompts), min(map(len, prompts)) - 1)
        image = (prompts[0] == self.net.config.image_token_id).nonzero()[:, 0]
        if length <= int(image.max()):
            return None
        beginning = given | {
            name: given[name][:, :length] for name in ALONG_THE_PROMPT if name in given
        }
        with called(self.decoder) as calls:
            cache, _ = self._read(beginning)
        values, (one,) = self.seen(canvas[None]), calls
        return Clean(values, prompts, one["inputs_embeds"], one.get("position_ids"), image, cache)

    def features(self, values: dict[str, Tensor]) -> Tensor:
        """What the language model is given of images, ``(token, channel)``, one after another."""
        return torch.cat(
            list(self.net.get_image_features(**values, return_dict=True).pooler_output)
        )

    def read_on(self, cache: Any, positions: Tensor | None, **tokens: Tensor) -> Tensor:
        """Tokens or their embeddings behind what a cache holds: the logits ``(n, 1, word)`` of what
        follows them."""
        (given,) = tokens.values()
        return self._read(tokens | placed(positions, len(given)), cache)[1]

    def tile_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles that a canvas is cut into; zeros where it is not cut."""
        counted = getattr(self.processor.image_processor, "get_number_of_image_patches", None)
        found = counted(height, width, {}) if counted is not None else 0
        return found[1:] if isinstance(found, tuple) else (0, 0)

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
                **self._as_it_is(),
            )
        return self._placed({name: made[name] for name in made if name != "labels"})

    def seen(self, canvas: Tensor) -> dict[str, Tensor]:
        """The images as the processor lays them out beside a prompt."""
        images = self.pixels.listed(canvas)
        made = self.processor.image_processor(images, return_tensors="pt", **self._as_it_is())
        return self._placed(dict(made))

    def _as_it_is(self) -> dict[str, bool]:
        """Options for a canvas that has been resized and cropped."""
        return {"do_resize": False, "do_center_crop": False} if self.pixels.whole else {}

    def _scores(self, canvas: Tensor, question: str, own: Tensor) -> Tensor:
        """Of some candidates ``(candidate, token)``: ``(n, candidate)``."""
        given = self.inputs(canvas, question)
        return self.choose(*self._read(given), own, given)

    def _read(self, given: dict[str, Tensor], cache: Any = None) -> tuple[Any, Tensor]:
        """A prompt, or the rest of one: the cache with it, and the logits ``(n, 1, word)`` of what
        follows."""
        last = {"logits_to_keep": 1} if self.keeps else {}
        cache = self.new_cache() if cache is None else cache
        output = self.net(**given, cache=cache, use_cache=True, **last)
        return cache, output.logits[:, -1:]

    def choose(
        self,
        cache: Any,
        first: Tensor,
        own: Tensor,
        given: dict[str, Tensor],
        positions: Tensor | None = None,
    ) -> Tensor:
        """Some candidates after a prompt, ``(n, candidate)``. The cache is used up."""
        n, count = len(first), len(own)
        cache.batch_repeat_interleave(count)
        ids = own.repeat(n, 1)
        more = self.net(
            input_ids=ids[:, :-1].clamp(min=0),
            cache=cache,
            use_cache=True,
            **self._types(given, ids),
            **placed(positions, len(ids)),
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
        cells, cover = self._cells(given, canvas)
        return Attended(
            logits=self.with_rest(likely) if rest else likely,
            layers=tuple(Layer("all", "all", probabilities) for probabilities in outputs[1:]),
            image=Places("all", tuple(image)),
            cells=cells,
            cover=cover,
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
        return self._cells(self.inputs(canvas[None], "what is this"), canvas)[0]

    def _cells(
        self, given: dict[str, Tensor], canvas: Tensor
    ) -> tuple[tuple[int, int], Tensor | None]:
        """As its tiles or its grid of merged patches say, or of one image a square; and which
        tokens each cell lies in, where they are not the same."""
        count = int((given["input_ids"][0] == self.net.config.image_token_id).sum())
        if self.net.config.model_type in TILED:
            parts = given["pixel_values"].shape[1]
            tiles = tiles_of(count, parts, self.tile_grid(*canvas.shape[1:]))
            return (tiles.cells, tiles.cover()) if tiles is not None else ((0, 0), None)
        if "image_grid_thw" in given:
            merge = self.processor.image_processor.merge_size
            _, height, width = (
                given["image_grid_thw"][0] // given["image_grid_thw"].new_tensor([1, merge, merge])
            ).tolist()
        else:
            height = width = isqrt(count) if self.pixels.whole else 0
        return (height, width) if height * width == count else (0, 0), None

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


@contextmanager
def eager(net: Any) -> Iterator[None]:
    """With attention spelt out: the fast kernels do not show their probabilities."""
    before = net.config._attn_implementation
    net.set_attn_implementation("eager")
    try:
        yield
    finally:
        net.set_attn_implementation(before)
