"""How a model's training code cut questions into words."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from workers.models.base import Tokens


def pytorch_vqa(question: str) -> Tokens:
    """The words of Cyanogenoid/pytorch-vqa: lower case, no question mark, split at single spaces.

    Commas and apostrophes stay inside words. That code drops the last character whatever it is;
    ours drops it only where it is a question mark, and drops the empty words of double spaces.
    """
    return tuple(filter(None, question.lower().removesuffix("?").split(" ")))


def nltk(question: str) -> Tokens:
    """The words of VT-vision-lab/VQA_LSTM_CNN: NLTK's ``word_tokenize``, lower case; the question
    mark is a word.

    That function first cuts a text into sentences, by a model that has to be downloaded; ours
    takes the question as one sentence, which differs only where it holds several.
    """
    return tuple(_treebank().tokenize(question.lower()))


@cache
def _treebank() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # takes seconds, and most models do without

    return NLTKWordTokenizer()


def vqa_lstm(question: str) -> Tokens:
    """The other words of VT-vision-lab/VQA_LSTM_CNN: cut at, and keeping, its list of separators.
    Upper case stays, as there."""
    parts = re.split(r"""([-."',:? !$#@~()*&^%;\[\]/\\+<>\n=])""", question)
    return tuple(part for part in parts if part not in ("", " ", "\n"))


def updn(question: str) -> Tokens:
    """The words of hengyuan-hu/bottom-up-attention-vqa: lower case without commas and question
    marks, a possessive's ``'s`` apart."""
    return tuple(question.lower().replace(",", "").replace("?", "").replace("'s", " 's").split())


def updn_fork(question: str) -> Tokens:
    """The words of erobic/negative_analysis_of_grounding: those of ``updn`` without full stops and
    quotation marks, cut at hyphens; ``n't`` is ``not`` and ``$`` is ``dollar``."""
    text = question.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("-", " ").replace(".", "").replace('"', "")
    return tuple(text.replace("n't", " not").replace("$", " dollar ").split())


def mmf(question: str) -> Tokens:
    """The words of facebookresearch/mmf: lower case without commas and question marks, cut where
    letters and digits end; other marks are words, also the apostrophe of ``'s``."""
    text = question.lower().replace("'s", " 's").replace(",", "").replace("?", "")
    return tuple(filter(None, (part.strip() for part in re.split(r"(\W+)", text))))


def simple(question: str) -> Tokens:
    """Lower-case words between white space and punctuation."""
    return tuple(re.sub(r"[^\w\s]", " ", question.lower()).split())


TokeniserName = Literal["pytorch_vqa", "nltk", "vqa_lstm", "simple"]
TOKENISERS: dict[str, Callable[[str], Tokens]] = {
    "pytorch_vqa": pytorch_vqa,
    "nltk": nltk,
    "vqa_lstm": vqa_lstm,
    "simple": simple,
}
