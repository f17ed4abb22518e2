"""One shard: stored maps + human maps, or the model -> metric rows."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from schemas.config import RunConfig
from schemas.example import Example
from schemas.frame import Frame
from schemas.report import Report
from schemas.rows import ExampleRow, FailureRow, MapRow, MetricRow
from schemas.shard import Task, by_image
from workers import catalog
from workers.ahead import ahead
from workers.examine import Examined, Examiner, Refused, Stored
from workers.explain import Failed, guarded
from workers.ledger import failure_row, timing_row
from workers.metrics.base import OK, MapMetric, Measure, Metric, Scores
from workers.metrics.frame import cut
from workers.objects import OUTAGE
from workers.store import Store

HUMAN, SHUFFLED = "human", "shuffled_human"
"""Inter-human agreement, and another image's human map scored as if it were a model's."""
AHEAD = 4
"""Examples whose human maps are read while another is scored."""
NO_ANNOTATOR = -1
"""Of rows that no human map has a part in."""


@dataclass(frozen=True)
class Candidate:
    """A map to be scored against an example's annotators."""

    method: str
    target: str
    values: np.ndarray


@dataclass(frozen=True)
class Humans:
    """An example's human maps, cut to what the model saw."""

    own: list[np.ndarray]
    other: list[np.ndarray]
    """Another image's first one, where it is to be scored."""
    broken: Exception | None
    """Why that one could not be read."""


