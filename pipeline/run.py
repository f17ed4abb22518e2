"""Stage by stage: plan -> executor -> progress -> what came of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.console import console, quiet
from pipeline.dataset import Run
from pipeline.executors.base import Executor, Job, Outcome
from pipeline.executors.environment import prepare
from pipeline.executors.local import LocalExecutor
from pipeline.plan import dataset_digest, evaluation_tasks, make_plan
from pipeline.progress import meter
from pipeline.recipe import override, parse
from schemas.config import Resources, RunConfig
from schemas.rows import FailureRow
from schemas.shard import Shard, Task, partition
from workers import catalog
from workers.datasets.base import BadRecord
from workers.errors import UserError, UserInterrupt
from workers.evaluate import Evaluator
from workers.explain import Explainer
from workers.store import Store

LOG = "ray_driver.log"


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    tasks: int
    failed_examples: int
    """Examples of the whole run that have failures recorded, older ones included."""


def run(config: RunConfig, out: Path, retry_failed: bool = False) -> Result:
    """Explain everything the recipe asks for that the store at ``out`` does not hold yet."""
    plan = make_plan(config, out)
    store = Store(out)
    store.create(plan.record)
    with lock(out):
        store.define(plan.definitions)
        store.record_fidelity(plan.fidelity)
        store.recover()
        if retry_failed:
            discard_failed(store)
            plan = make_plan(config, out)
        store.record_bad([_bad_row(record) for record in plan.bad_records])
        if plan.tasks:
            console.print(plan.summary)
            for line in plan.sweeps:
                console.print(line, soft_wrap=True)
        job = Job(Explainer, (config, str(out.resolve())), partial(after_crash, store))
        _work("explain", job, plan.tasks, config, out)
    return Result(len(plan.tasks), failed_examples(out))


def evaluate(out: Path, resources: Sequence[str] = ()) -> Result:
    """Compute every metric of every committed map that has none yet."""
    config = stored_config(out, resources)
    store = Store(out)
    with lock(out):
        store.recover()
        tasks = evaluation_tasks(config, store, _shards(config, store))
        job = Job(Evaluator, (config, str(out.resolve())), lambda task: task)
        _work("evaluate", job, tasks, config, out)
    return Result(len(tasks), failed_examples(out))


def stored_config(out: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in ``run.json``, with every method and metric defined since."""
    store = Store(out)
    data = store.record().recipe
    for key, kinds in (("methods", ["image", "words"]), ("metrics", ["metric"])):
        data[key] = {
            label: {key.removesuffix("s"): definition.name, **definition.parameters}
            for label, definition in store.definitions(kinds).items()
        }
    return parse(override(data, overrides), str(out / "run.json"))


def failed_examples(out: Path) -> int:
    """Distinct examples with at least one recorded failure."""
    failures = Run(out).failures
    return int(failures.question_id.nunique(dropna=False)) if len(failures) else 0


def discard_failed(store: Store) -> int:
    """Un-commit every shard that holds a failure, so that it is computed again."""
    shards = sorted({int(s) for s in Run(store.root).failures.shard.dropna()})
    for shard in shards:
        store.discard(shard)
    return len(shards)


def after_crash(store: Store, task: Task) -> Task:
    """Leave out the image at which a task's worker process has died twice."""
    image = store.last_image(task.shard.number)
    if image is None or store.count_crash(task.shard.number, image) < 2:
        return task
    return task.model_copy(update={"skip": (*task.skip, image)})


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """One driver a run: the second is refused."""
    held = FileLock(out / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{out}: another run or evaluation is writing here. Wait for it, or stop it first."
        ) from None
    try:
        yield
    finally:
        held.release()


def _bad_row(record: BadRecord) -> FailureRow:
    return FailureRow(
        question_id=record.question_id,
        image_id=None,
        shard=None,
        stage="dataset",
        method=None,
        error="BadRecord",
        message=record.message,
        traceback="",
    )


def _shards(config: RunConfig, store: Store) -> list[Shard]:
    """The run's shards, read again from the dataset; the record tells if it has changed."""
    examples = list(catalog.dataset(config.dataset).examples())
    if dataset_digest(examples) != store.record().dataset:
        raise UserError(
            f"{store.root}: the dataset is not the one this run was made from "
            f"({config.dataset.options.get('root')}). Put the old files back."
        )
    return partition(examples, config.store.shard_size)


def _work(stage: str, job: Job, tasks: list[Task], config: RunConfig, out: Path) -> None:
    total = sum(len(task.shard.examples) for task in tasks)
    if not tasks:
        console.print(f"{stage}  nothing to do, everything is done already")
        return
    executor = make_executor(config.resources)
    with quiet(out / LOG), meter(stage, total, console) as progress:
        try:
            for outcome in executor.map(job, tasks, config.resources):
                progress.advance(*_counts(stage, outcome))
        except KeyboardInterrupt:
            raise UserInterrupt(
                f"{stage} interrupted at {progress.done:,} of {total:,} examples. Finished shards "
                "are kept: the same command goes on from there."
            ) from None


def _counts(stage: str, outcome: Outcome) -> tuple[int, int]:
    """Examples done and failed; an outcome without a report stops the stage."""
    if outcome.report is None:
        raise UserError(
            f"{stage} stopped at shard {outcome.task.shard.number}: {outcome.error}. "
            "What is committed is kept: mend the cause and run the same command again."
        )
    return outcome.report.examples, outcome.report.failed


def make_executor(resources: Resources) -> Executor:
    """``local`` runs in this process; Ray is imported only when it is asked for."""
    if resources.executor == "local":
        return LocalExecutor()
    prepare(resources.address)
    from pipeline.executors.ray import RayExecutor

    return RayExecutor()
