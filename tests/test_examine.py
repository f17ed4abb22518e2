"""Runs whose metrics ask the model: shards, workers, batches, kills, growth, failures."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.plan import make_plan
from pipeline.recipe import parse
from pipeline.verify import verify
from tests.conftest import Recipe
from workers.errors import UserError
from workers.models.base import VQAModel

REPOSITORY = Path(__file__).parents[1]
METHODS = {"occlusion": {"grid": 2}, "saliency": {}, "grad_cam": {}, "attention": {}}
PLAIN = {"executor": "local", "engine": "plain"}
METRICS = {
    "sparsity": {},
    "localisation": {},
    "deletion_insertion": {"grid": 4, "steps": 4, "draws": 2},
    "max_sensitivity": {"draws": 2, "sample": 0.5},
    "sanity": {"sample": 0.5},
}
KEY = ["question_id", "method", "target", "metric", "annotator"]


def sections(**others: Any) -> dict[str, Any]:
    return {"methods": METHODS, "metrics": METRICS, "resources": PLAIN, **others}


@pytest.fixture
def recipe(recipe: Recipe, world: Path) -> Recipe:
    """Of the small recipe the first four images."""
    few = {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3, "limit": 12}
    return lambda **given: recipe(**{"dataset": few, **given})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examined") / "run"


@pytest.fixture
def whole(folder: Path, recipe: Recipe) -> Path:
    """One shard, one process: what all others must equal."""
    if not folder.exists():
        stages.run(recipe(**sections(store={"shard_size": 64})), folder)
        stages.evaluate(folder)
    return folder


def assert_same_metrics(first: Path, second: Path) -> None:
    a, b = (Run(root).metrics.sort_values(KEY, ignore_index=True) for root in (first, second))
    exact = [*KEY, "image_id", "status", "conventions"]
    pd.testing.assert_frame_equal(a[exact], b[exact])
    np.testing.assert_allclose(a.value, b.value, atol=1e-4)
    for mine, other in zip(a.points, b.points, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            np.testing.assert_allclose(mine, other, atol=1e-5)


def test_every_map_is_scored_and_every_row_explained(whole: Path) -> None:
    run = Run(whole)
    metrics, maps = run.metrics, run.maps
    assert not len(run.failures)
    gains = metrics[metrics.metric == "deletion_gain"]
    assert len(gains) == len(maps)
    assert (metrics.value.notna() == (metrics.status == "ok")).all()
    assert (metrics[~metrics.metric.isin(["pointing_game", "energy_inside"])].annotator == -1).all()
    areas = metrics[metrics.metric.isin(["deletion_auc", "insertion_random_auc"])]
    ok = areas[areas.status == "ok"]
    assert {len(points) for points in ok.points} == {5}
    assert np.allclose(ok.value, [np.trapezoid(p, dx=0.25) for p in ok.points])
    assert not verify(whole).problems


def test_samples_are_of_the_examples_that_drew_the_lot(whole: Path) -> None:
    metrics = Run(whole).metrics
    sampled = set(metrics[metrics.metric == "sanity_target"].question_id)
    assert 0 < len(sampled) < metrics.question_id.nunique()
    moved = metrics[metrics.metric == "max_sensitivity"]
    assert set(moved.question_id) == sampled
    assert set(moved.method) == {"saliency", "grad_cam", "attention", "random", "center"}


@pytest.mark.parametrize(("shard_size", "batch"), [(1, 3), (7, 32)])
def test_other_shards_and_batches_change_nothing(
    shard_size: int, batch: int, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    resources = {**PLAIN, "batch": batch}
    store = {"shard_size": shard_size}
    stages.run(recipe(**sections(store=store, resources=resources)), tmp_path / "run")
    stages.evaluate(tmp_path / "run")
    assert_same_metrics(whole, tmp_path / "run")


def test_workers_change_nothing(
    recipe: Recipe, whole: Path, tmp_path: Path, ray_cluster: None
) -> None:
    resources = {**PLAIN, "executor": "ray", "workers": 2}
    config = recipe(**sections(store={"shard_size": 3}, resources=resources))
    stages.run(config, tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").tasks > 2
    assert_same_metrics(whole, tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").tasks == 0


def test_evaluation_killed_and_started_again_loses_nothing(
    recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stages.run(recipe(**sections(store={"shard_size": 3})), out)
    command = [sys.executable, "run_pipeline.py", "evaluate", str(out)]
    driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while driver.poll() is None and not list(out.glob("metrics/part-*")):
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    committed = set(out.glob("metrics/part-*"))
    assert 0 < len(committed) < 4
    assert stages.evaluate(out).tasks == 4 - len(committed)
    assert committed < set(out.glob("metrics/part-*"))
    assert_same_metrics(whole, out)


def test_run_extended_by_a_method_and_a_metric_asks_only_for_those(
    recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fewer = {label: METHODS[label] for label in ("occlusion", "attention")}
    stages.run(recipe(**sections(methods=fewer, metrics={"sparsity": {}})), out)
    stages.evaluate(out)
    before = set(out.glob("metrics/part-*"))
    stages.run(recipe(**sections()), out)
    stages.evaluate(out)
    assert before < set(out.glob("metrics/part-*"))
    assert_same_metrics(whole, out)
    assert not verify(out).problems


def test_metric_added_at_evaluation_is_recorded(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages.run(recipe(methods={"center": {}}, metrics={"sparsity": {}}), out)
    stages.evaluate(out, ["metrics.deletion_insertion={grid: 2, steps: 2}"])
    assert stages.stored_config(out).metrics["deletion_insertion"]["grid"] == 2
    assert stages.evaluate(out).tasks == 0
    with pytest.raises(UserError, match="holds deletion_insertion with other parameters: steps"):
        stages.evaluate(out, ["metrics.deletion_insertion={grid: 2, steps: 3}"])


def test_run_without_human_maps_is_faithful_all_the_same(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    dataset = {
        "name": "vqa",
        "root": str(world),
        "questions": "OpenEnded_mscoco_val2014_questions.json",
        "annotations": "mscoco_val2014_annotations.json",
        "images": ".",
        "limit": 6,
    }
    stages.run(recipe(**sections(dataset=dataset)), tmp_path / "run")
    stages.evaluate(tmp_path / "run")
    metrics = Run(tmp_path / "run").metrics
    assert {"sparsity", "deletion_auc", "insertion_gain"} <= set(metrics.metric)
    assert (metrics.annotator == -1).all()


def test_question_that_cannot_be_examined_spares_its_neighbours(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    """An image that is gone by the time it is needed again."""
    root, out = tmp_path / "world", tmp_path / "run"
    shutil.copytree(world, root)
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3, "limit": 9}
    metrics = {"deletion_insertion": METRICS["deletion_insertion"]}
    stages.run(recipe(**sections(dataset=dataset, metrics=metrics)), out)
    victim = sorted((root / "val2014").glob("*.png"))[2]
    good = victim.read_bytes()
    victim.write_bytes(b"\0" * len(good))
    assert stages.evaluate(out).failed_examples == 3
    run = Run(out)
    assert set(run.failures.stage) == {"evaluate"}
    assert set(run.failures.method) == {"deletion_insertion"}
    bad = set(run.failures.question_id)
    assert set(run.metrics.question_id) == set(run.examples.question_id) - bad
    victim.write_bytes(good)
    stages.retry(out)
    assert stages.evaluate(out).failed_examples == 0
    assert set(Run(out).metrics.question_id) == set(run.examples.question_id)


def test_other_weights_at_evaluation_are_refused(
    recipe: Recipe, checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / "model.safetensors"
    shutil.copy(checkpoint, own)
    model = {"name": "kazemi", "checkpoint": str(own)}
    metrics = {"deletion_insertion": {"grid": 2, "steps": 2}}
    stages.run(recipe(methods={"center": {}}, metrics=metrics, model=model), tmp_path / "run")
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    with pytest.raises(UserError, match="model Kazemi is not the one that this run's"):
        stages.evaluate(tmp_path / "run")


def test_metric_beyond_the_model_is_refused_with_both_sides(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.models.kazemi.Kazemi.provides", VQAModel.provides)
    monkeypatch.setattr("workers.checks.randomisation.Sanity.needs", frozenset({"gradients"}))
    with pytest.raises(UserError) as error:
        make_plan(recipe(methods={"center": {}}, metrics={"sanity": {}}), tmp_path / "run")
    assert str(error.value) == (
        "metrics.sanity needs gradients, which model Kazemi does not provide (it provides "
        "logits). Remove the metric or choose another model."
    )


def test_plan_tells_what_the_checks_will_cost(recipe: Recipe, tmp_path: Path) -> None:
    plan = make_plan(recipe(**sections()), tmp_path / "run")
    costs = {cost.label: cost for cost in plan.checks}
    assert set(costs) == {"deletion_insertion", "max_sensitivity", "sanity"}
    curves, moved = costs["deletion_insertion"], costs["max_sensitivity"]
    assert (curves.examples, curves.images) == (12, 4)
    assert curves.maps == 12 * 6 * 2
    assert curves.passes == 4 * (3 + 2 * 2 * 3) + curves.maps * 2 * 3
    assert moved.passes == 2 * moved.images
    assert str(moved).endswith("; not of occlusion")


def test_evaluator_loads_no_model_that_no_metric_asks_for(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.run(recipe(methods={"center": {}}, metrics={"sparsity": {}}), tmp_path / "run")
    monkeypatch.setattr("workers.models.specs.KazemiSpec.build", None)
    stages.evaluate(tmp_path / "run")
    assert len(Run(tmp_path / "run").metrics)


def test_neurons_that_are_not_shared_are_those_of_the_run_whoever_is_examined(
    world: Path, tmp_path: Path
) -> None:
    """Which neurons a question shares hangs on all questions of its image, not on the sampled."""
    found = {}
    for share in (1.0, 0.4):
        sections = {
            "dataset": {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3},
            "model": "demo_lstm",
            "methods": {"own": {"method": "question_grad_cam", "n": 20, "not_shared": True}},
            "metrics": {"max_sensitivity": {"draws": 1, "radius": 0.001, "sample": share}},
            "resources": {"executor": "local"},
        }
        out = tmp_path / str(share)
        stages.run(parse(sections, "test"), out)
        stages.evaluate(out)
        rows = Run(out).metrics.query("method == 'own' and target == 'predicted'")
        found[share] = rows[rows.metric == "max_sensitivity"].set_index("question_id").value
    few = found[0.4]
    assert 0 < len(few) < len(found[1.0])
    np.testing.assert_allclose(few, found[1.0][few.index], rtol=1e-3, atol=1e-5)


def test_broken_human_map_of_another_example_costs_one_comparison(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "world", tmp_path / "run"
    shutil.copytree(world, root)
    victim = sorted((root / "vqahat_val").glob("*_1.png"))[0]
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    methods, metrics = {"center": {}}, {"rank_correlation": {}}
    stages.run(recipe(dataset=dataset, methods=methods, metrics=metrics), out)
    victim.write_bytes(victim.read_bytes()[:40])
    assert stages.evaluate(out).failed_examples == 2
    run, own = Run(out), int(victim.name.split("_")[0])
    (other,) = set(run.failures.question_id) - {own}
    assert run.failures.set_index("question_id").method[other] == "shuffled_human"
    scored = run.metrics.groupby("question_id").method.apply(set)
    assert own not in scored
    assert scored[other] == {"center", "human", "random"}
    assert {"shuffled_human"} < scored.drop(other).iloc[0]
