"""Models of Hugging Face that write: they choose among candidates, or explain what they wrote."""

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from workers.models.base import (
    OpenModel,
    Tokens,
    VQAModel,
    Written,
)
from workers.models.transformer import Transformer

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
    given: tuple[Written, ...] = ()
    """The answers that an open model has been given."""
    longest: int = 16
    """Sub-tokens that are written at most; an answer that does not end by then has no end."""

    def write(self, canvas: Tensor, questions: Sequence[Tokens]) -> list[Written]:
        return [self._written(self.generate(canvas, question)) for question in questions]

    @abstractmethod
    def generate(self, canvas: Tensor, question: Tokens) -> list[int]:
        """The sub-tokens that are likeliest one after another, the end included."""

    def _written(self, ids: Sequence[int]) -> Written:
        """Named as datasets write answers: lower case, single spaces, no full stop."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Written(" ".join(text.lower().split()).rstrip(".") or NOTHING, tuple(ids))

    def among(self, answers: Sequence[Written]) -> Self:
        other = copy(self)
        other._buffers = dict(self._buffers)
        other.answers, other.open, other.rest = (*(a.answer for a in answers), REST), False, True
        other.given = tuple(answers)
        other.set_candidates([a.tokens or self.spelt(a.answer) for a in answers])
        return other.to(self.device)

    def bound_like(self, other: VQAModel) -> VQAModel:
        assert isinstance(other, Chooser)
        return self.among(other.given) if self.open else self

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
        if len(groups) > 1 and not canvas.requires_grad and bool((canvas == canvas[:1]).all()):
            answers = self.answers_to_all(canvas[:1], list(groups))[0]  # of one image, read once
            places = {question: place for place, question in enumerate(groups)}
            return answers[[places[tuple(question)] for question in questions]]
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
