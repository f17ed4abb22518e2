"""Checks that ask the model: against literal replicas, and on models whose answer is known."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests import nets
from tests.reference import checks as reference
from tests.reference import gradients
from workers.checks.base import Check, Explained, Subject, lot
from workers.checks.curves import DeletionInsertion
from workers.checks.randomisation import Sanity
from workers.checks.sensitivity import MaxSensitivity
from workers.checks.stages import Stage, cascade, stages
from workers.errors import BadExample, UserError
from workers.methods.base import ImageMethod, Scene
from workers.methods.baselines import Center, Random
from workers.methods.gradients import GradCam, GuidedBackprop, Saliency
from workers.methods.occlusion import Occlusion
from workers.metrics.base import Scores
from workers.models.base import VQAModel
from workers.models.digest import weights_digest
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.trunks import TRUNKS
from workers.sweep import patches
from workers.sweep.engine import Engine, Options

GRID, STEPS = 3, 4
METHODS: dict[str, ImageMethod] = {
    "saliency": Saliency(),
    "guided_backprop": GuidedBackprop(),
    "grad_cam": GradCam(),
    "occlusion": Occlusion(grid=3),
    "random": Random(grid=4),
}

FEW = {label: METHODS[label] for label in ("saliency", "grad_cam")}


def curves(**fields: object) -> DeletionInsertion:
    return DeletionInsertion(**{"grid": GRID, "steps": STEPS, "draws": 2, **fields})


def subject(model: VQAModel) -> Subject:
    return Subject(model, Engine(model, Options(way="plain")))


def explained(scene: Scene, methods: dict[str, ImageMethod] = METHODS) -> list[Explained]:
    """Every method's map of every row."""
    ids = scene.question_ids
    return [
        Explained(label, method, row, ids[row.question], values.astype(np.float32))
        for label, method in methods.items()
        for row, values in zip(
            scene.rows, method.explain(scene).arrays[method.primary], strict=True
        )
    ]


def given(scene: Scene, values: np.ndarray, row: int = 0) -> Explained:
    """A map made by hand."""
    return Explained("saliency", Saliency(), scene.rows[row], 1, values.astype(np.float32))


def scored(check: Check, scene: Scene, maps: list[Explained]) -> dict[str, Scores]:
    results = check.score(subject(scene.model), scene, maps)
    for scores in results.values():
        assert len(scores.values) == len(scores.statuses) == len(maps)
        assert [s == "ok" for s in scores.statuses] == np.isfinite(scores.values).tolist()
    return results


# Deletion and insertion


def test_curves_equal_replica() -> None:
    scene = nets.scene(nets.build("plain"), nets.QUESTIONS[1:2])
    maps, check = explained(scene, FEW), curves()
    results = scored(check, scene, maps)
    chance = [list(o) for o in check._random_orders(scene.canvas, GRID**2)]
    fills = {
        "deletion": patches.constant(scene.canvas, patches.GRAY),
        "insertion": patches.blurred(scene.canvas, patches.BLUR_SIGMA),
    }
    for i, e in enumerate(maps):
        for name, fill in fills.items():
            args = (GRID, STEPS, fill, name == "deletion")
            asked = (scene.model, scene.canvas, scene.questions[e.row.question], e.row.answer)
            own = reference.curve(*asked, reference.order_of(e.values, GRID, chance[0]), *args)
            randoms = [
                reference.curve(*asked, [divmod(c, GRID) for c in order], *args) for order in chance
            ]
            by_chance = np.mean([reference.area(points, GRID**2) for points in randoms])
            scores = results[f"{name}_auc"]
            assert scores.points is not None
            np.testing.assert_allclose(scores.points[i], own, rtol=1e-9)
            assert scores.values[i] == pytest.approx(reference.area(own, GRID**2), rel=1e-9)
            assert results[f"{name}_random_auc"].values[i] == pytest.approx(by_chance, rel=1e-9)
            better = own_gain(name, reference.area(own, GRID**2), by_chance)
            assert results[f"{name}_gain"].values[i] == pytest.approx(better, abs=1e-9)


def own_gain(name: str, own: float, chance: float) -> float:
    return chance - own if name == "deletion" else own - chance


