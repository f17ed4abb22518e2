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
from ray.exceptions import (
    ActorUnavailableError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.client import ray as client
from ray.util.metrics import Counter as Total
from ray.util.metrics import Gauge

from pipeline.executors.base import Executor, Job, Outcome, Worker
from pipeline.executors.head import Head, answers
from schemas.config import Resources
from schemas.report import Report
from schemas.shard import Task
from workers.errors import UserError
from workers.models.modules import FOLDERS, module_folders

IN_FLIGHT = 2
"""Tasks an actor holds: one running, one waiting, so that it never idles."""
CRASHES = 6
"""Crashes of one task after which it is given up, whatever image was to blame."""
LOSSES = 3
"""Nodes that may be lost under one task; each further one counts as its crash."""
START_FAILURES, START_DEATHS = 3, 10
"""Start-ups in a row that may raise, or be killed, before the run is stopped: no model loads."""
NODE_DIED = "its node has died"
"""What Ray says of an actor whose machine is gone; of any other death it names the process."""
DEADLINE, MARGIN = 600.0, 20.0
"""Least seconds before a shard counts as hung, and how many times the slowest one's it may take."""


class Actor:
    """Holds one worker for its life; importable, so that Ray pickles it by name."""

    def __init__(self, worker: Callable[..., Worker], arguments: tuple[object, ...]) -> None:
        self.worker = worker(*arguments)

    def ready(self) -> str:
        """The node it runs on."""
        return ray.get_runtime_context().get_node_id()

    def run(self, task: Task) -> object:
        return self.worker.run(task)


@dataclass
class Slot:
    """One actor and the tasks it was given, oldest first."""

    handle: Any
    tasks: deque[Task] = field(default_factory=deque)
    up: bool = False
    node: str = ""
    since: float = 0.0
    """When the oldest task was begun."""
    hung: bool = False

    def start_clock(self) -> None:
        self.since = time.monotonic()


class RayExecutor(Executor):
    """A pool of actors, one task stream each."""

    def map(self, job: Job, tasks: Sequence[Task], resources: Resources) -> Iterator[Outcome]:
        if not tasks:
            return
        with _cluster(resources):
            pool = _Pool(job, tasks, resources)
            try:
                yield from pool.outcomes()
            except ConnectionError as error:  # Ray Client's, which has tried for half a minute
                raise UserError(
                    f"The connection to {resources.address} is lost ({error}). What is committed "
                    "stays: give the same command again when the cluster can be reached."
                ) from error
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
        self.losses: Counter[int] = Counter()
        self.start_failures = 0
        self.slowest = 0.0
        self.last_up = time.monotonic()
        self.gpus = _gpus(job, resources)
        self.gauges = Gauges(resources)
        self.head = Head(None if client.is_connected() else ray.get_runtime_context().gcs_address)
        self.actor = ray.remote(Actor).options(
            num_cpus=resources.threads,
            num_gpus=self.gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": _environment(resources)},
        )
        for _ in range(min(resources.workers, len(tasks))):
            self._start()

    def outcomes(self) -> Iterator[Outcome]:
        while self.queue or any(slot.tasks for slot in self.slots):
            self.head.check()
            self._check_started()
            self._kill_hung()
            self.gauges.queue(len(self.queue) + sum(len(slot.tasks) for slot in self.slots))
            done, _ = ray.wait(list(self.calls), num_returns=1, timeout=1.0)
            for call in done:
                if call in self.calls:  # not one of an actor buried a moment ago
                    yield from self._finish(call)

    def close(self) -> None:
        if ray.is_initialized() and not self.head.lost:  # it would wait for the head
            for slot in self.slots:
                ray.kill(slot.handle)

    def _start(self) -> None:
        slot = Slot(self.actor.remote(self.job.worker, self.job.arguments))
        self.slots.append(slot)
        self.calls[slot.handle.ready.remote()] = (slot, None)

    def _check_started(self) -> None:
        if any(slot.up for slot in self.slots):
            self.last_up = time.monotonic()
        waited = time.monotonic() - self.last_up
        if waited > self.resources.start_timeout:
            needs = f"{self.resources.threads} CPU and {self.gpus:g} GPU"
            raise UserError(
                f"No worker could be started within {waited:.0f} s: each needs {needs}; the "
                f"cluster has {ray.cluster_resources()}. Lower resources.threads or "
                "resources.gpus_per_worker, or raise resources.start_timeout where nodes have to "
                "be started first."
            )

    def _kill_hung(self) -> None:
        """Kill the workers whose shard has taken longer than any may."""
        limit = self.resources.deadline or max(DEADLINE, MARGIN * self.slowest)
        for slot in self.slots:
            if slot.tasks and not slot.hung and time.monotonic() - slot.since > limit:
                slot.hung = True
                self.job.tell("deadline", {"shard": slot.tasks[0].shard.number, "seconds": limit})
                ray.kill(slot.handle)

    def _feed(self, slot: Slot) -> None:
        while slot.up and self.queue and len(slot.tasks) < IN_FLIGHT:
            task = self.queue.popleft()
            if not slot.tasks:
                slot.start_clock()
            slot.tasks.append(task)
            self.calls[slot.handle.run.remote(task)] = (slot, task)

    def _finish(self, call: Any) -> Iterator[Outcome]:
        slot, task = self.calls.pop(call)
        try:
            result = ray.get(call)
        except RayTaskError as error:
            if task is None:
                raise
            slot.tasks.remove(task)
            slot.start_clock()
            yield Outcome(task, error=str(error.cause))
        except RayError as error:
            yield from self._bury(slot, error)
            return
        else:
            if task is None:
                slot.up, slot.node, self.start_failures = True, result, 0
            else:
                yield self._done(slot, task, result)
        self._feed(slot)

    def _done(self, slot: Slot, task: Task, report: Report) -> Outcome:
        slot.tasks.remove(task)
        slot.start_clock()
        self.losses.pop(task.shard.number, None)
        self.slowest = max(self.slowest, report.seconds)
        self.gauges.done(report)
        return Outcome(task, report=report)

    def _bury(self, slot: Slot, error: RayError) -> Iterator[Outcome]:
        """Forget a dead actor, requeue its tasks and start another."""
        ray.kill(slot.handle)  # where only the network is gone it lives on; its calls now end
        yield from self._last_words(slot)
        self.slots.remove(slot)
        lost = not slot.hung and _node_lost(error)
        if lost:
            self._count_loss(slot)
        elif not slot.up:
            self._count_start_failure(error)
        if slot.tasks and not (lost and self.losses[slot.tasks[0].shard.number] <= LOSSES):
            yield from self._requeue_running(slot.tasks.popleft(), error)
        self.queue.extendleft(reversed(slot.tasks))
        if self.queue:
            self._start()

    def _count_loss(self, slot: Slot) -> None:
        """A node took its actor along: no fault of the task, unless node after node does."""
        shards = [task.shard.number for task in slot.tasks]
        self.losses.update(shards[:1])
        self.job.tell("node lost", {"node": slot.node, "shards": shards})

    def _last_words(self, slot: Slot) -> Iterator[Outcome]:
        """What the actor finished before it died; the oldest task left was the one running."""
        open_calls = [call for call, (owner, _) in self.calls.items() if owner is slot]
        for call in open_calls:
            _, task = self.calls.pop(call)
            try:
                report = ray.get(call)
            except RayError:
                continue
            if task is not None:
                yield self._done(slot, task, report)

    def _requeue_running(self, task: Task, error: RayError) -> Iterator[Outcome]:
        self.crashes[task.shard.number] += 1
        count = self.crashes[task.shard.number]
        reason = str(error).strip().splitlines()[-1]
        self.job.tell("crash", {"shard": task.shard.number, "times": count, "reason": reason})
        if count >= CRASHES:
            yield Outcome(task, error=f"its worker process died {count} times: {error}")
        else:
            self.queue.appendleft(self.job.after_crash(task))

    def _count_start_failure(self, error: RayError) -> None:
        self.start_failures += 1
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        raised = isinstance(error, RayActorError) and error.actor_init_failed
        limit = START_FAILURES if raised else START_DEATHS
        if self.start_failures >= limit:
            raise UserError(
                f"A worker could not be started {limit} times in a row; the last reason: {error}"
            )


class Gauges:
    """What Ray's dashboard and Prometheus show of a run."""

    def __init__(self, resources: Resources) -> None:
        self.began = time.monotonic()
        self.examples = 0
        self._done = Total("vqatlas_examples_done", "Examples explained or evaluated.")
        self._maps = Total("vqatlas_maps_done", "Maps and word importances committed.")
        self._rate = Gauge("vqatlas_examples_per_second", "Since this driver began.")
        self._queue = Gauge("vqatlas_queue", "Shards that wait or are being worked on.")
        self._batch = Gauge("vqatlas_batch", "Images a worker sends through the trunk at once.")
        self._batch.set(resources.batch)

    def queue(self, shards: int) -> None:
        self._queue.set(shards)

    def done(self, report: Report) -> None:
        self.examples += report.examples
        if report.examples:
            self._done.inc(report.examples)
        if report.maps:
            self._maps.inc(report.maps)
        self._rate.set(self.examples / (time.monotonic() - self.began))
        if report.batch:
            self._batch.set(report.batch)


def _environment(resources: Resources) -> dict[str, str]:
    """A worker's threads, and where the driver finds modules of one's own: workers on its machine,
    or with the same folders, find them there too."""
    folders = os.pathsep.join(module_folders())
    return {"OMP_NUM_THREADS": str(resources.threads), FOLDERS: folders}


def _gpus(job: Job, resources: Resources) -> float:
    """GPUs of one worker: as asked for, or one where the cluster has any and it can be used."""
    if not job.accelerated or resources.device == "cpu":
        return 0.0
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _node_lost(error: RayError) -> bool:
    """Whether an actor died with its machine, which is no fault of what it was working on.

    A raylet that lives tells at once of a process that died. Where Ray knows no more than that the
    actor cannot be reached, machine or network is gone and the health check has yet to notice.
    """
    return isinstance(error, ActorUnavailableError) or NODE_DIED in str(error)


def _check_address(address: str) -> None:
    """Ray would wait for minutes, and say nothing, where nobody listens."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address and not answers(address):
        raise UserError(
            f"Nobody answers at resources.address={address}. It is the host and port that `ray "
            "start --head` told (6379 unless said otherwise); on a machine of the cluster `auto` "
            "finds it."
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
        _check_address(resources.address)
        ray.init(address=resources.address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
