"""The serial executor: one worker in this process, tasks in order. It defines the meaning."""

from collections.abc import Iterator, Sequence

from pipeline.executors.base import Executor, Job, Outcome
from schemas.config import Resources
from schemas.shard import Task


class LocalExecutor(Executor):
    """No processes, no Ray; an error of the machine (disk full) ends the run at once."""

    def map(self, job: Job, tasks: Sequence[Task], resources: Resources) -> Iterator[Outcome]:
        worker = job.worker(*job.arguments) if tasks else None
        for task in tasks:
            assert worker is not None
            yield Outcome(task, report=worker.run(task))
