"""Several Ray nodes on one machine, and drivers in processes of their own.

    python -m tests.clusters stuck CONFIG OUT IMAGE

A driver whose workers hang (``stuck``) or crash (``fragile``) at one image; ``placed CONFIG LOG N``
writes down where N workers run.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import yaml

from pipeline import run as stages
from pipeline.executors.base import Job
from pipeline.executors.environment import prepare
from pipeline.recipe import read_recipe
from schemas.config import RunConfig
from schemas.example import Example
from schemas.report import Report
from schemas.shard import Shard, Task
from tests.conftest import METHODS, Recipe
from workers.explain import Explainer
from workers.store import Store

REPOSITORY = Path(__file__).parents[1]
PATIENCE = 240.0
"""Seconds after which a test gives up on what it waits for."""
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 6,
    "metrics_report_interval_ms": 500,
}
"""A node's death is noticed within seconds, and metrics are there as soon."""
WORKERS = {"executor": "ray", "workers": 2, "device": "cpu"}
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


def wait_for(condition: Callable[[], Any]) -> Any:
    """What ``condition`` gives as soon as that is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)  # what it asks costs processor time too
    return found


class Nodes:
    """A head without CPUs, to which drivers connect, and workers' nodes that come and go."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        head = {**SMALL, "num_cpus": 0, "_system_config": QUICK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.add(num_cpus=2, wait=False) for _ in range(count)]
        self.cluster.wait_for_nodes(PATIENCE)

    @property
    def address(self) -> str:
        return self.cluster.address

    @contextmanager
    def client(self, log: Path) -> Iterator[str]:
        """An address for Ray Client, whose server is a process on the head."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "ray.util.client.server", "--mode", "specific-server"]
        where = ["--address", self.address, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("w") as file:
            server = subprocess.Popen([*command, *where], stdout=file, stderr=file)
        try:
            yield f"ray://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(PATIENCE)

    def add(self, wait: bool = True, **resources: Any) -> Any:
        """A new node."""
        return self.cluster.add_node(wait=wait, **SMALL, **resources)

    def kill(self, node: Any) -> None:
        """SIGKILL to everything that makes a node."""
        self.cluster.remove_node(node, allow_graceful=False)
        if node in self.workers:
            self.workers.remove(node)

    def lose_head(self) -> None:
        """SIGKILL to the head's control service and to every worker, which nothing replaces."""
        self.cluster.head_node.kill_gcs_server(check_alive=False)
        for actor in self.actors():
            actor.kill()

    def actors(self, nodes: Sequence[Any] | None = None) -> list[psutil.Process]:
        """Processes of our actors on some nodes, on all unless said."""
        found = []
        for node in self.workers if nodes is None else nodes:
            (raylet,) = node.all_processes["raylet"]
            if psutil.pid_exists(raylet.process.pid):
                children = psutil.Process(raylet.process.pid).children()
                found += [p for p in children if _title(p).startswith("ray::Actor")]
        return found

    def metrics(self) -> str:
        """What Prometheus would read from the head."""
        import requests

        (port,) = (
            node["MetricsExportPort"]
            for node in self.cluster.global_state.node_table()
            if node["NodeID"] == self.cluster.head_node.node_id
        )
        try:
            return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        except requests.ConnectionError:
            return ""


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """A cluster with a home, a token and a temporary folder of its own."""
    prepare(address=None)
    # Ray's sockets lie in the temporary folder, and a socket's path has at most 107 characters
    with (
        TemporaryDirectory(prefix="vq", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HOME", folder)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "token")
        cluster = Nodes(count)
        try:
            yield cluster
        finally:
            cluster.cluster.shutdown()


def recipe_file(config: RunConfig, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def start(*arguments: object, log: Path) -> subprocess.Popen:
    """A Python process at the repository's root; what it says goes to a file."""
    command = [sys.executable, *map(str, arguments)]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)


def run_driver(recipe: Path, out: Path, *overrides: str) -> subprocess.Popen:
    """``run_pipeline.py run``, its output in a file beside the run."""
    sets = [word for override in overrides for word in ("--set", override)]
    return start("run_pipeline.py", "run", recipe, "--out", out, *sets, log=log_of(out))


def log_of(out: Path) -> Path:
    return out.with_suffix(".log")


def lasting(recipe: Recipe, executor: str = "ray") -> RunConfig:
    """A recipe with something left to do once its first shard is committed."""
    methods = {**METHODS, "occlusion": {"grid": 16}}
    resources = {**WORKERS, "executor": executor, "engine": "plain"}
    return recipe(methods=methods, store={"shard_size": 3}, resources=resources)


def fragments(out: Path) -> set[str]:
    return {path.name for path in (out / "maps").glob("part-*.parquet")}


def end(driver: subprocess.Popen, out: Path) -> int:
    """The exit status of a run that came to its end."""
    wait_for(lambda: driver.poll() is not None)
    assert driver.returncode in (0, 1), log_of(out).read_text()
    return driver.returncode


class Stuck(Explainer):
    """An explainer that never comes back from one image."""

    def __init__(self, config: RunConfig, root: str, image_id: int) -> None:
        super().__init__(config, root)
        self.fatal = image_id

    def _prepare(self, task, image_id, example):  # type: ignore[no-untyped-def]
        if image_id == self.fatal and image_id not in task.skip:
            self.befall()
        return super()._prepare(task, image_id, example)

    def befall(self) -> None:
        time.sleep(24 * 3600)


class Fragile(Stuck):
    """An explainer whose process dies at one image, as a segmentation fault would."""

    def befall(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Placed:
    """Writes down where it runs; its tasks wait until enough of its kind do."""

    def __init__(self, log: Path, enough: int) -> None:
        import ray

        self.log, self.enough = log, enough
        context = ray.get_runtime_context()
        gpus = ",".join(context.get_accelerator_ids().get("GPU", []))
        with log.open("a") as file:
            file.write(f"{context.get_node_id()} {gpus or '-'}\n")

    def run(self, task: Task) -> Report:
        wait_for(lambda: len(self.log.read_text().splitlines()) >= self.enough)
        return Report(shard=task.shard.number, examples=1, failed=0, seconds=0.0)


def tasks(count: int) -> list[Task]:
    """Tasks of one example each, without an image."""
    examples = [Example(question_id=k, image_id=k, image="x", question="q") for k in range(count)]
    return [
        Task(shard=Shard(number=e.question_id, capacity=1, examples=(e,)), labels=("m",))
        for e in examples
    ]


def _drive(worker: type[Stuck], config: RunConfig, out: Path, image_id: int) -> None:
    """What ``run`` does, with another worker."""
    plan = stages.make_plan(config, out)
    store = Store(out)
    store.create(plan.record)
    stages.check_images(store, plan.layout)
    with stages.drive(store) as driver:
        store.define(plan.definitions)
        job = stages.explain_job(config, driver)
        job = replace(job, worker=worker, arguments=(*job.arguments, image_id))
        driver.work("explain", job, plan.tasks, config)


def _place(config: RunConfig, log: Path, enough: int, accelerated: bool) -> None:
    job = Job(Placed, (log, enough), lambda task: task, accelerated=accelerated)
    executor = stages.make_executor(config.resources)
    done = list(executor.map(job, tasks(8), config.resources))
    assert all(outcome.report is not None for outcome in done)


def main() -> None:
    from tests import clusters as own  # Ray pickles a class by the module's name, not __main__

    kind, recipe, where, number = sys.argv[1:]
    config = read_recipe(Path(recipe), [])
    if kind in {"placed", "evaluating"}:
        own._place(config, Path(where), int(number), accelerated=kind == "placed")
    else:
        own._drive(
            {"stuck": own.Stuck, "fragile": own.Fragile}[kind], config, Path(where), int(number)
        )


if __name__ == "__main__":
    main()