@pytest.mark.parametrize("fields", [{"batch": 1}, {"batch": 7}])
def test_curves_batch_and_company_change_nothing(fields: dict[str, int]) -> None:
    """One map at a time in small batches gives what all together give."""
    scene = nets.scene(nets.build("in_place"))
    maps = explained(scene)
    together = scored(curves(), scene, maps)
    for i in (0, 4, len(maps) - 1):
        alone = scored(curves(), nets.scene(scene.model, **fields), [maps[i]])
        for name, scores in alone.items():
            assert scores.values[0] == pytest.approx(together[name].values[i], abs=1e-12)


def planted() -> tuple[Scene, np.ndarray]:
    """A black box whose first answer's logit is a sum over pixels, the others' are 0; and each
    cell's share of the logit that painting it gray takes away."""
    model = nets.black_box()
    model.image.weight.data[1:] = 0
    model.image.weight.data[0] /= 20
    model.image.bias.data[:] = 0
    model.word.weight.data[:] = 1
    scene = nets.scene(model, [("circle",)])
    scene.rows = [scene.rows[0].__class__(0, "predicted", 0)]
    lost = scene.canvas - patches.constant(scene.canvas, patches.GRAY)
    share = model.image.weight.data[0].view_as(lost) * lost
    return scene, share.sum(0).numpy()


def test_deletion_perfect_map_has_the_smallest_area_of_all_orders() -> None:
    scene, share = planted()
    check = DeletionInsertion(grid=2, steps=4, insert_into="gray")
    orders = [given(scene, np.argsort(order).reshape(2, 2)) for order in permutations(range(4))]
    perfect = scored(check, scene, [given(scene, share)])
    all_orders = scored(check, scene, orders)
    assert np.ptp(all_orders["deletion_auc"].values) > 0.01
    lowest, highest = all_orders["deletion_auc"].values.min(), all_orders["insertion_auc"].values
    assert perfect["deletion_auc"].values[0] == pytest.approx(lowest, abs=1e-12)
    assert perfect["insertion_auc"].values[0] == pytest.approx(highest.max(), abs=1e-12)


def test_deletion_of_the_random_order_itself_gains_nothing() -> None:
    scene = nets.scene(nets.build("plain"))
    check = curves(draws=1)
    rank = np.empty(GRID**2)
    rank[check._random_orders(scene.canvas, GRID**2)[0]] = -np.arange(GRID**2)
    results = scored(check, scene, [given(scene, rank.reshape(GRID, GRID))])
    assert results["deletion_gain"].values[0] == results["insertion_gain"].values[0] == 0


def test_deletion_of_random_maps_gains_nothing_on_average() -> None:
    scene, _ = planted()
    rng = np.random.default_rng(0)
    maps = [given(scene, rng.random((GRID, GRID))) for _ in range(200)]
    gains = scored(curves(draws=200), scene, maps)["deletion_gain"].values
    assert abs(gains.mean()) < 3 * np.hypot(1, 1) * gains.std() / np.sqrt(len(gains))


def test_deletion_ends_are_the_clean_and_the_painted_image() -> None:
    scene = nets.scene(nets.build("plain"))
    maps = explained(scene)
    results = scored(curves(), scene, maps)
    deletion, insertion = (results[f"{n}_auc"].points for n in ("deletion", "insertion"))
    for e, down, up in zip(maps, deletion, insertion, strict=True):
        clean = scene.output.logits[e.row.question].softmax(0)[e.row.answer].item()
        assert down[0] == pytest.approx(clean)
        assert up[-1] == pytest.approx(clean)


def test_deletion_constant_map_has_a_status_and_its_baseline_a_value() -> None:
    scene = nets.scene(nets.build("plain"))
    results = scored(curves(), scene, [given(scene, np.full((5, 5), 0.25))])
    assert results["deletion_auc"].statuses == ["degenerate_model"]
    assert results["deletion_auc"].points == [None]
    assert results["insertion_gain"].statuses == ["degenerate_model"]
    assert results["deletion_random_auc"].statuses == ["ok"]


def test_deletion_map_with_nan_is_a_bad_example() -> None:
    scene = nets.scene(nets.build("plain"))
    with pytest.raises(BadExample, match="not finite"):
        scored(curves(), scene, [given(scene, np.array([[0.0, np.nan]]))])


