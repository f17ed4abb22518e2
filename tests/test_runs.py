"""Whole runs: executors, shard sizes, workers, interruption, extension, retry."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.plan import make_plan
from pipeline.report.document import report
from pipeline.report.sheet import run_sheet
from pipeline.report.state import print_status
from pipeline.verify import verify
from schemas.config import RunConfig
from tests.conftest import Recipe
from tests.runs import assert_same_run
from workers.errors import UserError
from workers.lease import Lease
from workers.ledger import Ledger
from workers.methods.base import Maps, Scene
from workers.methods.gradients import GradCam
from workers.objects import open_objects
from workers.store import Store

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the serial run lies that defines the meaning; made by the first test that needs it."""
    return tmp_path_factory.mktemp("plain") / "run"


def reference_run(plain: Path, recipe: Recipe) -> Path:
    if not plain.exists():
        stages.run(recipe(store={"shard_size": 64}), plain)
    return plain


@pytest.mark.parametrize("shard_size", [1, 7])
def test_run_locally_with_other_shards_is_the_same(
    shard_size: int, recipe: Recipe, plain: Path, tmp_path: Path
) -> None:
    stages.run(recipe(store={"shard_size": shard_size}), tmp_path / "run")
    assert_same_run(reference_run(plain, recipe), tmp_path / "run")


@pytest.mark.parametrize(("shard_size", "workers"), [(1, 2), (7, 1), (64, 2)])
def test_run_on_ray_is_the_same(
    shard_size: int,
    workers: int,
    recipe: Recipe,
    plain: Path,
    tmp_path: Path,
    ray_cluster: None,
) -> None:
    resources = {"executor": "ray", "workers": workers}
    stages.run(recipe(store={"shard_size": shard_size}, resources=resources), tmp_path / "run")
    assert_same_run(reference_run(plain, recipe), tmp_path / "run")


@pytest.mark.parametrize("batch", [1, 5])
def test_run_in_other_batches_is_the_same(
    batch: int, recipe: Recipe, plain: Path, tmp_path: Path
) -> None:
    stages.run(recipe(resources={"executor": "local", "batch": batch}), tmp_path / "run")
    assert_same_run(reference_run(plain, recipe), tmp_path / "run")


