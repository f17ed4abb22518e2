"""Faults, with the number of attempts each costs. The workers here are real Ray actors."""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.executors.base import Executor, Job, Outcome
from pipeline.executors.local import LocalExecutor
from pipeline.run import after_crash, make_executor
from schemas.config import Resources, RunConfig
from schemas.example import Example
from schemas.shard import Shard, Task
from tests.conftest import Recipe
from tests.own import classes
from tests.recorder import Recorder, starts
from workers.crashes import Crashes
from workers.errors import UserError
from workers.explain import Explainer
from workers.store import Store


def tasks(count: int) -> list[Task]:
    def shard(number: int) -> Shard:
        example = Example(question_id=number, image_id=number, image="x", question="q")
        return Shard(number=number, capacity=1, examples=(example,))

    return [Task(shard=shard(number), labels=("m",)) for number in range(count)]


def outcomes(executor: Executor, log: Path, fault: str = "none", count: int = 12) -> list[Outcome]:
    log.touch()
    job = Job(Recorder, (log, fault), lambda task: task)
    return list(executor.map(job, tasks(count), Resources(workers=2)))


@pytest.mark.parametrize("name", ["local", "ray"])
def test_executor_without_faults_does_every_task_once(
    name: str, tmp_path: Path, ray_cluster: None
) -> None:
    done = outcomes(make_executor(Resources(executor=name)), tmp_path / "log")
    assert sorted(o.task.shard.number for o in done) == list(range(12))
    assert all(o.report is not None for o in done)
    assert starts(tmp_path / "log") == dict.fromkeys(range(12), 1)


def test_ray_worker_killed_once_costs_one_attempt(tmp_path: Path, ray_cluster: None) -> None:
    done = outcomes(make_executor(Resources(executor="ray")), tmp_path / "log", "dies once")
    assert sorted(o.task.shard.number for o in done) == list(range(12))
    assert all(o.report is not None for o in done)
    assert starts(tmp_path / "log") == {**dict.fromkeys(range(12), 1), 3: 2}


def test_ray_task_that_always_kills_its_worker_is_given_up(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.executors.ray.CRASHES", 3)
    done = outcomes(make_executor(Resources(executor="ray")), tmp_path / "log", "dies always")
    (lost,) = [o for o in done if o.report is None]
    assert lost.task.shard.number == 3
    assert "died 3 times" in str(lost.error)
    assert len(done) == 12
    assert starts(tmp_path / "log") == {**dict.fromkeys(range(12), 1), 3: 3}


def test_ray_task_that_raises_is_an_outcome_with_its_reason(
    tmp_path: Path, ray_cluster: None
) -> None:
    done = outcomes(make_executor(Resources(executor="ray")), tmp_path / "log", "raises")
    assert {o.task.shard.number: o.error for o in done if o.error} == {3: "No space left on device"}


def test_local_task_that_raises_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        outcomes(LocalExecutor(), tmp_path / "log", "raises")


def test_ray_worker_that_never_starts_ends_the_run_with_the_reason(
    tmp_path: Path, ray_cluster: None
) -> None:
    with pytest.raises(UserError, match=r"3 times in a row(.|\n)*weights.safetensors: no such"):
        outcomes(make_executor(Resources(executor="ray")), tmp_path / "log", "start")


def test_ray_worker_refusing_its_recipe_ends_the_run_at_once(
    tmp_path: Path, ray_cluster: None
) -> None:
    with pytest.raises(UserError, match=r"weights\.safetensors: not a checkpoint"):
        outcomes(make_executor(Resources(executor="ray")), tmp_path / "log", "user error")


class Fragile(Explainer):
    """An explainer whose process dies at one image, as a segmentation fault would."""

    def __init__(self, config: RunConfig, root: str, image_id: int) -> None:
        super().__init__(config, root)
        self.fatal = image_id

    def _prepare(self, task, image_id, example):  # type: ignore[no-untyped-def]
        if image_id == self.fatal and image_id not in task.skip:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super()._prepare(task, image_id, example)


def test_image_that_kills_its_worker_twice_becomes_a_failure(
    recipe: Recipe, tmp_path: Path, ray_cluster: None
) -> None:
    """Its shard's other images are explained, and the crash is a row."""
    config = recipe(methods={"attention": {}}, resources={"executor": "ray", "workers": 2})
    out = tmp_path / "run"
    plan = stages.make_plan(config, out)
    store = Store(out)
    store.create(plan.record)
    store.define(plan.definitions)
    fatal = plan.shards[1].examples[0].image_id
    job = Job(Fragile, (config, str(out), fatal), partial(after_crash, Crashes(store.objects)))
    done = list(make_executor(Resources(executor="ray")).map(job, plan.tasks, config.resources))
    assert all(outcome.report is not None for outcome in done)
    run = Run(out)
    assert set(run.failures.image_id) == {fatal}
    assert run.failures.message.unique().tolist() == [
        f"image {fatal}: the worker process died twice at this image"
    ]
    explained = run.maps[(run.maps.status != "failed")]
    assert explained.question_id.nunique() == 24 - 3


def test_workers_of_a_cluster_find_the_module_of_the_drivers_folder(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    source = Path(classes.__file__)
    (tmp_path / "their_package").mkdir()
    shutil.copy(source, tmp_path / "their_package" / "their_model.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = recipe(
        model={"name": "python", "target": "their_package.their_model:Least"},
        methods={"occlusion": {"grid": 2}},
        resources={"executor": "ray", "workers": 1},
    )
    assert stages.run(config, tmp_path / "run").failed_examples == 0
