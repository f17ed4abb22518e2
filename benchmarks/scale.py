"""What a run's size costs the driver.

    python benchmarks/scale.py dispatch [--shards 100000] [--examples 64] [--record]

``dispatch``: shards whose work costs nothing go through two Ray actors: how many a second, and
whether the driver's memory grows. CPU seconds bear other work on the machine, the rate does not.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import psutil
from against_captum import machine, put_section

from pipeline.executors.base import Job
from pipeline.run import make_executor
from schemas.config import Resources
from schemas.example import Example
from schemas.report import Report
from schemas.shard import Shard, Task

MIB = 2**20
STEPS = 10
"""Points in time at which the driver is looked at."""


class Free:
    """A worker that does nothing."""

    def run(self, task: Task) -> Report:
        return Report(shard=task.shard.number, examples=len(task.wanted), failed=0, seconds=0.0)


@dataclass(frozen=True)
class Look:
    """The driver after so many shards."""

    shards: int
    wall: float
    cpu: float
    resident: float
    """MiB."""


def tasks(count: int, size: int) -> list[Task]:
    """Shards of the size of real ones; they share their examples, as the list lies in memory."""
    examples = tuple(
        Example(
            question_id=1_000_000 + k,
            image_id=100_000 + k // 3,
            image=f"/data/vqa/val2014/COCO_val2014_{100_000 + k // 3:012d}.jpg",
            question="What color is the umbrella behind the second man from the left?",
            answers=("yes",) * 10,
            truth="yes",
        )
        for k in range(size)
    )
    labels = ("occlusion", "saliency", "grad_cam", "word_occlusion")
    return [
        Task(shard=Shard.model_construct(number=k, capacity=size, examples=examples), labels=labels)
        for k in range(count)
    ]


def dispatch(count: int, size: int) -> Iterator[Look]:
    """The driver at the first outcome and after every tenth of the shards."""
    resources = Resources(workers=2)
    job = Job(Free, (), lambda task: task)
    process = psutil.Process()
    given = tasks(count, size)
    for done, _ in enumerate(make_executor(resources).map(job, given, resources), 1):
        if done == 1 or done % (count // STEPS) == 0:
            resident = process.memory_info().rss / MIB
            yield Look(done, time.perf_counter(), sum(process.cpu_times()[:2]), resident)


def report_dispatch(chosen: Namespace) -> tuple[str, str]:
    """Title and text of a section."""
    looks = list(dispatch(chosen.shards, chosen.examples))
    first, last = looks[0], looks[-1]
    rates = [(b.shards - a.shards) / (b.wall - a.wall) for a, b in pairwise(looks)]
    cpu = (last.cpu - first.cpu) / (last.shards - first.shards)
    resident = [look.resident for look in looks[1:]]
    title = "Shards through Ray that cost nothing"
    lines = [
        f"{chosen.shards:,} shards of {chosen.examples} examples, two actors.",
        "",
        f"- {(last.shards - first.shards) / (last.wall - first.wall):,.0f} shards a second; by "
        f"tenths of the run {min(rates):,.0f} to {max(rates):,.0f}",
        f"- {1e3 * cpu:.2f} ms of the driver's CPU a shard",
        f"- driver's resident memory: {resident[0]:.0f} MiB after a tenth, {resident[-1]:.0f} MiB "
        f"at the end, never more than {max(resident):.0f} MiB",
        f"- `python benchmarks/scale.py dispatch`; {machine()}; load {psutil.getloadavg()[0]:.1f}",
    ]
    return title, "\n".join([f"## {title}", "", *lines, ""])


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    kinds = parser.add_subparsers(required=True)
    through_ray = kinds.add_parser("dispatch")
    through_ray.add_argument("--shards", type=int, default=100_000)
    through_ray.add_argument("--examples", type=int, default=64)
    through_ray.set_defaults(report=report_dispatch)
    chosen = parser.parse_args()
    title, text = chosen.report(chosen)
    print(text)
    if chosen.record:
        put_section(title, text)


if __name__ == "__main__":
    main()
