"""Readers of the official VQA files, shared by the datasets that come in that form.

Records are checked one by one as they are read; a bad one goes to a ``Report``: ``refuse`` raises,
``list.append`` collects.
"""

import os
import re
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from schemas.example import Example
from workers.datasets.base import BadRecord, Dataset
from workers.errors import UserError
from workers.images import decode_map

Id = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Report = Callable[[BadRecord], None]


def refuse(record: BadRecord) -> None:
    """The strict report: the first bad record ends the reading."""
    raise UserError(record.message)


def leave_out(record: BadRecord) -> None:
    """The lenient report, for a reading whose bad records are told elsewhere."""


class FileDataset(Dataset):
    """A dataset read record by record; ``read`` is the one method to write."""

    limit: int | None = Field(default=None, ge=1)
    """Only the first so many examples, after any other selection."""

    @abstractmethod
    def read(self, report: Report) -> Iterator[Example]:
        """Every selected example in the official order; malformed records go to ``report``."""

    def examples(self) -> Iterator[Example]:
        return islice(self.read(leave_out if self.skip_bad else refuse), self.limit)

    def bad_records(self) -> list[BadRecord]:
        if not self.skip_bad:
            return []
        bad: list[BadRecord] = []
        deque(self.read(bad.append), maxlen=0)
        first = {record.question_id: record for record in reversed(bad)}
        return [r for r in bad if r.question_id is None or r is first[r.question_id]]

    def human_maps(self, example: Example) -> list[np.ndarray]:
        return [decode_map(Path(path)) for path in example.human_maps]


class OfficialRecord(BaseModel):
    """One record of an official file; keys we do not use are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class QuestionRecord(OfficialRecord):
    """An item of a questions file (Antol et al. 2015; Goyal et al. 2017)."""

    question_id: Id
    image_id: Id
    question: str
    multiple_choices: tuple[str, ...] = ()
    coco_split: str | None = None
    """VQA-CP only: the split of COCO that the image belongs to."""


class AnswerRecord(OfficialRecord):
    """One annotator's answer."""

    answer: str


class AnnotationRecord(OfficialRecord):
    """An item of an annotations file. Trimmed copies keep only ``question_id`` and ``answers``."""

    question_id: Id
    answers: tuple[AnswerRecord, ...] = Field(min_length=1)
    image_id: Id | None = None
    question_type: str | None = None
    answer_type: Literal["yes/no", "number", "other"] | None = None
    multiple_choice_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What an annotation says, without the weight of ten answer records."""

    answers: tuple[str, ...] = ()
    truth: str | None = None
    question_type: str | None = None
    answer_type: str | None = None
    image_id: int | None = None


UNLABELLED = Label()


def label(record: AnnotationRecord) -> Label:
    """``multiple_choice_answer`` or else the most common answer, ties in annotator order."""
    answers = tuple(item.answer for item in record.answers)
    truth = record.multiple_choice_answer or Counter(answers).most_common(1)[0][0]
    return Label(answers, truth, record.question_type, record.answer_type, record.image_id)


class Identified(Protocol):
    @property
    def question_id(self) -> int: ...


R = TypeVar("R")
Q = TypeVar("Q", bound=Identified)


@dataclass(frozen=True)
class RecordFile:
    """A parsed JSON file: its records, not validated yet, and the envelope around them."""

    path: Path
    key: str
    """The envelope's key of the records; VQA-CP's plain lists have no envelope."""
    envelope: dict[str, Any]
    raw: list[Any]

    @classmethod
    def open(cls, path: Path, key: str) -> "RecordFile":
        """``{key: [...], ...}`` or a plain list; ``UserError`` for anything else."""
        content = read_json(path)
        if isinstance(content, list):
            return cls(path, key, {}, content)
        records = content.pop(key, None) if isinstance(content, dict) else None
        if not isinstance(records, list):
            found = f"the keys {', '.join(content)}" if isinstance(content, dict) else "a value"
            raise UserError(
                f"{path}: expected a list of {key}, or an object that has one under '{key}', "
                f"found {found or 'an empty object'}; name the official {key} file"
            )
        return cls(path, key, content, records)

    def bad(self, index: int, message: str) -> BadRecord:
        """A complaint about one record that says where it is."""
        raw = self.raw[index]
        found = raw.get("question_id") if isinstance(raw, dict) else None
        question_id = found if type(found) is int else None
        who = "" if question_id is None else f" (question_id {question_id})"
        return BadRecord(
            question_id=question_id,
            file=str(self.path),
            message=f"{self.path}: {self.key}[{index}]{who}: {message}",
        )

    def records(self, kind: type[R], report: Report) -> Iterator[tuple[int, R]]:
        """Each record validated as ``kind``, with its position."""
        validate = TypeAdapter(kind).validate_python
        for index, raw in enumerate(self.raw):
            try:
                yield index, validate(raw)
            except ValidationError as error:
                report(self.bad(index, complaint(error)))

    def unique(self, kind: type[Q], report: Report) -> Iterator[tuple[int, Q]]:
        """The same, every ``question_id`` once."""
        first: dict[int, int] = {}
        for index, record in self.records(kind, report):
            earlier = first.setdefault(record.question_id, index)
            if earlier == index:
                yield index, record
            else:
                message = f"the same question_id as {self.key}[{earlier}]; keep one of the two"
                report(self.bad(index, message))


def complaint(error: ValidationError) -> str:
    """The first thing wrong with a record: field, reason, value, remedy."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "record"
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    return f"field '{field}': {first['msg']}{got}; mend the record or set skip_bad"


