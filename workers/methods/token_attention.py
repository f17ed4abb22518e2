"""Maps read from a transformer's attention: which tokens the answer's token, and each word, saw."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.errors import BadExample, UserError
from workers.methods.backward import AttentionPass as Pass
from workers.methods.backward import attention_pass
from workers.methods.base import (
    ImageMethod,
    Maps,
    Row,
    Scene,
    Score,
    WordMethod,
    WordScores,
    to_numpy,
)
from workers.models.base import Attended, Capability, Geometry, Layer, Stream

Flow = dict[tuple[Stream, Stream], Tensor]
"""How much each token of the first stream, ``(query, key)``, holds of each of the second."""


class TokenMethod(ImageMethod, ABC):
    """Arrays ``map (row, y, x)`` over the model's image tokens, and ``words (row, word, y, x)``,
    one map for each word of the question in its order, zero where there is no such word. The maps
    of a word's sub-tokens are summed up. Of an image that is cut into tiles the cells are the
    tiles' tokens, and a token of the thumbnail, which covers many, is spread evenly over them."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TOKENS})
    longest: PositiveInt = 24
    """Words that ``words`` has room for; a longer question is refused."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        cells = (geometry.token_height, geometry.token_width)
        shape = (self.longest, *cells)
        return (
            ArraySpec(name="map", dims=("y", "x"), shape=cells),
            ArraySpec(name="words", dims=("word", "y", "x"), shape=shape),
        )

    def explain(self, scene: Scene) -> Maps:
        found = [self._row(scene, row) for row in scene.rows]
        maps, words = zip(*found, strict=True)
        return Maps.of({"map": torch.stack(maps), "words": torch.stack(words)})

    def _row(self, scene: Scene, row: Row) -> tuple[Tensor, Tensor]:
        attended = attention_pass(scene, row, self.score).attended
        cells = attended.cells
        whole, words = (on_cells(tokens, attended.cover) for tokens in self.read(scene, row))
        if len(words) > self.longest:
            raise BadExample(
                f"the question has {len(words)} words, the limit of this method's maps is "
                f"{self.longest}; set its option longest to at least that"
            )
        padded = words.new_zeros(self.longest, *cells)
        padded[: len(words)] = words.unflatten(1, cells)
        return whole.unflatten(0, cells), padded

    @abstractmethod
    def read(self, scene: Scene, row: Row) -> tuple[Tensor, Tensor]:
        """Values of the image's tokens ``(token,)``, and for each word ``(word, token)``."""


class AttentionRollout(TokenMethod):
    """``prod_l (A_l + I) / 2`` with the mean ``A_l`` over heads (Abnar and Zuidema 2020,
    "Quantifying Attention Flow in Transformers", section 3): what of the image has reached the
    tokens that the answer is read from, their mean where there are several.

    It is the same for all answers of a model that reads them from one token. Where tokens attend to
    another sequence (the paper has one), they hold half of what they held and half of what that
    sequence's tokens hold.
    """

    def read(self, scene: Scene, row: Row) -> tuple[Tensor, Tensor]:
        seen = attention_pass(scene, row, self.score)
        return read_flow(rollout(seen.attended.layers, seen.probabilities), seen)


class Relevance(TokenMethod):
    """Relevance propagated through attention layers (Chefer, Gur and Wolf 2021, "Generic
    Attention-model Explainability", equations 5 to 11): ``A = mean_h max(0, grad A * A)``, and
    ``R += A R`` from the identity.

    Array ``map`` is the relevance of image tokens to those the answer is read from, their mean
    where there are several. Of three sequences (BLIP: image, question, answer) the third is reached
    as equation 11 has it for two: ``R_ti += A_tq R_qi``. A row of a normalised matrix that sums up
    to zero stays zero, where the published code divides by it.
    """

    def read(self, scene: Scene, row: Row) -> tuple[Tensor, Tensor]:
        seen = attention_pass(scene, row, self.score)
        return read_flow(relevance_of(scene, row, self.score), seen)


class CrossGradCam(TokenMethod):
    """``mean_h A max(0, d f / d A)`` of the attention that question tokens pay to image tokens in
    one layer (Li et al. 2021, "Align before Fuse", appendix, and its published code): one map for
    each token, the class token of the image left out.

    Array ``map`` is the mean over the question's tokens that are part of a word. The published code
    explains an image-text matching score; here it is the answer's.
    """

    layer: NonNegativeInt | None = None
    """Counted from 0 among the layers in which the question attends to the image. By default the
    middle one: 6 of BLIP's 12, as its authors' code has it."""

    def read(self, scene: Scene, row: Row) -> tuple[Tensor, Tensor]:
        seen = attention_pass(scene, row, self.score)
        layer = self._layer(seen.attended)
        cams = seen.probabilities[layer] * seen.gradients[layer].clamp(min=0)
        tokens = cams.mean(0)[:, list(seen.attended.image.tokens)]
        return _mean_of_words(tokens, seen), _words_of(tokens, seen)

    def _layer(self, attended: Attended) -> int:
        """Its number among all layers."""
        asking = attended.words[0].stream
        fusing = [
            number
            for number, layer in enumerate(attended.layers)
            if (layer.queries, layer.keys) == (asking, attended.image.stream)
        ]
        chosen = len(fusing) // 2 if self.layer is None else self.layer
        if chosen >= len(fusing):
            raise UserError(
                f"cross_grad_cam: layer {chosen} is not there; the question attends to the image "
                f"in {len(fusing)} layers, so choose 0 to {len(fusing) - 1}"
            )
        return fusing[chosen]


