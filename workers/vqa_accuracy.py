"""Official VQA accuracy (Antol et al. 2015; github.com/GT-Vision-Lab/VQA, ``vqaEval.py``).

``answer_normalisation.json`` holds the tables of that file (BSD-2-Clause, licence beside it). Its
quirks are kept, because published figures have them; each is named where it acts.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from workers.errors import UserError

_TABLES = json.loads(Path(__file__).with_name("answer_normalisation.json").read_text("utf-8"))
_PUNCTUATION: list[str] = _TABLES["punctuation"]
_NUMBER_WORDS: dict[str, str] = _TABLES["number_words"]
_ARTICLES = frozenset(_TABLES["articles"])
_CONTRACTIONS: dict[str, str] = _TABLES["contractions"]

_COMMA = re.compile(r"(\d)(,)(\d)")
# A lookahead for a literal "<=" where a lookbehind was meant: a period is kept before a digit only.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
# ``re.UNICODE`` is passed where ``sub`` takes a count: no more than 32 periods are removed.
_PERIODS = int(re.UNICODE)

_NEEDED = 3
"""Annotators who must agree for full accuracy."""


def normalise(answer: str) -> str:
    """An answer as the official evaluation compares it: punctuation, number words, articles and
    contractions normalised, lower case.
    """
    return _words(_punctuation(_tidy(answer)))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of ``min(1, others who said it / 3)``, in 0..1.

    Where all answers are the same string, the official rule compares them with the prediction as
    it is; otherwise both sides are normalised. Departures, for fewer answers than VQA's ten: with
    two or three, all the others must agree; a single answer is compared by equality of the
    normalised strings.
    """
    if not answers:
        raise UserError("VQA accuracy needs at least one answer, got none: skip this example")
    prediction, answers = _tidy(prediction), [_tidy(answer) for answer in answers]
    if len(answers) == 1 or len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    agreeing = answers.count(prediction)
    if len(answers) == 1:
        return float(agreeing)
    others = [agreeing - (answer == prediction) for answer in answers]
    needed = min(_NEEDED, len(answers) - 1)
    return sum(min(1.0, n / needed) for n in others) / len(answers)


def _tidy(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(answer: str) -> str:
    """A mark next to a space anywhere, or any mark where digits have a comma between them, is
    deleted; other marks become a space. Both conditions look at the original answer.
    """
    grouped = _COMMA.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        spaced = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if spaced or grouped else " ")
    return _PERIOD.sub("", text, count=_PERIODS)


def _words(answer: str) -> str:
    """Contractions are looked up after lower-casing, so keys with capitals never match."""
    words = (_NUMBER_WORDS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
