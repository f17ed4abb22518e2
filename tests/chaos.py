"""Random kills over one run: its actors, its nodes and its driver, drawn with a seed."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline import journal
from tests.clusters import PATIENCE, Nodes, log_of, run_driver, wait_for
from workers.objects import open_objects

KINDS = {"actor": 60, "node": 20, "driver": 20}
"""What is killed, in per cent."""
PAUSES = (0, 0, 1, 2, 3)
"""Shards committed between two kills: with none, the second strikes while the first is mended."""


@dataclass
class Chaos:
    """One run and what kills it. The run goes on by the command it was begun with."""

    cluster: Nodes
    recipe: Path
    out: Path
    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    """Shards at which a killed driver's workers were."""
    since: float = 0.0
    """When this driver was started."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.driver = self._start()

    def strike(self, times: int) -> None:
        """Kill so many times; the run must not be over before."""
        strokes: dict[str, Callable[[], None]] = {
            "actor": self._kill_actor,
            "node": self._kill_node,
            "driver": self._kill_driver,
        }
        for kind in self.random.choices(list(KINDS), list(KINDS.values()), k=times):
            self._let_work(self.random.choice(PAUSES))
            strokes[kind]()
            self.killed[kind] += 1

    def finish(self) -> int:
        """The exit status of the last driver."""
        wait_for(lambda: self.driver.poll() is not None)
        assert self.driver.returncode in (0, 1), log_of(self.out).read_text()
        return self.driver.returncode

    def report(self, began: float) -> dict[str, Any]:
        """Kills by kind, what the drivers noticed, and shards begun more than once."""
        events = journal.read(open_objects(self.out), 100_000)
        told = Counter(event["event"] for event in events)
        lost = sum(bool(e["shards"]) for e in events if e["event"] == "node lost")
        return {
            "kills": dict(self.killed),
            "crashes told": told["crash"],
            "actors lost with a node": told["node lost"],
            "drivers": told["start"],
            "shards run again": told["crash"] + lost + self.cut_off,
            "seconds": round(time.monotonic() - began),
        }

    def _start(self) -> subprocess.Popen:
        self.since = time.time()
        address = f"resources.address={self.cluster.address}"
        return run_driver(self.recipe, self.out, address)

    def _let_work(self, shards: int) -> None:
        target = self._committed() + shards
        wait_for(lambda: self._committed() >= target or self.driver.poll() is not None)
        assert self.driver.poll() is None, log_of(self.out).read_text()

    def _committed(self) -> int:
        return len(list((self.out / "maps").glob("part-*")))

    def _kill_actor(self) -> None:
        """One at work if there is any, else one that starts."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            actors = wait_for(self.cluster.actors)
            try:
                working = [p for p in actors if "Actor.run" in " ".join(p.cmdline())]
                self.random.choice(working or actors).kill()
                return
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue  # its driver is gone, and so is it
        raise AssertionError("no actor to kill")

    def _kill_node(self) -> None:
        """Another node takes its place."""
        self.cluster.kill(self.random.choice(self.cluster.workers))
        self.cluster.workers.append(self.cluster.add(num_cpus=2, wait=False))

    def _kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()
        self.cut_off += self._begun()
        self.driver = self._start()

    def _begun(self) -> int:
        """Shards that this driver's workers had begun and not committed."""
        done = {path.name.split("-")[1] for path in (self.out / "maps").glob("part-*")}
        notes = (self.out / "crumbs").glob("*")
        return sum(p.name not in done and p.stat().st_mtime > self.since for p in notes)
