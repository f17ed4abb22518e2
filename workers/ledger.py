"""What one task yields, collected until it is written in one commit."""

import os
import socket
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from schemas.arrays import ArraySpec
from schemas.example import Example
from schemas.frame import Frame
from schemas.rows import ExampleRow, FailureRow, MapRow, TimingRow, WordRow
from schemas.run import Definition
from schemas.shard import Task, by_image
from workers.encoding import fill_value
from workers.errors import BadExample
from workers.methods.base import ImageMethod, Maps, Method, Row, Scene, WordScores
from workers.models.base import Tokens, VQAModel
from workers.store import Store
from workers.vqa_accuracy import accuracy


@dataclass(frozen=True)
class Entry:
    """One explanation to be recorded: which, by what, and what it took."""

    label: str
    example: Example
    row: Row
    answers: Sequence[str] = ()
    """What the row's answer is a number of."""
    tokens: Tokens = ()
    seconds: float | None = None
    status: str = "ok"
    reason: str | None = None


@dataclass(frozen=True)
class Inexact:
    """What makes a method's maps approximate, and their measured fidelity."""

    approximation: str | None = None
    fidelity: float | None = None


@dataclass(frozen=True)
class Placed:
    """What the index says of a stored map: the primary array's scale, all arrays' checksum."""

    scale: float = 1.0
    checksum: int | None = None


@dataclass(frozen=True)
class BesideWords:
    """What a row of words has beside the importances."""

    top_answers: list[str] | None = None
    sub_tokens: list[int] | None = None

    @classmethod
    def of(cls, scores: WordScores, entry: Entry, r: int) -> "BesideWords":
        """Of row ``r``."""
        top, parts = scores.top_answers, scores.sub_tokens
        return cls(
            None if top is None else [entry.answers[int(a)] for a in top[entry.row.question]],
            None if parts is None else parts[r],
        )


