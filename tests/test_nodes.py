"""Runs on several nodes: real raylets on this machine, drivers in processes of their own."""

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import journal
from pipeline import run as stages
from pipeline.dataset import Run
from schemas.config import RunConfig
from tests import clusters
from tests.clusters import (
    WORKERS,
    Nodes,
    end,
    fragments,
    lasting,
    log_of,
    run_driver,
    start,
    wait_for,
)
from tests.conftest import Recipe
from tests.runs import assert_same_run
from workers.crashes import Crashes
from workers.objects import open_objects

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with clusters.nodes(2) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes") / "reference"


@pytest.fixture
def undisturbed(reference: Path, recipe: Recipe) -> Path:
    """The same examples by one process."""
    if not reference.exists():
        stages.run(lasting(recipe, "local"), reference)
    return reference


def events(out: Path) -> Counter[str]:
    return Counter(event["event"] for event in journal.read(open_objects(out), 10_000))


def test_driver_elsewhere_runs_through_ray_client(
    cluster: Nodes, recipe: Recipe, tmp_path: Path
) -> None:
    plainly = {**WORKERS, "engine": "plain"}
    stages.run(recipe(resources={**plainly, "executor": "local"}), tmp_path / "alone")
    file = clusters.recipe_file(recipe(resources=plainly), tmp_path)
    with cluster.client(tmp_path / "client.log") as address:
        driver = run_driver(file, tmp_path / "run", f"resources.address={address}")
        assert end(driver, tmp_path / "run") == 0
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_node_lost_in_mid_run_loses_nothing_and_counts_no_crash(
    cluster: Nodes, recipe: Recipe, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    file = clusters.recipe_file(lasting(recipe), tmp_path)
    driver = run_driver(file, out, f"resources.address={cluster.address}")
    wait_for(lambda: fragments(out) or driver.poll() is not None)
    node = next(node for node in cluster.workers if cluster.actors([node]))
    cluster.kill(node)
    assert len(fragments(out)) < 8
    cluster.workers.append(cluster.add(num_cpus=2, wait=False))
    assert end(driver, out) == 0
    assert events(out)["node lost"] > 0
    assert events(out)["crash"] == 0
    assert_same_run(undisturbed, out)


def test_actor_killed_in_mid_run_costs_one_attempt(
    cluster: Nodes, recipe: Recipe, undisturbed: Path, tmp_path: Path
) -> None:
    """Ray finds the cluster by itself."""
    out = tmp_path / "run"
    file = clusters.recipe_file(lasting(recipe), tmp_path)
    driver = run_driver(file, out, "resources.address=auto")
    wait_for(lambda: fragments(out) or driver.poll() is not None)
    cluster.actors()[0].kill()
    assert end(driver, out) == 0
    assert events(out)["crash"] == 1
    assert events(out)["node lost"] == 0
    assert_same_run(undisturbed, out)


def test_driver_killed_and_started_again_loses_nothing(
    cluster: Nodes, recipe: Recipe, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    file = clusters.recipe_file(lasting(recipe), tmp_path)
    command = (file, out, f"resources.address={cluster.address}")
    driver = run_driver(*command)
    wait_for(lambda: fragments(out) or driver.poll() is not None)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    wait_for(lambda: not cluster.actors())
    committed = fragments(out)
    assert 0 < len(committed) < 8
    assert end(run_driver(*command), out) == 0
    assert committed < fragments(out)
    assert_same_run(undisturbed, out)


# --- examples that hang, or kill their process ---------------------------------------------------


METRICS = ("examples_done", "maps_done", "examples_per_second", "queue", "batch")


@dataclass(frozen=True)
class Hung:
    """A run with an image at which every worker hangs, and what was seen meanwhile."""

    out: Path
    image: int
    pid: int
    metrics: str
    second: Path
    """Output of a second driver."""
    second_status: int


def modest(recipe: Recipe, cluster: Nodes, **resources: object) -> RunConfig:
    """Two images a shard, a method that costs nothing."""
    where = {**WORKERS, "address": cluster.address, **resources}
    return recipe(methods={"attention": {}}, store={"shard_size": 6}, resources=where)


def second_image(config: RunConfig) -> int:
    """Of a shard: the one before it is explained, and those of other shards."""
    return stages.make_plan(config, None).shards[1].examples[-1].image_id


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hung]:
    """The run of ``hung``, once it was made."""
    return {}


@pytest.fixture
def hung(
    seen: dict[str, Hung], cluster: Nodes, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Hung:
    if not seen:
        seen["run"] = _hang(cluster, recipe, tmp_path_factory.mktemp("hung"))
    return seen["run"]


def _hang(cluster: Nodes, recipe: Recipe, folder: Path) -> Hung:
    config = modest(recipe, cluster, deadline=5)
    out, image = folder / "run", second_image(config)
    file = clusters.recipe_file(config, folder)
    driver = start("-m", "tests.clusters", "stuck", file, out, image, log=log_of(out))
    wait_for(lambda: list((out / "drivers").glob("*")) or driver.poll() is not None)
    said = folder / "second.log"
    second = start("run_pipeline.py", "run", file, "--out", out, log=said)
    read = ""
    while driver.poll() is None and not all(f"vqatlas_{name}" in read for name in METRICS):
        read = cluster.metrics()
    status = wait_for(lambda: second.poll() is not None and second.returncode)
    wait_for(lambda: driver.poll() is not None)
    assert driver.returncode == 0, log_of(out).read_text()
    return Hung(out, image, driver.pid, read, said, status)


def test_hung_example_becomes_a_failure_and_its_neighbours_are_explained(hung: Hung) -> None:
    run = Run(hung.out)
    assert set(run.failures.image_id) == {hung.image}
    assert run.failures.message.unique().tolist() == [
        f"image {hung.image}: the worker process died twice at this image"
    ]
    explained = run.maps[run.maps.status != "failed"]
    assert explained.question_id.nunique() == 24 - 3
    assert events(hung.out)["deadline"] == 3  # at the shard, then twice at the image
    assert events(hung.out)["crash"] == 3


def test_second_driver_is_refused_and_told_of_the_first(hung: Hung) -> None:
    assert hung.second_status == 2
    assert f"process {hung.pid}," in hung.second.read_text()


@pytest.mark.parametrize("name", METRICS)
def test_prometheus_reads_a_run(hung: Hung, name: str) -> None:
    lines = [line for line in hung.metrics.splitlines() if f"vqatlas_{name}" in line]
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")]
    assert values
    assert all(value > 0 for value in values)


def test_image_that_killed_its_workers_stays_out_for_the_next_driver(
    cluster: Nodes, recipe: Recipe, tmp_path: Path
) -> None:
    """The first driver dies before the shard is committed without the image."""
    config = modest(recipe, cluster)
    out, image = tmp_path / "run", second_image(config)
    file = clusters.recipe_file(config, tmp_path)
    first = start("-m", "tests.clusters", "fragile", file, out, image, log=log_of(out))
    crashes = Crashes(open_objects(out))
    wait_for(lambda: crashes.quarantine() or first.poll() is not None)
    first.kill()
    first.wait()
    assert crashes.quarantine() == {1: (image,)}
    before = events(out)["crash"]
    assert end(run_driver(file, out), out) == 1
    assert events(out)["crash"] == before
    assert set(Run(out).failures.image_id) == {image}
    assert Run(out).maps.question_id.nunique() == 24


# --- GPUs, which Ray counts and hands out without looking for them -------------------------------


@pytest.fixture(scope="module")
def gpu_node(cluster: Nodes) -> Iterator[str]:
    """A node with two GPUs and CPUs enough for everything."""
    node = cluster.add(num_cpus=8, num_gpus=2)
    yield node.node_id
    cluster.kill(node)


def placed(cluster: Nodes, recipe: Recipe, folder: Path, kind: str, **how: object) -> list[str]:
    """Where workers ran: ``node GPUs``. Their tasks wait for ``enough`` of them."""
    enough = how.pop("enough")
    resources = {"executor": "ray", "workers": 3, "address": cluster.address, **how}
    file = clusters.recipe_file(recipe(resources=resources), folder)
    log = folder / "log"
    log.touch()
    probe = start("-m", "tests.clusters", kind, file, log, enough, log=log_of(log))
    wait_for(lambda: probe.poll() is not None)
    assert probe.returncode == 0, log_of(log).read_text()
    return sorted(log.read_text().splitlines())


def test_workers_take_a_gpu_each(
    cluster: Nodes, gpu_node: str, recipe: Recipe, tmp_path: Path
) -> None:
    where = placed(cluster, recipe, tmp_path, "placed", enough=2)
    assert where == [f"{gpu_node} 0", f"{gpu_node} 1"]  # and the third waits


def test_workers_share_gpus_by_fractions(
    cluster: Nodes, gpu_node: str, recipe: Recipe, tmp_path: Path
) -> None:
    where = placed(cluster, recipe, tmp_path, "placed", enough=3, gpus_per_worker=0.5)
    assert where == [f"{gpu_node} {gpu}" for gpu in (0, 0, 1)]


def test_evaluation_leaves_gpu_nodes_alone(
    cluster: Nodes, gpu_node: str, recipe: Recipe, tmp_path: Path
) -> None:
    where = placed(cluster, recipe, tmp_path, "evaluating", enough=1, workers=1)
    ((node, gpus),) = map(str.split, where)
    assert (node != gpu_node, gpus) == (True, "-")
