"""What runs tasks: one method. ``local`` defines the meaning, ``ray`` spreads it over machines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.config import Resources
from schemas.report import Report
from schemas.shard import Task


class Worker(Protocol):
    """Built once in its process, then given one task after another."""

    def run(self, task: Task) -> Report: ...


@dataclass(frozen=True)
class Job:
    """A kind of worker and what it is built with."""

    worker: Callable[..., Worker]
    arguments: tuple[object, ...]
    after_crash: Callable[[Task], Task]
    """The task to requeue when a worker process has died at it."""
    tell: Callable[[str, dict[str, Any]], None] = lambda event, fields: None
    """Where an executor reports what it lived through: crashes, lost nodes, deadlines."""
    accelerated: bool = True
    """Whether the worker can use a GPU."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a report, or with the error that stopped it."""

    task: Task
    report: Report | None = None
    error: str | None = None


class Executor(ABC):
    """Maps a worker over tasks; outcomes come in any order, each task exactly once."""

    @abstractmethod
    def map(self, job: Job, tasks: Sequence[Task], resources: Resources) -> Iterator[Outcome]:
        """Every task's outcome, as soon as it is known."""
