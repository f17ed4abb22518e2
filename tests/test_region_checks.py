"""Checks of models of regions: regions are taken away in place of cells."""

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.studies.base import Evidence
from pipeline.studies.faithfulness import faithfulness
from pipeline.studies.sanity import sanity
from pipeline.studies.summary import Bootstrap
from schemas.frame import Frame
from tests import nets
from tests.reference import checks as reference
from tests.test_checks import scored
from tests.test_regions import folder, model, recipe, scene_of  # noqa: F401
from workers.checks.base import Explained, scene_like
from workers.checks.curves import DeletionInsertion
from workers.checks.parts import Regions
from workers.checks.randomisation import Sanity
from workers.checks.stages import cascade
from workers.checks.stages import stages as stages_of
from workers.errors import BadExample
from workers.methods.base import Row, Scene
from workers.methods.baselines import Center
from workers.methods.regions import RegionOcclusion, cells
from workers.models.base import RegionModel, RegionOutput, Tokens, present

STEPS = 4


def curves(**fields: object) -> DeletionInsertion:
    return DeletionInsertion(**{"grid": 6, "steps": STEPS, "draws": 2, **fields})


def of_regions(scene: Scene, values: np.ndarray, row: int = 0) -> Explained:
    """A map made by hand, whose painting says nothing."""
    painted = np.zeros((28, 28), np.float32)
    return Explained("own", RegionOcclusion(), scene.rows[row], 1, painted, values)


def literal(scene: Scene, row: Row, order: Sequence[int], deleting: bool) -> list[float]:
    """The probability after each step, one set of regions at a time."""
    points = []
    for k in range(STEPS + 1):
        count = round(k * len(order) / STEPS)
        gone = order[:count] if deleting else order[count:]
        regions = scene.seen[0].clone()
        for number in gone:
            for channel in range(4, regions.shape[1]):
                regions[number, channel] = 0
        logits = scene.model.logits(regions[None], [scene.questions[row.question]])[0]
        points.append(float(logits.double().softmax(0)[row.answer]))
    return points


def test_curves_equal_a_literal_loop(model: RegionModel) -> None:  # noqa: F811
    scene, check = scene_of(model), curves()
    maps = RegionOcclusion(how="zero").explain(scene).arrays
    explained = [of_regions(scene, values, i) for i, values in enumerate(maps["regions"])]
    found = scored(check, scene, explained)
    chance = check._random_orders(scene.canvas, Regions(scene, 6).count)
    for i, e in enumerate(explained):
        assert e.regions is not None
        order = np.argsort(-e.regions[present(scene.seen[0]).numpy()], kind="stable").tolist()
        for name in ("deletion", "insertion"):
            args = (scene, e.row)
            own = literal(*args, order, name == "deletion")
            score = found[f"{name}_auc"]
            assert score.points is not None
            np.testing.assert_allclose(score.points[i], own, atol=1e-6)
            area = reference.area(own, len(order))
            assert score.values[i] == pytest.approx(area, abs=1e-6)
            random = [literal(*args, list(o), name == "deletion") for o in chance]
            by_chance = np.mean([reference.area(points, len(order)) for points in random])
            assert found[f"{name}_random_auc"].values[i] == pytest.approx(by_chance, abs=1e-6)


class Planted(RegionModel):
    """The first answer's logit is a sum over regions of their first feature, the other's is 0."""

    answers = ("red", "blue")

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        raise NotImplementedError

    def regions(self, image_id: int, height: int, width: int) -> Tensor:
        raise NotImplementedError

    tokenise = nets.BlackBox.tokenise
    known = nets.BlackBox.known

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        logit = regions[..., 4].sum(1, keepdim=True)
        return RegionOutput(torch.cat([logit, torch.zeros_like(logit)], 1))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64


def planted(shares: Sequence[float]) -> Scene:
    """Every region is the whole image, so that no painted map could tell them apart; the last row
    is none."""
    rows = [[0, 0, 1, 1, share, 1] for share in shares] + [[0.0] * 6]
    regions = torch.tensor(rows, dtype=torch.float64)
    scene = Scene(Planted(), torch.zeros(3, 8, 8), [("red",)], (1,), (None,), regions=regions)
    scene.rows = [Row(0, "predicted", 0)]
    return scene


def test_right_order_has_the_smallest_area_of_all() -> None:
    shares = (0.3, -0.8, 1.1, 0.5)
    scene, check = planted(shares), curves()
    orders = [np.array([*order, 9.0]) for order in permutations(range(4))]
    found = scored(check, scene, [of_regions(scene, values) for values in orders])
    best = scored(check, scene, [of_regions(scene, np.array([*shares, 9.0]))])
    areas = found["deletion_auc"].values
    assert np.ptp(areas) > 0.01
    assert (areas == areas.min()).sum() == 1
    assert best["deletion_auc"].values[0] == areas.min()
    assert best["insertion_auc"].values[0] == found["insertion_auc"].values.max()
    ends = best["deletion_auc"].points
    assert ends is not None
    assert ends[0][0] == pytest.approx(1 / (1 + np.exp(-sum(shares))))
    assert ends[0][-1] == 0.5


