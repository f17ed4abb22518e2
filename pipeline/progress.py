"""One progress line a stage: done / total, rate, time left, failures so far."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

EVERY = 10.0
"""Seconds between lines where the output is not a terminal."""


@dataclass
class Meter:
    """Counts examples; on a terminal one line in place, elsewhere a line now and then."""

    stage: str
    total: int
    console: Console
    live: Progress | None = None
    done: int = 0
    failed: int = 0
    start: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def advance(self, done: int, failed: int) -> None:
        self.done += done
        self.failed += failed
        if self.live is not None:
            self.live.update(self.live.task_ids[0], completed=self.done, failed=self.failed)
        elif time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            self.console.print(self.line())

    def line(self) -> str:
        rate = self.done / max(1e-9, time.monotonic() - self.start)
        left = (self.total - self.done) / rate if rate else float("inf")
        return (
            f"{self.stage}  {self.done:,}/{self.total:,} examples  {rate:.1f}/s  "
            f"{clock(left)} left  {self.failed} failed"
        )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f}/s")


@contextmanager
def meter(stage: str, total: int, console: Console) -> Iterator[Meter]:
    """A meter for one stage; ends with a line that stays."""
    counter = Meter(stage, total, console)
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("examples"),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[failed]} failed"),
        )
        with Progress(*columns, console=console, transient=True) as counter.live:
            counter.live.add_task(stage, total=total, failed=0)
            yield counter
    else:
        yield counter
    seconds = time.monotonic() - counter.start
    rate = counter.done / max(1e-9, seconds)
    console.print(
        f"{stage}  {counter.done:,}/{total:,} examples in {clock(seconds)} "
        f"({rate:.1f}/s), {counter.failed} failed"
    )


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
