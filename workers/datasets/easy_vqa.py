"""easy-VQA: one coloured shape an image, so the pixels that matter are known exactly."""

from collections.abc import Iterator
from itertools import groupby, islice
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from schemas.example import Example
from schemas.limits import Limits
from workers.datasets.base import Dataset, Report
from workers.datasets.folders import inside
from workers.datasets.official import Id, RecordFile
from workers.images import decode
from workers.place import Place

BACKGROUND = 230
"""The background's channels are at least this bright; of a shape, one channel is darker."""


class EasyRecord(NamedTuple):
    """An item of ``questions.json``: a list of three."""

    question: str
    answer: str
    image_id: Id


class EasyVQA(Dataset):
    """easy-VQA (Zhou 2019, github.com/vzhou842/easy-VQA); ``root`` is its ``easy_vqa/data``.

    ``question_id`` is the question's position in ``questions.json``, whatever is selected.
    """

    split: Literal["train", "test"] = "test"
    images: int | None = Field(default=None, ge=1)
    """Only the first so many images."""
    questions_per_image: int | None = Field(default=None, ge=1)
    """So many questions an image, evenly spaced in the file's order: it asks what, then yes/no."""

    def read(self, report: Report) -> Iterator[Example]:
        records = RecordFile.open(self.root / self.split / "questions.json", "questions")
        numbered = list(records.records(EasyRecord, report))
        numbered.sort(key=lambda item: item[1].image_id)
        by_image = groupby(numbered, key=lambda item: item[1].image_id)
        for image_id, questions in islice(by_image, self.images):
            image = inside(self.root, f"{self.split}/images/{image_id}.png", records.path)
            for index, record in spaced(list(questions), self.questions_per_image):
                yield self._example(index, record, image)

    def _example(self, index: int, record: EasyRecord, image: Place) -> Example:
        return Example(
            question_id=index,
            image_id=record.image_id,
            image=str(image),
            question=record.question,
            answers=(record.answer,),
            truth=record.answer,
            answer_type="yes/no" if record.answer in ("yes", "no") else "other",
        )

    def human_maps(self, example: Example) -> list[np.ndarray]:
        """One map, the exact mask of the shape: 1 where the smallest channel is below 230."""
        image = decode(example.image, Limits())
        return [(image.min(axis=2) < BACKGROUND).astype(np.float32)]


def spaced(items: list[tuple[int, EasyRecord]], count: int | None) -> list[tuple[int, EasyRecord]]:
    """``count`` items from first to last at equal steps; all where there are no more."""
    if count is None or count >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]