def read_json(path: Path) -> Any:
    """A JSON file's content; ``UserError`` where it is missing, cut off or not JSON."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct the path or download the file"
        ) from error
    try:
        return from_json(raw)
    except ValueError as error:
        if not str(error).startswith("EOF"):
            raise UserError(f"{path}: not JSON ({error}); download the file again") from error
        line = raw.count(b"\n") + 1
        raise UserError(
            f"{path}: the JSON breaks off at byte {len(raw)}, line {line}: "
            "the file looks truncated; download it again"
        ) from error


def inside(root: Path, path: str | Path, named_in: object = "") -> Path:
    """``root / path`` with every link followed; ``UserError`` where that leaves ``root``.

    ``named_in`` is the data file that gave the path, for the message.
    """
    where = f"{named_in}: " if named_in else ""
    base = root.resolve()
    try:
        target = (base / path).resolve()
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{where}{str(path)!r} is not a path ({error}); correct it") from error
    if not target.is_relative_to(base):
        raise UserError(
            f"{where}{str(path)!r} leads outside {base}, to {target}; "
            "move the file into that folder or name a folder that holds both"
        )
    return target


def listing(folder: Path) -> dict[str, bool]:
    """The names in a folder, and whether each is a link; nothing where there is no folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_symlink() for entry in entries}


class ImageFolder:
    """Where COCO's images are, each folder listed once: no file is touched per question.

    ``{split}/COCO_{split}_{image_id:012d}.jpg`` (2014 and VQA) or ``{image_id:012d}.jpg`` (2017),
    with or without the folder of the split; also ``.png``.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of images; correct the field 'images'")
        self.folder = folder.resolve()
        self._places: dict[str, list[tuple[Path, dict[str, bool]]]] = {}

    def _search(self, split: str, named_in: object) -> list[tuple[Path, dict[str, bool]]]:
        if split not in self._places:
            folders = [inside(self.folder, split, named_in), self.folder]
            self._places[split] = [(folder, listing(folder)) for folder in folders]
        return self._places[split]

    def path(self, split: str, image_id: int, named_in: object = "") -> Path:
        """The image's file; the official name where there is none, for decoding to miss."""
        places = self._search(split, named_in)
        stems = f"COCO_{split}_{image_id:012d}", f"{image_id:012d}"
        for folder, names in places:
            for name in (stem + suffix for stem in stems for suffix in (".jpg", ".png")):
                if name in names:
                    is_link = names[name]
                    return (
                        inside(self.folder, folder / name, named_in) if is_link else folder / name
                    )
        return inside(self.folder, places[0][0] / f"{stems[0]}.jpg", named_in)


MAP_NAME = re.compile(r"(\d+)_(\d+)\.png")


def human_map_index(folder: Path) -> dict[int, tuple[str, ...]]:
    """VQA-HAT (Das et al. 2016): ``{question_id}_{k}.png`` by question, in the order of k."""
    maps: dict[int, list[tuple[int, str]]] = {}
    for name, is_link in listing(folder).items():
        if match := MAP_NAME.fullmatch(name):
            path = inside(folder, name) if is_link else folder.resolve() / name
            maps.setdefault(int(match[1]), []).append((int(match[2]), str(path)))
    if not maps:
        raise UserError(
            f"{folder}: no attention map named '{{question_id}}_{{k}}.png' in it; "
            "name the unpacked VQA-HAT folder"
        )
    return {question: tuple(path for _, path in sorted(found)) for question, found in maps.items()}


@dataclass(frozen=True)
class Joined:
    """One question with its label and its position in the questions file."""

    index: int
    question: QuestionRecord
    label: Label


SAME = "use questions and annotations of the same split and version"


def join(
    questions: RecordFile,
    kind: type[QuestionRecord],
    annotations: RecordFile | None,
    report: Report,
) -> list[Joined]:
    """Questions with their annotations by ``question_id``; each must have exactly one partner."""
    asked = list(questions.unique(kind, report))
    if annotations is None:
        return [Joined(index, question, UNLABELLED) for index, question in asked]
    labels = {
        record.question_id: (index, label(record))
        for index, record in annotations.unique(AnnotationRecord, report)
    }
    joined = []
    for index, question in asked:
        at, found = labels.pop(question.question_id, (-1, None))
        if found is None:
            report(questions.bad(index, f"no annotation in {annotations.path}; {SAME}"))
        elif found.image_id not in (None, question.image_id):
            message = f"image_id {found.image_id}, but {question.image_id} in {questions.path}"
            report(annotations.bad(at, f"{message}; {SAME}"))
        else:
            joined.append(Joined(index, question, found))
    for at, _ in labels.values():
        report(annotations.bad(at, f"no question in {questions.path}; {SAME}"))
    return joined