def test_deletion_signed_and_absolute_order_differ() -> None:
    scene = nets.scene(nets.build("plain"))
    values = given(scene, np.array([[3.0, -4.0], [1.0, 2.0]]))
    signed, absolute = (
        scored(DeletionInsertion(grid=2, steps=4, values=v), scene, [values])["deletion_auc"]
        for v in ("signed", "absolute")
    )
    assert signed.points[0][1] != absolute.points[0][1]
    assert signed.points[0][0] == absolute.points[0][0]


# Max-sensitivity


def test_max_sensitivity_equals_replica() -> None:
    scene = nets.scene(nets.build("plain"), nets.QUESTIONS[:1])
    check = MaxSensitivity(draws=3, radius=8.0, max_passes=9)
    maps = explained(scene, FEW)
    measured = scored(check, scene, maps)["max_sensitivity"]
    rng = patches.generator(scene.canvas, 0)
    canvases = [
        (scene.canvas + torch.from_numpy(rng.uniform(-8.0, 8.0, scene.canvas.shape))).clamp(0, 255)
        for _ in range(3)
    ]
    for i, e in enumerate(maps):
        if e.label != "saliency":
            continue
        again = [
            np.abs(
                gradients.pixel_gradient(
                    scene.model,
                    canvas,
                    scene.questions[e.row.question],
                    e.row.answer,
                    "logit",
                    "saliency",
                )
            ).max(0)
            for canvas in canvases
        ]
        wanted = reference.max_sensitivity(e.values.astype(np.float64), again)
        assert measured.values[i] == pytest.approx(wanted, rel=1e-6)


def test_max_sensitivity_of_a_map_that_sees_no_pixel_is_zero() -> None:
    scene = nets.scene(nets.build("plain"))
    maps = explained(scene, {"center": Center(), "random": Random()})
    assert not scored(MaxSensitivity(draws=2), scene, maps)["max_sensitivity"].values.any()


def test_max_sensitivity_constant_map_has_a_status() -> None:
    scene = nets.scene(nets.build("plain"))
    flat = given(scene, np.zeros((nets.HEIGHT, nets.WIDTH)))
    assert scored(MaxSensitivity(draws=1), scene, [flat])["max_sensitivity"].statuses == [
        "degenerate_model"
    ]


def test_max_sensitivity_leaves_out_sweeps_unless_asked() -> None:
    model = nets.build("plain")
    assert not MaxSensitivity().applies(Occlusion(grid=3), model)
    assert MaxSensitivity(max_passes=9).applies(Occlusion(grid=3), model)
    assert MaxSensitivity().applies(Saliency(), model)


# Randomisation


@pytest.mark.parametrize("order", ["cascade", "independent"])
def test_sanity_equals_replica(order: str) -> None:
    scene = nets.scene(nets.build("plain"), nets.QUESTIONS[:1])
    maps = explained(scene, {"saliency": Saliency(reduction="sum")})
    results = scored(Sanity(order=order, seed=5), scene, maps)
    parts = ["head_net", "lstm", "embedding", "trunk_net.3", "trunk_net.4", "trunk_net.0"]
    found = {name for name in results if name.startswith(f"sanity_{order}_0")}
    groups = [("head_net",), ("lstm",), ("embedding",), parts[3:5], parts[5:]]
    assert found == {f"sanity_{order}_{k:02d}_{g[0]}" for k, g in enumerate(groups, start=1)}
    for number, group in enumerate(groups, start=1):
        before = [] if order == "independent" else [p for g in groups[: number - 1] for p in g]
        mixed = reference.randomised(scene.model, [*before, *group], parts, seed=5)
        for i, e in enumerate(maps):
            again = gradients.pixel_gradient(
                mixed,
                scene.canvas,
                scene.questions[e.row.question],
                e.row.answer,
                "logit",
                "saliency",
            ).sum(0)
            suffix = f"_{number:02d}_{group[0]}"
            signed = spearmanr(e.values.ravel(), again.ravel()).statistic
            both = spearmanr(np.abs(e.values).ravel(), np.abs(again).ravel()).statistic
            assert results[f"sanity_{order}_signed{suffix}"].values[i] == pytest.approx(signed)
            assert results[f"sanity_{order}{suffix}"].values[i] == pytest.approx(both)