class WordRelevance(WordMethod):
    """``Relevance``'s other half: of the question's words to the tokens that the answer is read
    from; the relevances of a word's sub-tokens are summed up."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.TOKENS})

    def explain(self, scene: Scene) -> WordScores:
        passes = [attention_pass(scene, row, self.score) for row in scene.rows]
        parts = [[len(word.tokens) for word in seen.attended.words] for seen in passes]
        return WordScores([self._of(scene, row) for row in scene.rows], sub_tokens=parts)

    def _of(self, scene: Scene, row: Row) -> np.ndarray:
        seen, flow = attention_pass(scene, row, self.score), relevance_of(scene, row, self.score)
        words = seen.attended.words
        read = flow[seen.output.stream, words[0].stream][list(seen.output.tokens)].mean(0)
        return to_numpy(torch.stack([read[list(word.tokens)].sum() for word in words]))


def rollout(layers: Sequence[Layer], probabilities: Sequence[Tensor]) -> Flow:
    """What has flowed from each stream's tokens to each stream's; every token's row sums up to 1
    over all streams."""
    flow = _identity(layers)
    for layer, heads in zip(layers, probabilities, strict=True):
        asking, mean = layer.queries, heads.mean(0)
        brought = {t: mean @ held for (s, t), held in flow.items() if s == layer.keys}
        held = {t: own for (s, t), own in flow.items() if s == asking}
        for t in brought.keys() | held.keys():
            parts = [part[t] for part in (brought, held) if t in part]
            flow[asking, t] = torch.stack(parts).sum(0) / 2
    return flow


def relevance_of(scene: Scene, row: Row, score: Score) -> Flow:
    """Of one row, once for its map and its words."""
    key = ("relevance", row, score)
    return scene.once(key, lambda: relevance(attention_pass(scene, row, score)))


def relevance(seen: Pass) -> Flow:
    """Equations 6 and 7 where a stream attends to itself, 10 and 11 where it does to another."""
    flow = _identity(seen.attended.layers)
    for layer, heads, gradients in zip(
        seen.attended.layers, seen.probabilities, seen.gradients, strict=True
    ):
        asking, keys = layer.queries, layer.keys
        weights = (gradients * heads).clamp(min=0).mean(0)  # equation 5
        added = {t: weights @ held for (s, t), held in flow.items() if s == keys}
        if asking != keys:
            of_queries, of_keys = (_normalised(flow[s, s]) for s in (asking, keys))
            added[keys] = of_queries.T @ weights @ of_keys
        for t, more in added.items():
            flow[asking, t] = flow[asking, t] + more if (asking, t) in flow else more
    return flow


def _identity(layers: Sequence[Layer]) -> Flow:
    """Before any layer every token holds itself."""
    flow: Flow = {}
    for layer in layers:
        for stream, axis in ((layer.queries, -2), (layer.keys, -1)):
            size = layer.probabilities.shape[axis]
            like = layer.probabilities
            flow[stream, stream] = torch.eye(size, dtype=like.dtype, device=like.device)
    return flow


def _normalised(own: Tensor) -> Tensor:
    """Equations 8 and 9: what a token has beyond itself, its row made to sum up to one, and
    itself."""
    eye = torch.eye(len(own), dtype=own.dtype, device=own.device)
    beyond = own - eye
    total = beyond.sum(-1, keepdim=True)
    return torch.where(total > 0, beyond / total, beyond) + eye


def read_flow(flow: Flow, seen: Pass) -> tuple[Tensor, Tensor]:
    """What the answer's tokens hold of the image's tokens, and what each word holds."""
    image, output = seen.attended.image, seen.output
    of_answer = flow[output.stream, image.stream][list(output.tokens)].mean(0)
    own = list(image.tokens)
    tokens = flow[seen.attended.words[0].stream, image.stream][:, own]
    return of_answer[own], _words_of(tokens, seen)


def _words_of(tokens: Tensor, seen: Pass) -> Tensor:
    """``(token, image token)`` of the question's stream -> ``(word, image token)``."""
    return torch.stack([tokens[list(word.tokens)].sum(0) for word in seen.attended.words])


def _mean_of_words(tokens: Tensor, seen: Pass) -> Tensor:
    """``(token, image token)`` -> the mean over all sub-tokens of words."""
    return tokens[[token for word in seen.attended.words for token in word.tokens]].mean(0)


def on_cells(values: Tensor, cover: Tensor | None) -> Tensor:
    """Values of an image's tokens ``(..., token)`` at its cells ``(..., cell)``: each is spread
    evenly over the cells that its token covers, so that the sum stays what it is."""
    if cover is None:
        return values
    cover = cover.to(values.device)
    shared = values / cover.flatten().bincount(minlength=values.shape[-1])
    return shared[..., cover].sum(-2)
