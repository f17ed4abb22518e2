"""One (image, question) pair as read from a dataset's official files."""

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Example:
    """A question about an image, its human answers and where its human maps are.

    Paths are strings, absolute or with a scheme, and were checked to lie inside the dataset's root.
    A run plans with all its examples in memory, so they have slots: a third of a model's bytes.
    """

    question_id: int
    image_id: int
    image: str
    """The image file."""
    question: str
    answers: tuple[str, ...] = ()
    """Every annotator's answer: ten in VQA, one in easy-VQA, none for unlabelled photos."""
    truth: str | None = None
    """The labelled (most common) answer."""
    question_type: str | None = None
    answer_type: str | None = None
    """``yes/no``, ``number`` or ``other``."""
    choices: tuple[str, ...] = ()
    """VQA v1 multiple choice: the eighteen candidate answers."""
    human_maps: tuple[str, ...] = ()
    """Attention-map files, one an annotator, in annotator order."""
