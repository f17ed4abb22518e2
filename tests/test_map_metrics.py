"""Sparsity and localisation against literal replicas, and the maps on which they go wrong."""

import numpy as np
import pytest

from tests.reference import checks as reference
from tests.reference import metrics
from workers.errors import BadExample
from workers.metrics.localisation import Localisation
from workers.metrics.sparsity import Sparsity


def signed(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def located(model: np.ndarray, human: np.ndarray, **fields: float) -> dict[str, tuple[float, str]]:
    metric = Localisation(**fields)
    scores = metric.score(metric.prepare([model]), metric.prepare([human]))
    assert set(scores) == set(metric.names)
    return {name: (s.values[0], s.statuses[0]) for name, s in scores.items()}


@pytest.mark.parametrize("shape", [(6, 6), (9, 13), (3, 4)])
def test_sparsity_equals_replica(shape: tuple[int, int]) -> None:
    values = signed(0, shape)
    wanted = reference.gini(metrics.resize(values, 6).astype(float).ravel().tolist())
    measured = Sparsity(side=6).score([values])["sparsity"]
    assert measured.values[0] == pytest.approx(wanted, rel=1e-6)


def test_sparsity_of_one_cell_is_nearly_one_and_of_equal_ones_has_a_status() -> None:
    one, flat, none = np.zeros((14, 14)), np.full((14, 14), -0.5), np.zeros((5, 5))
    one[3, 4] = -2
    scores = Sparsity().score([one, flat, none])["sparsity"]
    assert scores.values[0] == pytest.approx(1 - 1 / 196)
    assert scores.statuses == ["ok", "degenerate_model", "degenerate_model"]
    assert np.isnan(scores.values[1:]).all()


def test_sparsity_scale_and_sign_change_nothing() -> None:
    values = signed(1, (14, 14))
    scores = Sparsity().score([values, -values, 1000 * values])["sparsity"]
    assert scores.values == pytest.approx(scores.values[0])


@pytest.mark.parametrize("shape", [(4, 4), (7, 5), (12, 18), (1, 1)])
@pytest.mark.parametrize("inside", [0.3, 0.5, 1.0])
def test_localisation_equals_replica(shape: tuple[int, int], inside: float) -> None:
    model = np.round(signed(2, shape), 1)
    human = np.random.default_rng(3).integers(0, 9, (12, 18)).astype(np.float32)
    if shape == (1, 1):
        assert located(model, human)["energy_inside"][1] == "degenerate_model"
        return
    measured = located(model, human, inside=inside)
    wanted = reference.pointing_game(model, human, inside)
    assert measured["pointing_game"] == (pytest.approx(wanted), "ok")
    wanted = reference.energy_inside(model, human, inside)
    assert measured["energy_inside"] == (pytest.approx(wanted, rel=1e-5), "ok")


def test_localisation_exact_mask_and_a_map_inside_it() -> None:
    human, model = np.zeros((40, 40)), np.zeros((10, 10))
    human[8:16, 20:24] = 1
    model[2:4, 5] = [-3, 1]
    assert located(model, human) == {"pointing_game": (1, "ok"), "energy_inside": (1, "ok")}
    model[0, 0] = 4
    measured = located(model, human)
    assert measured == {"pointing_game": (0, "ok"), "energy_inside": (0.5, "ok")}


def test_localisation_equal_maxima_share_the_point() -> None:
    human, model = np.zeros((4, 4)), np.zeros((4, 4))
    human[0] = 1
    model[:, 1] = -7
    assert located(model, human)["pointing_game"] == (0.25, "ok")


def test_localisation_constant_maps_have_a_status() -> None:
    varied, flat = signed(4, (6, 6)), np.full((6, 6), 2.0)
    for model, human, status in [
        (flat, varied, "degenerate_model"),
        (varied, flat, "degenerate_human"),
        (np.zeros((3, 3)), np.abs(varied), "degenerate_model"),
    ]:
        measured = located(model, human)
        assert {s for _, s in measured.values()} == {status}
        assert all(np.isnan(v) for v, _ in measured.values())


@pytest.mark.parametrize("broken", [np.full((2, 2), np.nan), np.zeros((0, 3)), np.zeros(4)])
def test_localisation_broken_map_is_a_bad_example(broken: np.ndarray) -> None:
    with pytest.raises(BadExample, match="cannot be scored"):
        Localisation().prepare([broken])