@dataclass
class Scored:
    """What one task yields."""

    task: Task
    rows: list[MetricRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Examples with a failure."""
        return len({failure.question_id for failure in self.failures})


class Evaluator:
    """Scores the stored maps of one shard after another: each by itself, against the dataset's
    human maps, or with the help of the model, which is loaded only where a metric asks it.

    A label is ``metric:method``; ``metric:human`` stands for the inter-human and the
    shuffled-human rows. One image's maps, or one example's with its human maps, are in memory at a
    time.
    """

    def __init__(self, config: RunConfig, root: str) -> None:
        self.store = Store(root)
        self.dataset = catalog.dataset(config.dataset)
        self.metrics = catalog.metrics(config.metrics)
        self.group = self.store.arrays()
        self.arrays: dict[str, Any] = {}
        """Path -> an array of the run, opened."""
        self.shard: dict[str, np.ndarray] = {}
        """Path -> this task's places in an array whose maps share a chunk."""
        self.examiner = Examiner(config, self.store.record().model, self._values)

    def run(self, task: Task) -> Report:
        """Score every map of a shard under the task's labels, and commit."""
        start, scored = time.time(), Scored(task)
        attempt = self.store.attempt("evaluate", task)
        if not attempt.decided:
            self._score(scored)
            timing = timing_row(task, "evaluate", start, scored.failed, attempt.name)
            attempt.add_rows("failures", scored.failures)
            attempt.add_rows("timings", [timing])
            attempt.commit(scored.rows)
        return Report(
            shard=task.shard.number,
            examples=len(task.shard.examples),
            failed=scored.failed,
            seconds=time.time() - start,
        )

    def _score(self, scored: Scored) -> None:
        task = scored.task
        self.shard.clear()
        answered, maps = self._answered(task), self._maps(task)
        pairs = zip(task.shard.examples, task.decoys, strict=True)
        asked = [pair for pair in pairs if pair[0].question_id in answered]
        for (example, _), humans in ahead(asked, partial(self._humans, task, answered), AHEAD):
            self._evaluate(scored, example, humans, maps[example.question_id])
        for examples in by_image(task.shard.examples).values():
            own = [e for e in examples if e.question_id in answered]
            stored = [Stored(e, row) for e in own for row in maps[e.question_id]]
            self._examine(scored, stored, examples)

    def _answered(self, task: Task) -> dict[int, ExampleRow]:
        """The shard's examples that the model has answered, by question."""
        rows = self.store.read_shard("examples", task.shard.number).to_pylist()
        return {row["question_id"]: ExampleRow(**row) for row in rows if row["status"] == "ok"}

    def _maps(self, task: Task) -> Mapping[int, list[MapRow]]:
        """The shard's maps that can be scored, by question."""
        found: dict[int, list[MapRow]] = defaultdict(list)
        for row in self.store.read_shard("maps", task.shard.number).to_pylist():
            if row["status"] != "failed":
                found[row["question_id"]].append(MapRow(**row))
        return found

    def _humans(
        self, task: Task, answered: Mapping[int, ExampleRow], pair: tuple[Example, Example]
    ) -> Humans | Failed:
        """What an example and its decoy are compared by, read while others are scored."""
        frame = frame_of(answered[pair[0].question_id])
        return guarded(lambda: self._read_humans(task, *pair, frame))

    def _read_humans(self, task: Task, example: Example, decoy: Example, frame: Frame) -> Humans:
        labels = self._labels(task).items()
        pairwise = [methods for name, methods in labels if isinstance(self.metrics[name], Metric)]
        own = self.dataset.human_maps(example) if pairwise else []
        shuffled = bool(own) and any(HUMAN in methods for methods in pairwise)
        first = replace(decoy, human_maps=decoy.human_maps[:1])
        other = guarded(lambda: self.dataset.human_maps(first)) if shuffled else []
        broken = other.error if isinstance(other, Failed) else None
        read = [] if isinstance(other, Failed) else other
        return Humans([cut(m, frame) for m in own], [cut(m, frame) for m in read], broken)

    def _evaluate(
        self, scored: Scored, example: Example, humans: Humans | Failed, maps: list[MapRow]
    ) -> None:
        def compute() -> list[MetricRow]:
            if isinstance(humans, Failed):
                raise humans.error
            return self._example_rows(scored.task, example, humans, stored)

        read = guarded(lambda: self._candidates(scored.task, maps))
        if isinstance(read, Failed) and isinstance(read.error, OUTAGE):
            raise read.error  # the store's fault, not the example's
        stored = read if isinstance(read, list) else []
        outcome = read if isinstance(read, Failed) else guarded(compute)
        if isinstance(outcome, Failed):
            row = failure_row(scored.task, example, "evaluate", None, outcome.error)
            scored.failures.append(row)
            return
        scored.rows += outcome
        if isinstance(humans, Humans) and humans.broken is not None:
            # A broken map of another example costs this one nothing but that comparison.
            row = failure_row(scored.task, example, "evaluate", SHUFFLED, humans.broken)
            scored.failures.append(row)

    def _example_rows(
        self, task: Task, example: Example, humans: Humans, stored: list[Candidate]
    ) -> list[MetricRow]:
        rows: list[MetricRow] = []
        for name, methods in self._labels(task).items():
            metric = self.metrics[name]
            candidates = [candidate for candidate in stored if candidate.method in methods]
            if isinstance(metric, MapMetric):
                rows += self._alone(task, example, metric, candidates)
            elif isinstance(metric, Metric) and humans.own:
                prepared = [metric.prepare([human]) for human in humans.own]
                if HUMAN in methods:
                    candidates += [Candidate(SHUFFLED, HUMAN, m) for m in humans.other]
                    rows += self._inter_human(task, example, metric, prepared)
                rows += self._against(task, example, metric, candidates, prepared)
        return rows

    def _candidates(self, task: Task, maps: list[MapRow]) -> list[Candidate]:
        """An example's maps, each read once for all metrics that score maps by themselves."""
        labels = self._labels(task)
        wanted = {method for methods in labels.values() for method in methods}
        return [
            Candidate(row.method, row.target, self._values(row))
            for row in maps
            if row.method in wanted
        ]

    def _labels(self, task: Task) -> dict[str, list[str]]:
        """Metric -> methods, without what the examiner does."""
        labels = by_metric(task.labels)
        return {name: own for name, own in labels.items() if name not in self.examiner.checks}

    def _values(self, row: MapRow) -> np.ndarray:
        """The stored primary array that an index row points at."""
        return np.asarray(self._stored(row), np.float32) * np.float32(row.scale)

    def _alone(
        self, task: Task, example: Example, metric: MapMetric, candidates: Sequence[Candidate]
    ) -> Iterator[MetricRow]:
        if candidates:
            scores = metric.score([candidate.values for candidate in candidates])
            yield from _metric_rows(task, example, metric, candidates, NO_ANNOTATOR, scores)

    def _examine(self, scored: Scored, maps: Sequence[Stored], examples: Sequence[Example]) -> None:
        """The checks of one image's maps; ``examples`` are all of its questions."""
        labels = by_metric(scored.task.labels)
        wanted = {name: labels[name] for name in self.examiner.checks if name in labels}
        for result in self.examiner.examine(wanted, maps, examples):
            if isinstance(result, Refused):
                failure = failure_row(
                    scored.task, result.example, "evaluate", result.check, result.error
                )
                scored.failures.append(failure)
            else:
                scored.rows += _check_rows(scored.task, self.metrics[result.check], result)

    def _stored(self, row: MapRow) -> np.ndarray:
        """A map; where a shard's maps share one chunk, it is read once a task."""
        if row.array not in self.arrays:
            self.arrays[row.array] = self.group[row.array]
        array = self.arrays[row.array]
        if array.chunks[0] == 1:
            return array[row.ordinal, row.target_index]
        capacity = array.chunks[0]
        first = row.shard * capacity
        if row.array not in self.shard:
            self.shard[row.array] = array[first : first + capacity]
        return self.shard[row.array][row.ordinal - first, row.target_index]

    def _against(
        self,
        task: Task,
        example: Example,
        metric: Metric,
        candidates: Sequence[Candidate],
        humans: Sequence[Any],
    ) -> Iterator[MetricRow]:
        if not candidates:
            return
        batch = metric.prepare([candidate.values for candidate in candidates])
        for annotator, human in enumerate(humans):
            scores = metric.score(batch, human)
            yield from _metric_rows(task, example, metric, candidates, annotator, scores)

    def _inter_human(
        self, task: Task, example: Example, metric: Metric, humans: Sequence[Any]
    ) -> Iterator[MetricRow]:
        """Every pair of annotators; ``annotator`` numbers the pairs."""
        for pair, (first, second) in enumerate(combinations(humans, 2)):
            scores = metric.score(first, second)
            yield from _metric_rows(task, example, metric, [INTER_HUMAN], pair, scores)


INTER_HUMAN = Candidate(HUMAN, HUMAN, np.empty(0))


def _check_rows(task: Task, check: Measure, examined: Examined) -> Iterator[MetricRow]:
    """Maps of several examples in one list of scores."""
    for i, stored in enumerate(examined.maps):
        candidate = Candidate(stored.row.method, stored.row.target, np.empty(0))
        scores = {name: score.only(i) for name, score in examined.scores.items()}
        yield from _metric_rows(task, stored.example, check, [candidate], NO_ANNOTATOR, scores)


def _metric_rows(
    task: Task,
    example: Example,
    metric: Measure,
    candidates: Sequence[Candidate],
    annotator: int,
    scores: Mapping[str, Scores],
) -> Iterator[MetricRow]:
    for name, score in scores.items():
        points = score.points or [None] * len(candidates)
        found = zip(candidates, score.values, score.statuses, points, strict=True)
        for c, value, status, curve in found:
            yield MetricRow(
                question_id=example.question_id,
                image_id=example.image_id,
                method=c.method,
                target=c.target,
                metric=name,
                annotator=annotator,
                value=float(value) if status == OK else None,
                status=status,
                conventions=metric.conventions(),
                points=None if curve is None else list(curve),
                shard=task.shard.number,
                round=task.round,
            )


def frame_of(row: ExampleRow) -> Frame:
    """The frame an answered example records; input sizes do not matter for cutting."""
    assert row.frame is not None
    assert row.image_height is not None
    assert row.image_width is not None
    top, left, bottom, right = row.frame
    return Frame(
        top=top,
        left=left,
        bottom=bottom,
        right=right,
        image_height=row.image_height,
        image_width=row.image_width,
        input_height=row.image_height,
        input_width=row.image_width,
    )


def by_metric(labels: Iterable[str]) -> Mapping[str, list[str]]:
    """``["rank:occlusion", "rank:human"]`` -> ``{"rank": ["occlusion", "human"]}``."""
    grouped: dict[str, list[str]] = {}
    for label in labels:
        metric, method = label.split(":", 1)
        grouped.setdefault(metric, []).append(method)
    return grouped