@dataclass
class Ledger:
    """Arrays and rows of one task. Every example ends with its rows, failed ones too."""

    task: Task
    model: VQAModel
    methods: Mapping[str, Method]
    targets: Sequence[str]
    inexact: Mapping[str, Inexact] = field(default_factory=dict)
    """By label; a label that is not here has exact maps."""
    specs: dict[tuple[str, str], ArraySpec] = field(default_factory=dict)
    arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    examples: dict[int, ExampleRow] = field(default_factory=dict)
    maps: list[MapRow] = field(default_factory=list)
    words: list[WordRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        shard = self.task.shard
        self.positions = {e.question_id: i for i, e in enumerate(shard.examples)}

    @cached_property
    def images(self) -> dict[int, list[Example]]:
        """The shard's examples by image, whichever of them are wanted."""
        return by_image(self.task.shard.examples)

    def allocate(self, label: str, spec: ArraySpec) -> None:
        """An array for the whole shard, unwritten places marked."""
        middle = (len(self.targets),) if spec.per_target else ()
        shape = (self.task.shard.capacity, *middle, *spec.shape)
        self.specs[label, spec.name] = spec
        self.arrays[label, spec.name] = np.full(shape, fill_value(spec), spec.dtype)

    def restore(self, store: Store, definitions: Mapping[str, Definition]) -> None:
        """For a retry: the maps and rows that stay as they are."""
        again = {e.question_id for e in self.task.wanted}
        kept = [e for e in self.task.shard.examples if e.question_id not in again]
        self.examples.update(
            {
                row["question_id"]: ExampleRow(**row)
                for row in store.read_shard("examples", self.task.shard.number).to_pylist()
            }
        )
        if kept:
            self._restore_rows(store, {e.question_id for e in kept})
            self._restore_arrays(store, definitions, [self.positions[e.question_id] for e in kept])

    def _restore_rows(self, store: Store, kept: set[int]) -> None:
        def stored(table: str) -> list[dict]:
            rows = store.read_shard(table, self.task.shard.number).to_pylist()
            own = (row for row in rows if row["round"] == self.task.round)
            return [row for row in own if row["question_id"] in kept]

        self.maps += [MapRow(**row) for row in stored("maps")]
        self.words += [WordRow(**row) for row in stored("words")]
        self.failures += [FailureRow(**row) for row in stored("failures")]

    def _restore_arrays(
        self, store: Store, definitions: Mapping[str, Definition], places: Sequence[int]
    ) -> None:
        for label in {label for label, _ in self.arrays}:
            stored = store.read_arrays(definitions[label], self.task.shard.number)
            for name, values in stored.items():
                self.arrays[label, name][places] = values[places]

    def asked(self, example: Example, frame: Frame, tokens: Tokens, scene: Scene, q: int) -> None:
        """The model's answer to question ``q`` of a scene."""
        predicted = scene.predictions[q]
        prediction = scene.model.answers[predicted]
        answered = {
            "tokens": list(tokens),
            "prediction": prediction,
            "prediction_index": predicted,
            "truth_in_vocabulary": None if example.truth is None else scene.truths[q] is not None,
            "confidence": float(scene.output.logits[q].softmax(-1)[predicted]),
            "correct": None if example.truth is None else scene.truths[q] == predicted,
            "accuracy": accuracy(prediction, example.answers) if example.answers else None,
            "frame": [frame.top, frame.left, frame.bottom, frame.right],
            "image_height": frame.image_height,
            "image_width": frame.image_width,
        }
        row = self._example_row(example, None)
        self.examples[example.question_id] = row.model_copy(update=answered)

    def fail(
        self, example: Example, stage: str, error: Exception, label: str | None = None
    ) -> None:
        """A failure and the failed rows of what it prevented (every method without a label)."""
        self.failures.append(failure_row(self.task, example, stage, label, error))
        if label is None:
            self.examples[example.question_id] = self._example_row(example, str(error))
        row = Row(0, self.targets[0], -1)  # type: ignore[arg-type]
        for name in self.task.labels if label is None else [label]:
            self._append(Entry(name, example, row, status="failed", reason=str(error)), None)

    def record(self, entry: Entry, r: int, result: Maps | WordScores) -> None:
        """Row ``r`` of a method's result; non-finite values are a failure, never data."""
        if isinstance(result, Maps):
            own = self._own_arrays(entry, r, result)
            entry = replace(entry, reason=result.reasons.get(r))
            primary = own[self.methods[entry.label].primary]
            finite = all(np.isfinite(values).all() for values in own.values())
        else:
            own, primary = {}, result.importances[r]
            finite = bool(np.isfinite(primary).all())
        if not finite:
            error = _not_finite(entry, primary)
            failure = failure_row(self.task, entry.example, "explain", entry.label, error)
            self.failures.append(failure)
            self._append(replace(entry, status="failed", reason=str(error)), None)
            return
        beside = BesideWords.of(result, entry, r) if isinstance(result, WordScores) else None
        self._append(entry, primary, beside, self._place(entry, own))

    def commit(self, store: Store) -> None:
        """Everything in one attempt; the example rows only in the shard's first round."""
        shard = self.task.shard
        attempt = store.attempt("explain", self.task)
        for key, values in self.arrays.items():
            attempt.add_array(key[0], self.specs[key], values)
        rows = [self.examples[e.question_id] for e in shard.examples]
        if {row.round for row in rows} == {self.task.round} and store.brings_examples(self.task):
            attempt.add_rows("examples", rows)
        attempt.add_rows("words", self.words)
        attempt.add_rows("failures", self.failures)
        timing = timing_row(
            self.task, "explain", self.started, self.failed, attempt.name, str(self.model.device)
        )
        attempt.add_rows("timings", [timing])
        attempt.commit(self.maps)

    @property
    def failed(self) -> int:
        """Examples with a failure."""
        return len({row.question_id for row in self.failures})

    # --- arrays ---------------------------------------------------------------------------------

    def _own_arrays(self, entry: Entry, r: int, result: Maps) -> dict[str, np.ndarray]:
        return {
            name: values[r if self.specs[entry.label, name].per_target else entry.row.question]
            for name, values in result.arrays.items()
        }

    def _place(self, entry: Entry, own: Mapping[str, np.ndarray]) -> Placed:
        """Copy a row's arrays to their place in the shard."""
        position = self.positions[entry.example.question_id]
        scales, checksum = {}, 0
        for name, values in sorted(own.items()):
            spec = self.specs[entry.label, name]
            scales[name] = _half_scale(values) if spec.dtype == "float16" else 1.0
            target = (self.targets.index(entry.row.target),) if spec.per_target else ()
            stored = self.arrays[entry.label, name][(position, *target)]
            stored[...] = values / scales[name] if spec.dtype == "float16" else values
            checksum = zlib.crc32(stored.tobytes(), checksum)
        return Placed(scales.get(self.methods[entry.label].primary, 1.0), checksum)

    # --- rows -----------------------------------------------------------------------------------

    def _append(
        self,
        entry: Entry,
        values: np.ndarray | None,
        beside: "BesideWords | None" = None,
        placed: Placed | None = None,
    ) -> None:
        if isinstance(self.methods[entry.label], ImageMethod):
            self.maps.append(self._map_row(entry, values, placed or Placed()))
        else:
            self.words.append(self._word_row(entry, values, beside or BesideWords()))

    def _map_row(self, entry: Entry, values: np.ndarray | None, placed: Placed) -> MapRow:
        status, reason = _verdict(entry, values)
        inexact = self.inexact.get(entry.label, Inexact())
        return MapRow(
            **self._common(entry),
            array=f"{entry.label}/{self.methods[entry.label].primary}",
            ordinal=self.task.shard.ordinals[self.positions[entry.example.question_id]],
            target_index=self.targets.index(entry.row.target),
            status=status,
            reason=reason,
            minimum=float(values.min()) if values is not None else None,
            maximum=float(values.max()) if values is not None else None,
            mean=float(values.mean()) if values is not None else None,
            approximation=inexact.approximation,
            fidelity=inexact.fidelity,
            scale=placed.scale,
            checksum=placed.checksum,
            device=str(self.model.device),
        )

    def _word_row(self, entry: Entry, values: np.ndarray | None, beside: "BesideWords") -> WordRow:
        status, reason = _verdict(entry, values)
        return WordRow(
            **self._common(entry),
            tokens=list(entry.tokens),
            importances=None if values is None else [float(v) for v in values],
            top_answers=beside.top_answers,
            sub_tokens=beside.sub_tokens,
            status=status,
            reason=reason,
        )

    def _common(self, entry: Entry) -> dict:
        answer = entry.row.answer
        return {
            "question_id": entry.example.question_id,
            "image_id": entry.example.image_id,
            "method": entry.label,
            "target": entry.row.target,
            "answer": entry.answers[answer] if answer >= 0 else None,
            "score": self.methods[entry.label].score,
            "seconds": entry.seconds,
            "shard": self.task.shard.number,
            "round": self.task.round,
        }

    def _example_row(self, example: Example, reason: str | None) -> ExampleRow:
        shard, known = self.task.shard, self.examples.get(example.question_id)
        asked = ("question_id", "image_id", "image", "question", "question_type", "answer_type")
        unknown = dict.fromkeys(
            ("tokens", "prediction", "truth_in_vocabulary", "confidence", "correct", "accuracy")
        )
        return ExampleRow(
            **{name: getattr(example, name) for name in asked},
            **unknown,
            answers=list(example.answers),
            truth=example.truth,
            status="ok" if reason is None else "failed",
            reason=reason,
            frame=None,
            image_height=None,
            image_width=None,
            shard=shard.number,
            ordinal=shard.ordinals[self.positions[example.question_id]],
            round=known.round if known else self.task.round,
        )


def timing_row(
    task: Task, stage: str, started: float, failed: int, attempt: str, device: str = "cpu"
) -> TimingRow:
    """What a task took, up to its commit, and where."""
    return TimingRow(
        shard=task.shard.number,
        round=task.round,
        stage=stage,
        labels=list(task.labels),
        examples=len(task.wanted),
        failed=failed,
        started=started,
        seconds=time.time() - started,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device,
        attempt=attempt,
    )


def failure_row(
    task: Task, example: Example, stage: str, label: str | None, error: Exception
) -> FailureRow:
    """What went wrong with one example; a condition of the data needs no traceback."""
    trace = "".join(traceback.format_exception(error))
    return FailureRow(
        question_id=example.question_id,
        image_id=example.image_id,
        shard=task.shard.number,
        round=task.round,
        stage=stage,
        method=label,
        error=type(error).__name__,
        message=str(error),
        traceback="" if isinstance(error, BadExample) else trace,
    )


def _verdict(entry: Entry, values: np.ndarray | None) -> tuple[str, str | None]:
    """A map of equal values is kept and called degenerate; a single word's importance is not."""
    if values is None or values.size < 2:
        return entry.status, entry.reason
    if values.min() != values.max():
        return entry.status, None
    return "degenerate", entry.reason or f"all values equal {values.flat[0]:.6g}"


def _half_scale(values: np.ndarray) -> float:
    """Largest magnitude, so that a float16 map uses its whole range; 1 for an all-zero map."""
    return float(np.abs(values).max()) or 1.0


def _not_finite(entry: Entry, values: np.ndarray) -> BadExample:
    bad = int((~np.isfinite(values)).sum())
    return BadExample(
        f"{entry.label} for target {entry.row.target}: {bad} of {values.size} values are not "
        "finite; the map is not stored"
    )
