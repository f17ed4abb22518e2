"""Importance of the question's words."""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from workers.methods.backward import WordGradients, token_gradients, word_gradients
from workers.methods.base import Row, Scene, Score, WordMethod, WordScores, score_drops, to_numpy
from workers.models.base import Capability, Tokens
from workers.sweep.batches import in_batches


class WordOcclusion(WordMethod):
    """``f(q) - f(q without word i)``, the image kept (Goyal et al. 2016, section 3.2).

    The question gets shorter; the only word of a question leaves the empty one. A question that the
    model cuts off is cut after the word is dropped, so that the next word moves up. ``top_answers``
    is the answer that each shorter question gets.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset()
    score: Score = "probability"

    def explain(self, scene: Scene) -> WordScores:
        logits = scene.once("word occlusion", lambda: dropped_logits(scene))
        pairs = zip(scene.output.logits, logits, strict=True)
        return WordScores(
            [to_numpy(self._drops(scene, logits, row)) for row in scene.rows],
            [to_numpy(scene.top_answers(q, *pair)) for q, pair in enumerate(pairs)],
        )

    def _drops(self, scene: Scene, logits: list[Tensor], row: Row) -> Tensor:
        clean = scene.output.logits[row.question]
        return score_drops(clean, logits[row.question], row.answer, self.score)


@torch.no_grad()
def dropped_logits(scene: Scene) -> list[Tensor]:
    """For each question ``(word, answer)``: the logits without that word."""
    cut_off = scene.cut_off or [()] * len(scene.questions)
    pairs = zip(scene.questions, cut_off, strict=True)
    shorter = [without for question, behind in pairs for without in drop_each(question, behind)]
    lengths = [len(question) for question in scene.questions]
    if not shorter:
        return [scene.output.logits[:0]] * len(lengths)
    logits = in_batches(scene, len(shorter), lambda batch: _answer(scene, shorter[batch]))
    return list(logits.split(lengths))


def drop_each(question: Tokens, cut_off: Tokens = ()) -> list[Tokens]:
    """The question without its first word, without its second, and so on, each as long as before
    where there are words that were cut off behind it."""
    whole = question + cut_off
    return [(whole[:i] + whole[i + 1 :])[: len(question)] for i in range(len(question))]


def _answer(scene: Scene, questions: list[Tokens]) -> Tensor:
    """Logits ``(n, answer)`` of n questions on the clean image; a split model's trunk is spared."""
    if Capability.SPLIT not in scene.model.provides:
        seen = scene.seen
        return scene.model.logits(seen.expand(len(questions), *seen.shape[1:]), questions)
    return scene.answer(scene.split.encode(scene.split.words(questions))).logits


class WordGradient(WordMethod):
    """``|| d f / d e_i ||`` of each word's embedding ``e_i`` (Goyal et al. 2016, section 3.1).

    The language path keeps its true derivatives; no guided rule is applied to it. Where a word is
    several sub-tokens, theirs are summed up.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.EMBEDDINGS, Capability.GRADIENTS}
    )
    reduction: Literal["l2_norm", "grad_x_input"] = "l2_norm"
    """``grad_x_input`` is ``sum_c e_ic (d f / d e_ic)``, which keeps the sign."""

    def explain(self, scene: Scene) -> WordScores:
        if Capability.SPLIT not in scene.model.provides:
            found = [self._of_tokens(scene, row) for row in scene.rows]
            return WordScores([own for own, _ in found], sub_tokens=[parts for _, parts in found])
        values = self._reduce(
            scene.once(("word gradients", self.score), lambda: word_gradients(scene, self.score))
        )
        lengths = [len(scene.questions[row.question]) for row in scene.rows]
        return WordScores([to_numpy(of_row[:n]) for of_row, n in zip(values, lengths, strict=True)])

    def _of_tokens(self, scene: Scene, row: Row) -> tuple[np.ndarray, list[int]]:
        """Each word's importance, and how many sub-tokens it is the sum of."""
        words, tokens = scene.once(
            ("token gradients", row, self.score), lambda: token_gradients(scene, row, self.score)
        )
        values = self._reduce(tokens)
        summed = torch.stack([values[list(own)].sum() for own in words])
        return to_numpy(summed), [len(own) for own in words]

    def _reduce(self, words: WordGradients) -> Tensor:
        if self.reduction == "l2_norm":
            return words.gradients.norm(dim=-1)
        return (words.gradients * words.embeddings).sum(-1)
