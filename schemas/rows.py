"""Every Parquet row and its Arrow schema, from one definition."""

from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import pyarrow as pa

from schemas.base import Frozen


class ExampleRow(Frozen):
    """One example: what was asked, what the model answered and what it saw."""

    question_id: int
    image_id: int
    image: str
    question: str
    tokens: list[str] | None
    answers: list[str]
    question_type: str | None
    answer_type: str | None
    prediction: str | None
    truth: str | None
    truth_in_vocabulary: bool | None
    """False: the example has no ``truth`` target."""
    confidence: float | None
    """Softmax probability of the prediction on the clean input."""
    correct: bool | None
    """The prediction equals the labelled answer."""
    accuracy: float | None
    """Official VQA accuracy against all annotators."""
    status: str
    reason: str | None
    frame: list[float] | None
    """Top, left, bottom, right of what the model saw, as fractions of the image."""
    image_height: int | None
    image_width: int | None
    shard: int
    ordinal: int
    round: str
    """Of the shard's first round, which brought the example's rows."""
    prediction_index: int | None = None
    """The prediction's number where answers are numbered, as in occlusion's ``top_answer``."""


class MapRow(Frozen):
    """One importance map: where it lies, what it explains and a few numbers about it."""

    question_id: int
    image_id: int
    method: str
    target: str
    answer: str | None
    array: str
    """Path of the primary array inside ``maps.zarr``."""
    ordinal: int
    """Position along the array's example axis."""
    target_index: int
    """Position along the array's target axis."""
    score: str
    status: str
    """``ok``, ``degenerate`` (an all-equal map) or ``failed``."""
    reason: str | None
    minimum: float | None
    maximum: float | None
    mean: float | None
    approximation: str | None
    """What makes the map differ from the exact float32 one; null where nothing does."""
    fidelity: float | None
    """Rank correlation of the method's maps to the exact ones, the mean over a sample."""
    scale: float
    """A stored value times the scale is the value (1 unless pixel maps are float16)."""
    checksum: int | None
    """CRC-32 of the bytes of all the method's stored arrays for this map; null for a failed one."""
    seconds: float | None
    device: str
    shard: int
    round: str
    """Which set of labels the row was computed with: part of its fragment's name."""


class WordRow(Frozen):
    """The importance of every word of one question, for one target."""

    question_id: int
    image_id: int
    method: str
    target: str
    answer: str | None
    tokens: list[str]
    importances: list[float] | None
    top_answers: list[str] | None
    """The model's answer when each word is dropped."""
    sub_tokens: list[int] | None = None
    """Of how many sub-tokens each importance is the sum; null where words are the model's own."""
    score: str
    status: str
    reason: str | None
    seconds: float | None
    shard: int
    round: str


class MetricRow(Frozen):
    """One number about a map: by itself, by the model, or against one annotator's map."""

    question_id: int
    image_id: int
    method: str
    target: str
    metric: str
    annotator: int
    """-1 where no human map is involved; of inter-human rows the number of the pair."""
    value: float | None
    status: str
    conventions: str
    points: list[float] | None = None
    """The curve whose area the value is, at steps as equal as whole cells allow, from none of
    them to all."""
    shard: int
    round: str


class FailureRow(Frozen):
    """One thing that went wrong, and where."""

    question_id: int | None
    """None where a malformed record does not tell it."""
    image_id: int | None
    shard: int | None
    """None for a record that never became an example."""
    round: str | None
    stage: str
    method: str | None
    error: str
    message: str
    traceback: str


class TimingRow(Frozen):
    """One task: what it took, and where."""

    shard: int
    round: str
    stage: str
    labels: list[str]
    examples: int
    failed: int
    started: float
    """Seconds since 1970, UTC."""
    seconds: float
    host: str
    pid: int
    device: str
    attempt: str
    """Names the attempt that committed."""


TABLES: dict[str, type[Frozen]] = {
    "examples": ExampleRow,
    "maps": MapRow,
    "words": WordRow,
    "metrics": MetricRow,
    "failures": FailureRow,
    "timings": TimingRow,
}

_SCALARS: dict[type, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
}


def arrow_schema(table: str, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a table; explicit, so that an all-null column keeps its type."""
    fields = [
        pa.field(name, _arrow_type(info.annotation))
        for name, info in TABLES[table].model_fields.items()
    ]
    return pa.schema(fields, metadata=metadata)


def _arrow_type(annotation: Any) -> pa.DataType:
    if get_origin(annotation) is UnionType:
        annotation = next(a for a in get_args(annotation) if a is not NoneType)
    if get_origin(annotation) is list:
        return pa.list_(_SCALARS[get_args(annotation)[0]])
    return _SCALARS[annotation]
