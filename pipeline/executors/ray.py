"""Plain Ray actors behind a queue that the driver owns.

Ray restarts and retries nothing (``max_restarts=0, max_task_retries=0``): a call bound to an actor
that cannot be placed again would wait for ever, and a dead actor would swallow the queue. The
driver requeues instead, so a task is lost only when the driver is, and the store knows the rest.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from pipeline.executors.base import Executor, Job, Outcome, Worker
from schemas.config import Resources
from schemas.shard import Task
from workers.errors import UserError

IN_FLIGHT = 2
"""Tasks an actor holds: one running, one waiting, so that it never idles."""
CRASHES = 6
"""Crashes of one task after which it is given up, whatever image was to blame."""
START_FAILURES = 3
"""Start-ups in a row that fail before the run is stopped: the model will not load."""
READY_SECONDS = 300.0
"""How long the first actor may take to be placed and built before the run is stopped."""


class Actor:
    """Holds one worker for its life; importable, so that Ray pickles it by name."""

    def __init__(self, worker: Callable[..., Worker], arguments: tuple[object, ...]) -> None:
        self.worker = worker(*arguments)

    def ready(self) -> int:
        return os.getpid()

    def run(self, task: Task) -> object:
        return self.worker.run(task)


@dataclass
class Slot:
    """One actor and the tasks it was given, oldest first."""

    handle: Any
    tasks: deque[Task] = field(default_factory=deque)
    up: bool = False


class RayExecutor(Executor):
    """A pool of actors, one task stream each."""

    def map(self, job: Job, tasks: Sequence[Task], resources: Resources) -> Iterator[Outcome]:
        if not tasks:
            return
        with _cluster(resources):
            pool = _Pool(job, tasks, resources)
            try:
                yield from pool.outcomes()
            finally:
                pool.close()


class _Pool:
    """The driver's queue. ``calls`` maps every open Ray call to its slot and its task."""

    def __init__(self, job: Job, tasks: Sequence[Task], resources: Resources) -> None:
        self.job, self.resources = job, resources
        self.queue = deque(tasks)
        self.calls: dict[Any, tuple[Slot, Task | None]] = {}
        self.slots: list[Slot] = []
        self.crashes: Counter[int] = Counter()
        self.start_failures = 0
        self.born = time.monotonic()
        self.actor = ray.remote(Actor).options(
            num_cpus=resources.threads,
            num_gpus=resources.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(resources.threads)}},
        )
        for _ in range(min(resources.workers, len(tasks))):
            self._start()

    def outcomes(self) -> Iterator[Outcome]:
        while self.queue or any(slot.tasks for slot in self.slots):
            self._check_started()
            done, _ = ray.wait(list(self.calls), num_returns=1, timeout=1.0)
            for call in done:
                if call in self.calls:  # not one of an actor buried a moment ago
                    yield from self._finish(call)

    def close(self) -> None:
        for slot in self.slots:
            ray.kill(slot.handle)

    def _start(self) -> None:
        slot = Slot(self.actor.remote(self.job.worker, self.job.arguments))
        self.slots.append(slot)
        self.calls[slot.handle.ready.remote()] = (slot, None)

    def _check_started(self) -> None:
        waited = time.monotonic() - self.born
        if waited > READY_SECONDS and not any(slot.up for slot in self.slots):
            needs = f"{self.resources.threads} CPU and {self.resources.gpus_per_worker} GPU"
            raise UserError(
                f"No worker could be started within {waited:.0f} s: each needs {needs}; the "
                f"cluster has {ray.cluster_resources()}. Lower resources.threads or "
                "resources.gpus_per_worker."
            )

    def _feed(self, slot: Slot) -> None:
        while slot.up and self.queue and len(slot.tasks) < IN_FLIGHT:
            task = self.queue.popleft()
            slot.tasks.append(task)
            self.calls[slot.handle.run.remote(task)] = (slot, task)

    def _finish(self, call: Any) -> Iterator[Outcome]:
        slot, task = self.calls.pop(call)
        try:
            result = ray.get(call)
        except RayActorError as error:
            yield from self._bury(slot, error)
            return
        except RayTaskError as error:
            if task is None:
                raise
            slot.tasks.remove(task)
            yield Outcome(task, error=str(error.cause))
        else:
            if task is None:
                slot.up, self.start_failures = True, 0
            else:
                slot.tasks.remove(task)
                yield Outcome(task, report=result)
        self._feed(slot)

    def _bury(self, slot: Slot, error: RayActorError) -> Iterator[Outcome]:
        """Forget a dead actor, requeue its tasks and start another."""
        self._count_start_failure(slot, error)
        yield from self._last_words(slot)
        ray.kill(slot.handle)
        self.slots.remove(slot)
        if slot.tasks:
            yield from self._requeue_running(slot.tasks.popleft(), error)
        self.queue.extendleft(reversed(slot.tasks))
        if self.queue:
            self._start()

    def _last_words(self, slot: Slot) -> Iterator[Outcome]:
        """What the actor finished before it died; the oldest task left was the one running."""
        open_calls = [call for call, (owner, _) in self.calls.items() if owner is slot]
        for call in open_calls:
            _, task = self.calls.pop(call)
            try:
                report = ray.get(call)
            except (RayActorError, RayTaskError):
                continue
            if task is not None:
                slot.tasks.remove(task)
                yield Outcome(task, report=report)

    def _requeue_running(self, task: Task, error: RayActorError) -> Iterator[Outcome]:
        self.crashes[task.shard.number] += 1
        count = self.crashes[task.shard.number]
        if count >= CRASHES:
            yield Outcome(task, error=f"its worker process died {count} times: {error}")
        else:
            self.queue.appendleft(self.job.after_crash(task))

    def _count_start_failure(self, slot: Slot, error: RayActorError) -> None:
        if slot.up:
            return
        self.start_failures += 1
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        if self.start_failures >= START_FAILURES:
            raise UserError(
                f"A worker could not be started {START_FAILURES} times in a row; the last reason: "
                f"{error}"
            )


@contextmanager
def _cluster(resources: Resources) -> Iterator[None]:
    """Connected to the cluster asked for, or to one of our own that ends with the block."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if resources.address is None:
        cpus = max(os.cpu_count() or 1, resources.workers * resources.threads)
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        ray.init(address=resources.address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
