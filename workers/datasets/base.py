"""What a dataset is: a lazy, validating reader of official files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schemas.base import Frozen
from schemas.example import Example


class Dataset(Frozen, ABC):
    """A frozen object whose fields say which files to read; it holds no image and no index.

    Every file that a reader opens must lie inside ``root``; a path in the data that points outside
    is a ``UserError``, as is any malformed record: the message names file, record and remedy.
    """

    root: Path
    """The folder that holds the official files."""

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Every example, in the official file's order."""

    def human_maps(self, example: Example) -> list[np.ndarray]:
        """The example's attention maps, one an annotator: float32 ``(h, w)`` >= 0, any resolution.

        They cover the whole upright image; evaluation cuts them to the frame the model saw.
        An empty list where the dataset has none.
        """
        return []
