"""A folder of photographs and a JSON list of questions about them."""

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.example import Example
from workers.datasets.base import Dataset, Report
from workers.datasets.folders import inside
from workers.datasets.official import Id, RecordFile, record
from workers.errors import UserError
from workers.place import BucketPath, Place


@record
class PhotoRecord:
    """One question: ``{"image_id": 42, "file": "dog.jpg", "question": "is the dog asleep?"}``."""

    image_id: Id
    file: str
    """A path below ``root``, or a bare name that occurs once below it."""
    question: str
    answer: str | None = None


class Photos(Dataset):
    """Questions about any photographs, with or without an answer.

    ``question_id`` is the record's position in the list.
    """

    questions: Place
    """A JSON list of records."""

    def read(self, report: Report) -> Iterator[Example]:
        records = RecordFile.open(self.root / self.questions, "questions")
        files = files_by_name(self.root.resolve())
        for index, photo in records.records(PhotoRecord, report):
            named_in = f"{records.path}: questions[{index}]"
            yield Example(
                question_id=index,
                image_id=photo.image_id,
                image=str(find(self.root, photo.file, files, named_in)),
                question=photo.question,
                answers=(photo.answer,) if photo.answer else (),
                truth=photo.answer or None,
            )


def files_by_name(root: Place) -> dict[str, list[Place]]:
    """Every file below ``root``, folders that are links left out."""
    found: dict[str, list[Place]] = {}
    for path in root.files() if isinstance(root, BucketPath) else _walked(root):
        found.setdefault(path.name, []).append(path)
    return found


def _walked(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


def find(root: Place, file: str, files: dict[str, list[Place]], named_in: str) -> Place:
    """The file meant; where there is none, the path it should have, for decoding to miss."""
    path = inside(root, file, named_in)
    found = files.get(file, [])
    if not found or root.resolve() / file in found:
        return path
    if len(found) > 1:
        places = ", ".join(sorted(_below(place, root.resolve()) for place in found))
        raise UserError(
            f"{named_in}: {len(found)} files below {root} are named '{file}': {places}; "
            "give the path of the one meant"
        )
    return inside(root, found[0], named_in)


def _below(place: Place, root: Place) -> str:
    return str(place).removeprefix(f"{root}/")
