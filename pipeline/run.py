"""Stage by stage: plan -> executor -> progress -> what came of it."""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checks import costs, subject
from pipeline.console import console, quiet
from pipeline.dataset import Root, Run
from pipeline.executors.base import Executor, Job, Outcome
from pipeline.executors.environment import prepare
from pipeline.executors.local import LocalExecutor
from pipeline.journal import Journal
from pipeline.parts import Layout, check_images, image_digests, lay_out
from pipeline.plan import (
    Plan,
    evaluation_tasks,
    make_plan,
    metric_definitions,
    retry_tasks,
    uncollected,
)
from pipeline.progress import meter
from pipeline.recipe import MOVABLE, allowed, override, parse
from schemas.config import Resources, RunConfig
from schemas.report import Report
from schemas.rows import FailureRow
from schemas.shard import Shard, Task
from workers import catalog
from workers.compact import compact as compact_tables
from workers.compact import recompact
from workers.crashes import Crashes
from workers.damage import drop_damaged
from workers.datasets.base import BadRecord
from workers.errors import UserError, UserInterrupt
from workers.evaluate import Evaluator
from workers.explain import Explainer
from workers.lease import Lease
from workers.objects import OUTAGE, told
from workers.store import Store


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    tasks: int
    failed_examples: int
    """Examples of the whole run that have failures recorded, older ones included."""


@dataclass(frozen=True)
class Driver:
    """A run, held by this process."""

    store: Store
    lease: Lease
    journal: Journal

    def work(self, stage: str, job: Job, tasks: Sequence[Task], config: RunConfig) -> None:
        """Every task through the executor, with progress; stops at what no retry would mend."""
        total = sum(len(task.wanted) for task in tasks)
        if not tasks:
            console.print(f"{stage}  nothing to do, everything is done already")
            return
        self.journal.tell("start", {"stage": stage, "shards": len(tasks), "examples": total})
        given = [task.model_copy(update={"driver": self.lease.number}) for task in tasks]
        with (
            quiet(ray_log(self.store)),
            meter(stage, total, console) as progress,
            self._interruptible(stage, total, progress),
        ):
            executor = make_executor(config.resources)
            for outcome in executor.map(job, given, config.resources):
                self.lease.check()
                report = _reported(stage, outcome)
                fields = {"stage": stage, **report.model_dump()}
                self.journal.tell("shard", fields, urgent=False)
                progress.advance(report.examples, report.failed)
        self.store.recover()
        self.journal.tell("end", {"stage": stage, "examples": progress.done})

    def settle(self) -> None:
        """Compact what was compacted and has been computed again."""
        if merged := recompact(self.store):
            self.journal.tell("compacted", merged)
            console.print("what was compacted and has been computed again is compacted again")

    @contextmanager
    def _interruptible(self, stage: str, total: int, progress: Any) -> Iterator[None]:
        kept = "Finished shards are kept: the same command goes on from there."
        try:
            yield
        except KeyboardInterrupt:
            self.journal.tell("interrupted", {"stage": stage, "examples": progress.done})
            raise UserInterrupt(
                f"{stage} interrupted at {progress.done:,} of {total:,} examples. {kept}"
            ) from None
        except UserError as error:
            self.journal.tell("stopped", {"stage": stage, "reason": str(error)})
            raise
        except OUTAGE as error:
            raise UserError(f"{stage} stopped: {told(error)}. Mend the cause. {kept}") from error


@contextmanager
def drive(store: Store) -> Iterator[Driver]:
    """Hold the run: one driver at a time. What an earlier one left half done is finished first."""
    with Lease(store.objects, " ".join(sys.argv)[:200]) as lease:
        journal = Journal(store.objects, lease.number)
        store.recover()
        yield Driver(store, lease, journal)
        journal.flush()


def run(config: RunConfig, out: Root, retry_failed: bool = False) -> Result:
    """Explain everything the recipe asks for that the store at ``out`` does not hold yet."""
    plan = make_plan(config, out)
    store = Store(out)
    store.create(plan.record)
    images = check_images(store, plan.layout)
    with drive(store) as driver:
        if plan.layout.grown is not None:
            store.grow(plan.layout.grown)
        store.accept_images(images)
        store.define(plan.definitions)
        store.record_fidelity(plan.fidelity)
        store.record_bad([_bad_row(record) for record in plan.bad_records])
        if plan.tasks:
            console.print(plan.summary)
            for line in plan.sweeps:
                console.print(line, soft_wrap=True)
        driver.work("explain", explain_job(config, driver), plan.tasks, config)
        again = _retry_all(driver, plan) if retry_failed else 0
        driver.settle()
    return Result(len(plan.tasks) + again, Run(out).failed_examples)


def retry(out: Root, overrides: Sequence[str] = (), whole: Collection[int] = ()) -> Result:
    """Explain every failed example again, and all examples of the shards in ``whole``."""
    config = stored_config(out, allowed(overrides, MOVABLE, "retry"))
    store = Store(out)
    with drive(store) as driver:
        layout = stored_layout(config, store)
        tasks = _retry(driver, config, layout.shards, whole)
        store.accept_images(image_digests(store, layout))
        driver.settle()
    return Result(tasks, Run(out).failed_examples)


