"""Records of the official VQA files, checked one by one as they are read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from workers.datasets.base import BadRecord, Report
from workers.errors import Outage, UserError
from workers.place import Place

MAX_ID = 2**63 - 1
"""Ids are stored as 64-bit integers."""
Id = Annotated[int, Field(strict=True, ge=0, le=MAX_ID)]
SAME_FILES = "use questions and annotations of the same split and version"


record = dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
"""One record of an official file: keys we do not use are not looked at, and a million fit."""


@record
class QuestionRecord:
    """An item of a questions file (Antol et al. 2015; Goyal et al. 2017)."""

    question_id: Id
    image_id: Id
    question: str
    multiple_choices: tuple[str, ...] = ()
    coco_split: str | None = None
    """VQA-CP only: the split of COCO that the image belongs to."""


@record
class AnswerRecord:
    """One annotator's answer."""

    answer: str


@record
class AnnotationRecord:
    """An item of an annotations file. Trimmed copies keep only ``question_id`` and ``answers``."""

    question_id: Id
    answers: tuple[AnswerRecord, ...] = Field(min_length=1)
    image_id: Id | None = None
    question_type: str | None = None
    answer_type: Literal["yes/no", "number", "other"] | None = None
    multiple_choice_answer: str | None = None


@plain_dataclass(frozen=True, slots=True)
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


class HasQuestionId(Protocol):
    @property
    def question_id(self) -> int: ...


Kind = TypeVar("Kind")
IdentifiedKind = TypeVar("IdentifiedKind", bound=HasQuestionId)


@plain_dataclass(frozen=True, slots=True)
class RecordFile:
    """A parsed JSON file: its records, not validated yet, and the envelope around them."""

    path: Place
    key: str
    """The envelope's key of the records; VQA-CP's plain lists have no envelope."""
    envelope: dict[str, Any]
    raw: list[Any]

    @classmethod
    def open(cls, path: Place, key: str) -> "RecordFile":
        """``{key: [...], ...}`` or a plain list; ``UserError`` for anything else."""
        content = read_json(path)
        if isinstance(content, list):
            return cls(path, key, {}, content)
        if isinstance(content, dict) and isinstance(content.get(key), list):
            return cls(path, key, content, content.pop(key))
        found = f"the keys {list(content)}" if isinstance(content, dict) else f"{content!r:.80}"
        raise UserError(
            f"{path}: expected a list of {key}, or an object with such a list under '{key}', "
            f"found {found}; name the official {key} file"
        )

    def bad(self, index: int, message: str) -> BadRecord:
        """A complaint about one record that says where it is."""
        raw = self.raw[index]
        found = raw.get("question_id") if isinstance(raw, dict) else None
        question_id = found if type(found) is int and 0 <= found <= MAX_ID else None
        who = "" if question_id is None else f" (question_id {question_id})"
        return BadRecord(
            question_id=question_id,
            file=str(self.path),
            message=f"{self.path}: {self.key}[{index}]{who}: {message}",
        )

    def records(self, kind: type[Kind], report: Report) -> Iterator[tuple[int, Kind]]:
        """Each record validated as ``kind``, with its position."""
        validate = TypeAdapter(kind).validate_python
        for index, raw in enumerate(self.raw):
            try:
                record = validate(raw)
            except ValidationError as error:
                report(self.bad(index, complaint(error)))
            else:
                yield index, record

    def unique(
        self, kind: type[IdentifiedKind], report: Report
    ) -> Iterator[tuple[int, IdentifiedKind]]:
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


def read_json(path: Place) -> Any:
    """A JSON file's content; ``UserError`` where it is missing, cut off or not JSON."""
    try:
        raw = path.read_bytes()
    except Outage:
        raise
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


@plain_dataclass(frozen=True, slots=True)
class Labelled:
    """A question and its annotation."""

    question: QuestionRecord
    label: Label


def join(
    questions: RecordFile,
    kind: type[QuestionRecord],
    annotations: RecordFile | None,
    report: Report,
) -> list[Labelled]:
    """Questions with their annotations by ``question_id``; each must have exactly one partner."""
    asked = list(questions.unique(kind, report))
    if annotations is None:
        return [Labelled(question, UNLABELLED) for _, question in asked]
    labels = {
        record.question_id: (index, label(record))
        for index, record in annotations.unique(AnnotationRecord, report)
    }
    joined = []
    for index, question in asked:
        at, found = labels.pop(question.question_id, (-1, None))
        if found is None:
            report(questions.bad(index, f"no annotation in {annotations.path}; {SAME_FILES}"))
        elif found.image_id not in (None, question.image_id):
            message = f"image_id {found.image_id}, but {question.image_id} in {questions.path}"
            report(annotations.bad(at, f"{message}; {SAME_FILES}"))
        else:
            joined.append(Labelled(question, found))
    for at, _ in labels.values():
        report(annotations.bad(at, f"no question in {questions.path}; {SAME_FILES}"))
    return joined