def test_sanity_leaves_the_model_as_it_was() -> None:
    scene = nets.scene(nets.build("resnet"))
    before = weights_digest(scene.model)
    state = torch.random.get_rng_state()
    kept = subject(scene.model)
    check, maps = Sanity(), explained(scene, FEW)
    first = check.score(kept, scene, maps)
    assert weights_digest(scene.model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    again = check.score(kept, nets.scene(scene.model), maps)
    for name, scores in first.items():
        np.testing.assert_array_equal(scores.values, again[name].values)


def test_sanity_method_that_ignores_the_weights_stays_as_it_is() -> None:
    scene = nets.scene(nets.build("plain"))
    results = scored(Sanity(), scene, explained(scene, {"center": Center(), "random": Random()}))
    for name, scores in results.items():
        if name == "sanity_noise":
            assert np.abs(scores.values).max() < 0.5
        else:
            assert scores.values == pytest.approx(1)


def test_sanity_method_that_follows_the_weights_changes() -> None:
    scene = nets.scene(nets.build("plain"))
    results = scored(Sanity(), scene, explained(scene, {"saliency": Saliency(reduction="sum")}))
    last = max(name for name in results if name.startswith("sanity_cascade_signed"))
    assert np.abs(results[last].values).mean() < 0.3
    assert np.abs(results["sanity_target_signed"].values).mean() < 0.999


def test_sanity_constant_maps_have_a_status() -> None:
    scene = nets.scene(nets.build("plain"))
    results = scored(Sanity(), scene, [given(scene, np.zeros((nets.HEIGHT, nets.WIDTH)))])
    assert {s.statuses[0] for s in results.values()} == {"degenerate_model"}


def test_stages_go_from_the_answer_to_the_pixels() -> None:
    small = KazemiConfig(
        trunk="small", channels=(4, 4, 8), image_size=32, words=("a",), answers=("b", "c")
    )
    assert [stage.name for stage in stages(Kazemi(small))] == [
        "classifier.lin2",
        "classifier.lin1",
        "attention",
        "text",
        "trunk_net.4",
        "trunk_net.3",
        "trunk_net.0",
    ]


@pytest.mark.parametrize(
    "trunk", ["resnet18", "resnet152_caffe", "googlenet", "vgg11_bn", "densenet121"]
)
def test_stages_cover_every_weight_once(trunk: str) -> None:
    with torch.device("meta"):
        net = TRUNKS[trunk](())
    model = nn.Module()
    model.trunk_net = net
    found = [path for stage in stages(model) for path in stage.modules]  # type: ignore[arg-type]
    own = [f"{p}.{n}" for p in found for n, _ in model.get_submodule(p).named_parameters()]
    assert sorted(own) == sorted(n for n, _ in model.named_parameters())
    assert "resnet" not in trunk or stages(model)[-1] == Stage(  # type: ignore[arg-type]
        "trunk_net.conv1", ("trunk_net.conv1", "trunk_net.bn1")
    )


def test_cascade_shares_tensors_and_ends_with_none_of_its_own() -> None:
    model = nets.build("resnet")
    models = [other for _, other in cascade(model, seed=0, independent=False)]
    own = {t.data_ptr() for t in model.parameters()}
    shared = [sum(t.data_ptr() in own for t in other.parameters()) for other in models]
    assert shared == sorted(shared, reverse=True)
    assert shared[-1] == 0 < shared[0] < len(own)
    assert not any(p.requires_grad for p in models[-1].parameters())
    assert not any(m.training for m in models[-1].modules())


def test_layer_without_a_rule_for_new_weights_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    model = nets.build("plain")
    model.head_net.odd = Odd()
    with pytest.raises(UserError, match=r"head_net\.odd: a Odd holds weights and has no reset"):
        list(cascade(model, 0, False))


def test_lot_is_fair_and_hangs_on_the_question_alone() -> None:
    lots = np.array([lot(q, seed=0) for q in range(2000)])
    assert 0.47 < (lots < 0.5).mean() < 0.53
    check, larger = Sanity(sample=0.2), Sanity(sample=0.4)
    chosen = {q for q in range(200) if check.chooses(q)}
    assert chosen < {q for q in range(200) if larger.chooses(q)}
    assert chosen != {q for q in range(200) if Sanity(sample=0.2, seed=1).chooses(q)}
