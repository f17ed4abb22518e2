"""Two workers against one: occlusion of the embedded world's scenes, each worker with one thread.

    python benchmarks/two_workers.py [--pairs 12] [--seconds 8] [--engine auto] [--record]

One run with two workers, of which one is stopped (SIGSTOP) in every other phase of some seconds, so
that what a machine's own speed does from minute to minute falls on both alike. A phase's rate is
the examples done in it by the runs' own timings; a shard that lies in two phases counts by the
worker's CPU seconds in each. It counts only on a machine with two idle cores.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import yaml
from against_captum import machine, put_section

from pipeline.dataset import Run
from pipeline.recipe import read_recipe
from workers import catalog
from workers.store import Store

COMMAND = Path(__file__).parents[1] / "run_pipeline.py"
LOOK = 0.5
"""Seconds between two looks at the workers' clocks."""
FAST = 40
"""Examples a second that no two workers exceed here: for that many there are scenes."""
Clock = list[tuple[float, float]]
"""Time and CPU seconds of a worker."""


class Phase(NamedTuple):
    """Seconds since 1970."""

    begin: float
    end: float


def recipe(folder: Path, scenes: int, engine: str) -> Path:
    """A recipe file, its scenes drawn."""
    path = folder / "recipe.yaml"
    data = {
        "dataset": {"name": "shapes", "root": str(folder / "world"), "scenes": scenes},
        "model": "demo",
        "methods": ["occlusion"],
        "store": {"shard_size": 12},
        "resources": {"threads": 1, "workers": 2, "device": "cpu", "engine": engine},
    }
    path.write_text(yaml.safe_dump(data))
    list(catalog.dataset(read_recipe(path).dataset).examples())
    return path


@contextmanager
def running(path: Path, out: Path) -> Iterator[subprocess.Popen]:
    """A run at work, which is interrupted at the end."""
    command = [sys.executable, str(COMMAND), "run", str(path), "--out", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield run
        if run.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended early with {run.returncode}")
    finally:
        run.send_signal(signal.SIGINT)
        run.wait()


def at_work(run: subprocess.Popen, out: Path) -> list[psutil.Process]:
    """Both workers, as soon as each has finished a shard."""
    while run.poll() is None:
        time.sleep(LOOK)
        pids = set(Run(out).timings.pid) if Store(out).exists else set()
        if len(pids) == 2:
            return [psutil.Process(pid) for pid in sorted(pids)]
    raise SystemExit(f"the run ended with {run.returncode} before two workers were at work")


def phase(
    workers: Sequence[psutil.Process], active: Sequence[int], seconds: float, clocks: list[Clock]
) -> Phase:
    """Some seconds with only the active ones at work."""
    idle = [worker for k, worker in enumerate(workers) if k not in active]
    for worker in idle:
        worker.suspend()
    try:
        look(workers, clocks)
        begin = time.time()
        while time.time() < begin + seconds:
            time.sleep(LOOK)
            look(workers, clocks)
    finally:
        for worker in idle:
            worker.resume()
    return Phase(begin, clocks[0][-1][0])


def look(workers: Sequence[psutil.Process], clocks: list[Clock]) -> None:
    for worker, clock in zip(workers, clocks, strict=True):
        clock.append((time.time(), sum(worker.cpu_times()[:2])))


def rate(of: Phase, shards: pd.DataFrame, clocks: dict[int, Clock]) -> float:
    """Examples a second, all workers together."""
    done = 0.0
    for pid, rows in shards.groupby("pid"):
        times, spent = zip(*clocks[pid], strict=True)
        first, last = np.interp([of.begin, of.end], times, spent)
        begin = np.interp(rows.started, times, spent)
        end = np.interp(rows.started + rows.seconds, times, spent)
        inside = np.clip(np.minimum(end, last) - np.maximum(begin, first), 0, None)
        done += (rows.examples * inside / np.maximum(end - begin, 1e-9)).sum()
    return done / (of.end - of.begin)


def measure(path: Path, out: Path, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """Rates by one worker and by two, for each pair of phases."""
    with running(path, out) as run:
        workers = at_work(run, out)
        clocks: list[Clock] = [[], []]
        found = [
            (phase(workers, [k % 2], seconds, clocks), phase(workers, [0, 1], seconds, clocks))
            for k in range(pairs)
        ]
        time.sleep(2 * LOOK + seconds)  # what is at work when the last phase ends is committed
    known = {worker.pid: clock for worker, clock in zip(workers, clocks, strict=True)}
    shards = Run(out).timings.query("stage == 'explain'")
    return [(rate(one, shards, known), rate(two, shards, known)) for one, two in found]


def report(rates: list[tuple[float, float]], seconds: float, engine: str) -> tuple[str, str]:
    title = "Two workers against one"
    one, two = (statistics.median(column) for column in zip(*rates, strict=True))
    ratios = sorted(b / a for a, b in rates)
    low, _, high = statistics.quantiles(ratios, n=4)
    lines = [
        f"Occlusion of scenes of the embedded world, one thread a worker, engine {engine}; "
        f"{len(rates)} times {seconds:g} seconds with one worker and {seconds:g} with two.",
        "",
        f"- examples a second: {one:.1f} and {two:.1f} (medians)",
        f"- ratio: **{statistics.median(ratios):.2f}** (median; half of the pairs from {low:.2f} "
        f"to {high:.2f}, all from {ratios[0]:.2f} to {ratios[-1]:.2f}); all pairs together "
        f"{sum(b for _, b in rates) / sum(a for a, _ in rates):.2f}",
        f"- `python benchmarks/two_workers.py`; {machine()}; load {os.getloadavg()[0]:.1f}",
    ]
    return title, "\n".join([f"## {title}", "", *lines, ""])


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8, help="a phase")
    parser.add_argument("--engine", default="auto", choices=("auto", "incremental", "plain"))
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = int(2 * (chosen.pairs + 2) * chosen.seconds * FAST / 3)
        path = recipe(Path(folder), scenes, chosen.engine)
        rates = measure(path, Path(folder) / "run", chosen.pairs, chosen.seconds)
    title, text = report(rates, chosen.seconds, chosen.engine)
    print(text)
    if chosen.record:
        put_section(title, text)


if __name__ == "__main__":
    main()