def _retry_all(driver: Driver, plan: Plan) -> int:
    """Of all that the run holds, which may be more methods or examples than the recipe has."""
    own = {key: getattr(plan.config, key) for key in ("model", "resources", "limits")}
    whole, shards = stored_config(driver.store.root).model_copy(update=own), plan.shards
    if len(shards) < driver.store.shards:
        shards = stored_layout(whole, driver.store).shards
    else:  # its files may lie elsewhere now
        whole = whole.model_copy(update={"dataset": plan.config.dataset})
    return _retry(driver, whole, shards, ())


def _retry(
    driver: Driver, config: RunConfig, shards: Sequence[Shard], whole: Collection[int]
) -> int:
    store = driver.store
    for key in drop_damaged(store, whole) if whole else ():
        console.print(f"{key} cannot be read; what was in it is computed again", soft_wrap=True)
    tasks = retry_tasks(store, shards, whole)
    for task in tasks:
        Crashes(store.objects).forgive(task.shard.number)
    failures = Run(store.root).failures
    for shard in failures[failures.stage == "evaluate"].shard.unique():
        store.mark_stale(int(shard))
    driver.work("retry", explain_job(config, driver), tasks, config)
    return len(tasks)


def compact(out: Root) -> dict[str, int]:
    """Merge the index's fragments; table -> fragments merged."""
    store = Store(out)
    store.record()
    with drive(store) as driver:
        store.drop_staged(driver.lease.holder.since)
        merged = compact_tables(store)
        driver.journal.tell("compacted", merged)
    return merged


def explain_job(config: RunConfig, driver: Driver) -> Job:
    """Explainers of a run, and what to do when one dies."""
    return Job(
        worker=Explainer,
        arguments=(config, driver.store.root_anywhere),
        after_crash=partial(after_crash, Crashes(driver.store.objects)),
        tell=driver.journal.tell,
    )


def evaluate(out: Root, overrides: Sequence[str] = ()) -> Result:
    """Compute every metric of every committed map that has none yet."""
    config = stored_config(out, allowed(overrides, (*MOVABLE, "metrics"), "evaluate"))
    store = Store(out)
    model = subject(config, store.record())
    with drive(store) as driver:
        store.define(metric_definitions(config))
        stale = store.stale()
        layout = stored_layout(config, store)
        check_images(store, layout)
        tasks = evaluation_tasks(config, store, layout.shards, model)
        expected = costs(config, model, tasks)
        for cost in expected:
            console.print(str(cost), soft_wrap=True)
        driver.work("evaluate", evaluate_job(config, driver, bool(expected)), tasks, config)
        for shard in stale:
            store.evaluated(shard)
        driver.settle()
    return Result(len(tasks), Run(out).failed_examples)


def evaluate_job(config: RunConfig, driver: Driver, accelerated: bool) -> Job:
    """Evaluators of a run; only metrics that ask the model can use a GPU."""
    return Job(
        worker=Evaluator,
        arguments=(config, driver.store.root_anywhere),
        after_crash=lambda task: task,
        tell=driver.journal.tell,
        accelerated=accelerated,
    )


def stored_config(out: Root, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in ``run.json``, with all parts, methods and metrics since."""
    store = Store(out)
    data = store.record().recipe
    data["dataset"] = store.parts()[-1].recipe
    for key, kinds in (("methods", ["image", "words"]), ("metrics", ["metric"])):
        data[key] = {
            label: {key.removesuffix("s"): definition.name, **definition.parameters}
            for label, definition in store.definitions(kinds).items()
        }
    return parse(override(data, overrides), f"{out}/run.json")


def after_crash(crashes: Crashes, task: Task) -> Task:
    """Leave out the image at which a task's worker process has died twice."""
    shard = task.shard.number
    image = crashes.last_image(shard)
    if image is not None:
        crashes.count(shard, image)
    fatal = crashes.quarantine().get(shard, ())
    return task.model_copy(update={"skip": fatal})


def ray_log(store: Store) -> Path:
    """Where Ray's own lines go: into the run's folder, or for a bucket into the working folder."""
    local = store.objects.local
    return Path("ray_driver.log") if local is None else local / "ray_driver.log"


def _bad_row(record: BadRecord) -> FailureRow:
    return FailureRow(
        question_id=record.question_id,
        image_id=None,
        shard=None,
        round=None,
        stage="dataset",
        method=None,
        error="BadRecord",
        message=record.message,
        traceback="",
    )


@uncollected()
def stored_layout(config: RunConfig, store: Store) -> Layout:
    """The run's examples and shards, read again from the dataset, which must be the same."""
    examples = list(catalog.dataset(config.dataset).examples())
    layout = lay_out(config, examples, store)
    if layout.grown is not None or layout.first.dataset != store.record().dataset:
        raise UserError(
            f"{store.root}: the dataset is not the one this run was made from "
            f"({config.dataset.options.get('root')}). Put the old files back."
        )
    return layout


def _reported(stage: str, outcome: Outcome) -> Report:
    """The report of a task; an outcome without one stops the stage."""
    if outcome.report is None:
        raise UserError(
            f"{stage} stopped at shard {outcome.task.shard.number}: {outcome.error}. "
            "What is committed is kept: mend the cause and run the same command again."
        )
    return outcome.report


def make_executor(resources: Resources) -> Executor:
    """``local`` runs in this process; Ray is imported only when it is asked for."""
    if resources.executor == "local":
        return LocalExecutor()
    prepare(resources.address)
    from pipeline.executors.ray import RayExecutor

    return RayExecutor()
