"""BLIP: an image encoder, a question encoder that reads it, and a decoder of the answer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workers.models.base import (
    Attended,
    Layer,
    Places,
    Stream,
    Tokens,
)
from workers.models.chooser import Chooser, greedy, likelihoods, until
from workers.models.tokens import tapped, word_tokens
from workers.models.transformer import in_patches

ROWS = 256
"""Candidates that go through a decoder at once; bounds memory, not results."""


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
