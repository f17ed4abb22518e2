"""What a dataset is: a lazy, validating reader of official files."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from pydantic import Field

from schemas.base import Frozen
from schemas.example import Example
from workers.errors import UserError
from workers.images import decode_map
from workers.place import Place


class BadRecord(Frozen):
    """A record of an official file that is malformed or has no partner."""

    question_id: int | None
    """None where the record does not tell it."""
    file: str
    message: str


Report = Callable[[BadRecord], None]
"""Where a reader sends a bad record: ``refuse``, ``leave_out`` or a list's ``append``."""


def refuse(record: BadRecord) -> None:
    """The first bad record ends the reading."""
    raise UserError(record.message)


def leave_out(record: BadRecord) -> None:
    """The reading goes on; ``Dataset.bad_records`` tells what it left out."""


class Dataset(Frozen, ABC):
    """A frozen object whose fields say which files to read; it holds no image and no index.

    A subclass adds its fields and ``read``. A field that is a ``Place`` is joined to ``root``; the
    recipe's author may make it absolute or ``s3://bucket/prefix``. A path *in the data* that leads
    outside the folder it is looked up in is a ``UserError``, and so is a file that is missing or
    cut off.

    Images are not looked for here: a missing or broken one is a ``BadExample`` of ``decode``.
    """

    root: Place
    """The folder that holds the official files; on disk, or ``s3://bucket/prefix``."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many examples, after any other selection."""
    skip_bad: bool = False
    """Leave bad records out, and tell them in ``bad_records``, instead of refusing the file."""

    @abstractmethod
    def read(self, report: Report) -> Iterator[Example]:
        """Every selected example, in the official file's order; bad records go to ``report``."""

    def examples(self) -> Iterator[Example]:
        """The examples; a bad record is a ``UserError`` unless ``skip_bad``."""
        return islice(self.read(leave_out if self.skip_bad else refuse), self.limit)

    def bad_records(self) -> list[BadRecord]:
        """What ``skip_bad`` left out, each question once; reads the files again."""
        if not self.skip_bad:
            return []
        bad: list[BadRecord] = []
        deque(self.read(bad.append), maxlen=0)
        first = {record.question_id: record for record in reversed(bad)}
        return [r for r in bad if r.question_id is None or r is first[r.question_id]]

    def human_maps(self, example: Example) -> list[np.ndarray]:
        """The example's attention maps, one an annotator: float32 ``(h, w)`` >= 0, any resolution.

        They cover the whole upright image; evaluation cuts them to the frame the model saw.
        An empty list where the dataset has none. A map that cannot be read is a ``BadExample``.
        """
        return [decode_map(path) for path in example.human_maps]