def test_absolute_values_order_by_size() -> None:
    scene = planted((0.3, -0.8))
    values = of_regions(scene, np.array([0.3, -0.8, 0]))
    signed, absolute = (
        scored(curves(values=v, steps=2), scene, [values])["deletion_auc"].points
        for v in ("signed", "absolute")
    )
    assert signed is not None
    assert absolute is not None
    assert signed[0][1] == pytest.approx(1 / (1 + np.exp(0.8)))
    assert absolute[0][1] == pytest.approx(1 / (1 + np.exp(-0.3)))


def test_baseline_counts_by_its_mean_in_each_box(model: RegionModel) -> None:  # noqa: F811
    scene = scene_of(model)
    values = Center().explain(scene).arrays["map"][0].astype(np.float32)
    given = Explained("center", Center(), scene.rows[0], 1, values)
    parts = Regions(scene, len(values))
    boxes = cells(scene.seen[0, parts.numbers, :4].float(), len(values)).numpy()
    wanted = [float(values[box].mean()) for box in boxes]
    np.testing.assert_allclose(parts.values(given), wanted, rtol=1e-5)


def test_image_without_regions_is_a_bad_example() -> None:
    scene = planted(())
    with pytest.raises(BadExample, match="has no regions"):
        scored(curves(), scene, [of_regions(scene, np.zeros(1))])


def test_sanity_compares_regions_not_what_is_painted_of_them(
    model: RegionModel,  # noqa: F811
) -> None:
    """The boxes are the same whatever the weights are."""
    scene, method = scene_of(model), RegionOcclusion()
    arrays = method.explain(scene).arrays["regions"]
    explained = [of_regions(scene, values, i) for i, values in enumerate(arrays)]
    found = scored(Sanity(), scene, explained)
    (stage, last) = [(s.name, m) for s, m in cascade(model, 0, False)][-1]
    other = scene_like(scene, scene.rows, model=last)
    again = method.explain(other).arrays["regions"]
    there = present(scene.seen[0]).numpy()
    key = f"sanity_cascade_signed_{len(stages_of(model)):02d}_{stage}"
    for value, a, b in zip(found[key].values, arrays, again, strict=True):
        assert value == pytest.approx(spearmanr(a[there], b[there]).statistic)


def test_run_examines_what_is_stored_of_regions(
    recipe: Callable[..., Any],  # noqa: F811
    model: RegionModel,  # noqa: F811
    tmp_path: Path,
) -> None:
    check = {"grid": 6, "steps": STEPS, "draws": 2}
    metrics = {"deletion_insertion": check, "sanity": {"sample": 1.0}}
    config = recipe(metrics=metrics)
    stages.run(config, tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").failed_examples == 0
    run = Run(tmp_path / "run")
    rows = run.metrics[run.metrics.metric == "deletion_auc"]
    rows = rows.set_index(["question_id", "method", "target"])
    assert {"region_occlusion", "region_attention", "random", "center"} <= set(
        run.metrics.method[run.metrics.metric == "deletion_auc"]
    )
    question, example = 421, run.examples.set_index("question_id").loc[421]
    scene = scene_of(model)
    tokens = model.tokenise(example.question)
    scene = Scene(model, scene.canvas, [tokens], (question,), (None,), regions=scene.regions)
    own = run.maps[(run.maps.question_id == question) & (run.maps.method == "region_occlusion")]
    for row in own.itertuples():
        answer = model.answer_index(row.answer)
        assert answer is not None
        group = run.store.arrays()
        values = np.asarray(group["region_occlusion/regions"][row.ordinal, row.target_index])
        order = np.argsort(-values[present(scene.seen[0]).numpy()], kind="stable").tolist()
        wanted = literal(scene, Row(0, "predicted", answer), order, deleting=True)
        found = rows.loc[(question, "region_occlusion", row.target)].points
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    cascade = run.metrics[run.metrics.metric.str.startswith("sanity_cascade_signed")]
    assert (cascade[cascade.method == "center"].value.dropna() == 1).all()
    last = cascade[cascade.metric == cascade.metric.max()]
    assert (last[last.method == "region_occlusion"].value.dropna() < 0.99).all()
    evidence = Evidence(run, Bootstrap(resamples=50))
    assert any(part.name == "deletion_curves" for part in faithfulness(evidence).parts)
    assert sanity(evidence).badges["center"].good is not True
