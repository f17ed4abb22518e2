"""How a model's training code cut questions into words."""

import re
from collections.abc import Callable

from workers.models.base import Tokens


def pytorch_vqa(question: str) -> Tokens:
    """The words of Cyanogenoid/pytorch-vqa: lower case, no question mark, split at single spaces.

    Commas and apostrophes stay inside words. That code drops the last character whatever it is;
    ours drops it only where it is a question mark, and drops the empty words of double spaces.
    """
    return tuple(filter(None, question.lower().removesuffix("?").split(" ")))


def simple(question: str) -> Tokens:
    """Lower-case words between white space and punctuation."""
    return tuple(re.sub(r"[^\w\s]", " ", question.lower()).split())


TOKENISERS: dict[str, Callable[[str], Tokens]] = {"pytorch_vqa": pytorch_vqa, "simple": simple}
