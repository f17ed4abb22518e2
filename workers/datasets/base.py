"""What a dataset is: a lazy, validating reader of official files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schemas.base import Frozen
from schemas.example import Example


class BadRecord(Frozen):
    """A record of an official file that ``skip_bad`` left out."""

    question_id: int | None
    """None where the record does not tell it."""
    file: str
    message: str


class Dataset(Frozen, ABC):
    """A frozen object whose fields say which files to read; it holds no image and no index.

    A field that is a path is joined to ``root``; the recipe's author may make it absolute. A path
    *in the data* that leads outside the folder it is looked up in is a ``UserError``, as is any
    malformed record: the message names file, record and remedy.

    A missing or broken image is not looked for here: decoding it is a ``BadExample``.
    """

    root: Path
    """The folder that holds the official files."""
    skip_bad: bool = False
    """Leave malformed records out, and tell them in ``bad_records``, instead of refusing them."""

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Every example, in the official file's order."""

    def bad_records(self) -> list[BadRecord]:
        """The records ``skip_bad`` left out of ``examples``; reads the files once more."""
        return []

    def human_maps(self, example: Example) -> list[np.ndarray]:
        """The example's attention maps, one an annotator: float32 ``(h, w)`` >= 0, any resolution.

        They cover the whole upright image; evaluation cuts them to the frame the model saw.
        An empty list where the dataset has none. A map that cannot be read is a ``BadExample``.
        """
        return []
