"""Precision below float32 and approximate sweeps: chosen, labelled, measured, never silent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.plan import make_plan
from tests import nets
from tests.conftest import Recipe
from workers.errors import UserError
from workers.methods.occlusion import Bounded, DrillDown, Occlusion
from workers.store import Store
from workers.sweep.engine import Engine, Options

INCREMENTAL = {"executor": "local", "engine": "incremental"}


def drops(approximate: Bounded | DrillDown | None, grid: int = 4) -> np.ndarray:
    model = nets.build("plain")
    scene = nets.scene(model, engine=Engine(model, Options(way="incremental")))
    return Occlusion(grid=grid, approximate=approximate).explain(scene).arrays["drop"]


def test_bound_beyond_every_window_is_exact() -> None:
    np.testing.assert_allclose(drops(Bounded(bound=0.999)), drops(None), rtol=1e-9, atol=1e-15)


def test_bounded_windows_change_the_map() -> None:
    assert np.abs(drops(Bounded(bound=0.2)) - drops(None)).max() > 1e-4


def test_drill_down_that_refines_everything_is_exact() -> None:
    everything = DrillDown(coarse=2, keep=0.99)
    np.testing.assert_allclose(drops(everything), drops(None), rtol=1e-9, atol=1e-15)


def test_drill_down_refines_the_coarse_cells_of_largest_drop_and_shares_out_the_others() -> None:
    model = nets.build("plain")
    scene = nets.scene(model, questions=nets.QUESTIONS[:1], targets=("predicted",))
    coarse, exact = (Occlusion(grid=g).explain(scene).arrays["drop"][0] for g in (2, 4))
    drilled = Occlusion(grid=4, approximate=DrillDown(coarse=2, keep=0.25))
    found = drilled.explain(scene).arrays["drop"][0]
    refined = np.kron(np.abs(coarse) == np.abs(coarse).max(), np.ones((2, 2), bool))
    np.testing.assert_allclose(found[refined], exact[refined], rtol=1e-9, atol=1e-15)
    shared = np.kron(coarse / 4, np.ones((2, 2)))
    np.testing.assert_allclose(found[~refined], shared[~refined], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("options", [{"grid": 16}, {"window": 4}])
def test_drill_down_needs_a_grid_that_its_coarse_one_divides(options: dict) -> None:
    with pytest.raises(ValidationError, match=r"approximate\.coarse is 3; drill-down needs a grid"):
        Occlusion(**options, approximate={"coarse": 3, "keep": 0.25})


def test_run_labels_inexact_maps_and_stores_their_measured_fidelity(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {
        "occlusion": {"grid": 4},
        "bounded": {"method": "occlusion", "grid": 4, "approximate": {"bound": 0.25}},
        "saliency": {},
    }
    config = recipe(methods=methods, precision="bfloat16", resources=INCREMENTAL)
    out = tmp_path / "run"
    stages.run(config, out)
    printed = "".join(capsys.readouterr()).replace("\n", " ")
    maps = Run(out).maps.groupby("method")
    assert maps.approximation.first()["occlusion"] == "bfloat16"
    assert maps.approximation.first()["bounded"] == "windows bounded at 0.25, bfloat16"
    assert maps.approximation.count()["saliency"] == 0
    measured = Store(out).fidelity()
    assert set(measured) == {"occlusion", "bounded"}
    for label, fidelity in measured.items():
        assert fidelity.rank_correlation == maps.fidelity.first()[label]
        assert fidelity.maps >= 4
        assert 0 < fidelity.max_difference < 0.5
        assert str(fidelity) in printed
    assert 0.8 < measured["occlusion"].rank_correlation < 1
    assert measured["bounded"].rank_correlation < measured["occlusion"].rank_correlation


def test_exact_runs_measure_and_label_nothing(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(methods={"occlusion": {"grid": 4}}, resources=INCREMENTAL)
    stages.run(config, tmp_path / "run")
    assert Store(tmp_path / "run").fidelity() == {}
    assert Run(tmp_path / "run").maps.approximation.isna().all()


def test_tf32_without_its_gpu_is_refused(recipe: Recipe) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="precision tf32 needs an NVIDIA GPU"):
        make_plan(recipe(precision="tf32"), None)


def test_reduced_precision_of_a_black_box_is_refused() -> None:
    engine = Engine(nets.black_box(), Options(precision="bfloat16"))
    with pytest.raises(UserError, match="the model gives logits only, its trunk is out of reach"):
        Occlusion(grid=4).explain(nets.scene(nets.black_box(), engine=engine))


@pytest.mark.parametrize("way", ["plain", "dense", "incremental"])
def test_plan_says_how_occlusion_will_be_swept(recipe: Recipe, way: str) -> None:
    plan = make_plan(recipe(resources={"executor": "local", "engine": way}), None)
    (choice,) = plan.choices["occlusion"]
    assert choice.way == way
    assert choice.passes == 16
    assert any(line.startswith(f"occlusion: {way} sweep") for line in plan.sweeps)


def test_plan_takes_the_way_that_was_fastest_when_timed(recipe: Recipe) -> None:
    plan = make_plan(recipe(), None)
    (choice,) = plan.choices["occlusion"]
    assert choice.speedup >= 1
    assert choice.way in choice.reason


def test_engine_that_cannot_trace_a_black_box_refuses_to_be_forced() -> None:
    engine = Engine(nets.black_box(), Options(way="incremental"))
    with pytest.raises(UserError, match="set resources"):
        Occlusion(grid=4).explain(nets.scene(nets.black_box(), engine=engine))