def test_run_again_does_no_work(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(methods={"attention": {}})
    assert stages.run(config, tmp_path / "run").tasks > 0
    before = times(tmp_path / "run")
    assert stages.run(config, tmp_path / "run").tasks == 0
    assert times(tmp_path / "run") == before


def test_evaluate_again_does_no_work(recipe: Recipe, tmp_path: Path) -> None:
    stages.run(recipe(methods={"attention": {}}), tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").tasks > 0
    before = times(tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").tasks == 0
    assert times(tmp_path / "run") == before


def times(root: Path) -> dict[Path, int]:
    """When each file was written, but for what every driver writes about itself."""
    data = [p for p in root.rglob("*") if p.is_file() and p.parent.name not in ("drivers", "log")]
    return {p: p.stat().st_mtime_ns for p in data if p.name != "ray_driver.log"}


def test_run_extended_by_a_method_computes_only_that(recipe: Recipe, tmp_path: Path) -> None:
    stages.run(recipe(methods={"attention": {}}), tmp_path / "run")
    stages.evaluate(tmp_path / "run")
    before = times(tmp_path / "run")
    wider = recipe(methods={"attention": {}, "word_gradient": {}, "saliency": {}})
    plan = make_plan(wider, tmp_path / "run")
    assert {label for task in plan.tasks for label in task.labels} == {"word_gradient", "saliency"}
    stages.run(wider, tmp_path / "run")
    assert before.items() <= times(tmp_path / "run").items()
    stages.evaluate(tmp_path / "run")
    run = Run(tmp_path / "run")
    assert set(run.metrics.method) >= {"attention", "saliency", "human", "shuffled_human"}
    assert not run.metrics.duplicated(
        ["question_id", "method", "target", "metric", "annotator"]
    ).any()
    assert not run.examples.duplicated("question_id").any()


def test_run_killed_and_started_again_loses_nothing(
    recipe: Recipe, plain: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver once some shards are committed, then the same command."""
    out = tmp_path / "run"
    resources = {"executor": "ray", "workers": 2}
    config = recipe(store={"shard_size": 3}, resources=resources)
    command = cli(config, tmp_path, "run", "--out", str(out))
    driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while driver.poll() is None and not fragments(out):
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    committed = fragments(out)
    assert 0 < len(committed) < 8
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert committed < fragments(out)
    assert len(fragments(out)) == 8
    assert_same_run(reference_run(plain, recipe), out)


def fragments(out: Path) -> set[Path]:
    return set((out / "maps").glob("part-*.parquet"))


def cli(config: RunConfig, folder: Path, command: str, *arguments: str) -> list[str]:
    """A command line whose recipe file holds ``config``."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return [sys.executable, "run_pipeline.py", command, str(path), *arguments]


def test_run_of_truth_alone_has_rows_where_the_model_is_wrong(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.run(recipe(targets=["truth"]), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert len(run.failures) == 0
    wrong = run.examples[run.examples.truth_in_vocabulary & ~run.examples.correct.astype(bool)]
    assert 0 < len(wrong) < len(run.examples)
    assert set(run.maps.question_id) == set(wrong.question_id)
    verdict = verify(tmp_path / "run", sample=2)
    assert verdict.problems == 0, [check.first for check in verdict.checks]
    print_status(tmp_path / "run")
    grad_cam = next(line for line in capsys.readouterr().out.splitlines() if " grad_cam " in line)
    assert re.findall(r"\d+", grad_cam) == [str(len(wrong)), "0", "0", "0"]
    stages.evaluate(tmp_path / "run")
    run_sheet(tmp_path / "run", tmp_path / "sheet.png")
    report(tmp_path / "run", tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "targets lack" in page
    assert "failed:" not in page


def test_map_that_is_not_finite_fails_its_own_target_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = GradCam.explain

    def broken(self: GradCam, scene: Scene) -> Maps:
        maps = explain(self, scene)
        rows = [r for r, row in enumerate(scene.rows) if row.target == "truth"]
        for values in maps.arrays.values():
            values[rows] = np.inf
        return maps

    monkeypatch.setattr(GradCam, "explain", broken)
    out = tmp_path / "run"
    assert stages.run(recipe(methods={"grad_cam": {}}), out).failed_examples > 0
    maps = Run(out).maps.query("method == 'grad_cam'")
    assert set(maps[maps.status == "failed"].target) == {"truth"}
    assert set(maps[maps.status != "failed"].target) == {"predicted"}
    assert not maps.duplicated(["question_id", "target"]).any()
    verdict = verify(out)
    assert verdict.problems == 0, [check.first for check in verdict.checks]


def test_run_with_float16_pixels_is_close_and_scaled(
    recipe: Recipe, plain: Path, tmp_path: Path
) -> None:
    methods = {"saliency": {}}
    stages.run(recipe(methods=methods, store={"pixel_dtype": "float16"}), tmp_path / "run")
    run, exact = Run(tmp_path / "run"), Run(reference_run(plain, recipe))
    key = ["question_id", "method", "target"]
    rows = run.maps[run.maps.method == "saliency"].sort_values(key)
    others = exact.maps[exact.maps.method == "saliency"].sort_values(key)
    assert (rows.scale != 1).any()
    for half, full in zip(run.fetch(rows), exact.fetch(others), strict=True):
        assert abs(half - full).max() <= 1e-3 * abs(full).max()
    for unnamed, named in zip(run.fetch(rows), run.fetch(rows, "map"), strict=True):
        assert (unnamed == named).all()


def test_run_with_changed_parameter_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    stages.run(recipe(methods={"occlusion": {"grid": 2}}), tmp_path / "run")
    with pytest.raises(UserError) as error:
        stages.run(recipe(methods={"occlusion": {"grid": 3}}), tmp_path / "run")
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds occlusion with other parameters: grid was 2 and is now 3. "
        "Give the new variant a label of its own (`occlusion_2: {method: occlusion, ...}`), "
        "or choose another --out."
    )


def test_run_into_another_run_is_refused(recipe: Recipe, tmp_path: Path, world: Path) -> None:
    stages.run(recipe(methods={"center": {}}), tmp_path / "run")
    other = recipe(methods={"center": {}}, targets=["predicted"])
    with pytest.raises(UserError, match=r"holds another run: it differs in targets \(stored"):
        stages.run(other, tmp_path / "run")


def test_run_into_a_folder_of_something_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError) as error:
        stages.run(recipe(methods={"center": {}}), tmp_path)
    assert str(error.value) == (
        f"{tmp_path} is not empty and is not a run: choose another --out, or empty it."
    )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_run_beside_another_driver_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    stages.run(recipe(methods={"center": {}}), tmp_path / "run")
    first = Lease(open_objects(tmp_path / "run"), "run the first")
    with first, pytest.raises(UserError, match=rf"`run the first` on .* process {os.getpid()}"):
        stages.evaluate(tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").tasks > 0


def damaged_world(world: Path, folder: Path) -> Path:
    """A copy of the world whose second image is cut in half and whose third is empty."""
    subprocess.run(["cp", "-r", str(world), str(folder)], check=True)
    images = sorted((folder / "val2014").glob("*.png"))
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[2].write_bytes(b"")
    return folder


def test_run_with_bad_images_records_them_and_spares_neighbours(
    recipe: Recipe, world: Path, plain: Path, tmp_path: Path
) -> None:
    root = damaged_world(world, tmp_path / "world")
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    out = tmp_path / "run"
    result = stages.run(recipe(dataset=dataset), out)
    assert result.failed_examples == 6
    run, good = Run(out), Run(reference_run(plain, recipe))
    assert set(run.failures.stage) == {"decode"}
    assert len(run.examples) == len(good.examples)
    bad = set(run.failures.question_id)
    assert set(run.maps[run.maps.status == "failed"].question_id) == bad
    assert set(run.maps[run.maps.status != "failed"].question_id) == (
        set(good.maps.question_id) - bad
    )
    for path in sorted((root / "val2014").glob("*.png"))[1:3]:
        path.write_bytes((world / "val2014" / path.name).read_bytes())
    with pytest.raises(UserError, match="image files of its part 0 are not the size"):
        stages.run(recipe(dataset=dataset), out)
    assert stages.retry(out).failed_examples == 0
    assert_same_run(reference_run(plain, recipe), out)


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_other_weights_under_the_same_path_explain_nothing(
    executor: str, recipe: Recipe, checkpoint: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """As where a machine of a cluster has an older file: the one that works looks itself."""
    own, out = tmp_path / "model.safetensors", tmp_path / "run"
    shutil.copy(checkpoint, own)
    model = {"name": "kazemi", "checkpoint": str(own)}
    stages.run(recipe(methods={"center": {}}, model=model, store={"shard_size": 64}), out)
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    maps = Run(out).maps
    with pytest.raises(UserError, match="model Kazemi is not the one that this run's maps are"):
        stages.retry(out, [f"resources.executor={executor}"], whole=[0])
    with pytest.raises(UserError, match=f"its digest on {platform.node()} is"):
        verify(out, sample=1)
    own.write_bytes(checkpoint.read_bytes())
    assert stages.retry(out, whole=[0]).failed_examples == 0
    assert Run(out).maps.checksum.equals(maps.checksum)


def test_run_with_retry_computes_failures_again(
    recipe: Recipe, world: Path, plain: Path, tmp_path: Path
) -> None:
    """The image comes back with the size it had, as after a disk was mounted again."""
    root = tmp_path / "world"
    subprocess.run(["cp", "-r", str(world), str(root)], check=True)
    victim = sorted((root / "val2014").glob("*.png"))[4]
    whole = victim.read_bytes()
    victim.write_bytes(b"\0" * len(whole))
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    out = tmp_path / "run"
    assert stages.run(recipe(dataset=dataset), out).failed_examples == 3
    assert stages.run(recipe(dataset=dataset), out).failed_examples == 3
    victim.write_bytes(whole)
    dataset["root"] = str(root.rename(tmp_path / "moved"))
    result = stages.run(recipe(dataset=dataset), out, retry_failed=True)
    assert (result.tasks, result.failed_examples) == (1, 0)
    run, good = Run(out), Run(reference_run(plain, recipe))
    key = ["question_id", "method", "target"]
    assert sorted(map(tuple, run.maps[key].values)) == sorted(map(tuple, good.maps[key].values))


def test_driver_that_another_has_replaced_commits_nothing_and_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a pause of a minute, in which another machine took the run over."""
    out, commit = tmp_path / "run", Ledger.commit

    def late(self: Ledger, store: Store) -> None:
        shutil.copy(out / "drivers" / "0000001.json", out / "drivers" / "0000002.json")
        commit(self, store)

    monkeypatch.setattr(Ledger, "commit", late)
    with pytest.raises(UserError, match="driver 2 has taken over from driver 1"):
        stages.run(recipe(methods={"center": {}}), out)
    assert not len(Run(out).maps)


def test_run_of_a_narrower_recipe_retries_all_that_the_run_holds(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "world", tmp_path / "run"
    subprocess.run(["cp", "-r", str(world), str(root)], check=True)
    victim = sorted((root / "val2014").glob("*.png"))[4]
    whole = victim.read_bytes()
    victim.write_bytes(b"\0" * len(whole))
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    methods = {"center": {}, "attention": {}}
    fewer = {**dataset, "limit": 12}
    stages.run(recipe(dataset=fewer, methods=methods), out)
    assert stages.run(recipe(dataset=dataset, methods=methods), out).failed_examples == 3
    victim.write_bytes(whole)
    narrow = recipe(dataset=fewer, methods={"center": {}})
    assert stages.run(narrow, out, retry_failed=True).failed_examples == 0
    assert set(Run(out).maps.status) <= {"ok", "degenerate"}
    with pytest.raises(UserError, match="no example has been answered"):
        victim_only = recipe(dataset={**dataset, "limit": 3}, methods={"center": {}})
        for path in (root / "val2014").glob("*.png"):
            path.write_bytes(b"")
        stages.run(victim_only, tmp_path / "none")
        run_sheet(tmp_path / "none", tmp_path / "sheet.png")


def test_run_with_one_pixel_images_fails_them_by_name(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    root = tmp_path / "world"
    subprocess.run(["cp", "-r", str(world), str(root)], check=True)
    image = sorted((root / "val2014").glob("*.png"))[0]
    Image.new("RGB", (1, 1)).save(image)
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    stages.run(recipe(dataset=dataset, methods={"center": {}}), tmp_path / "run")
    messages = set(Run(tmp_path / "run").failures.message)
    assert len(messages) == 1
    assert str(image) in messages.pop()
