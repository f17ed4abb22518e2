"""Every method against its literal float64 reference, over every way of calling a ReLU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import spearmanr
from torch import Tensor

from tests import nets
from tests.reference import grad_cam, gradients, occlusion, rise, words
from workers.errors import UserError
from workers.methods.attention import Attention
from workers.methods.base import ImageMethod, Method, Scene
from workers.methods.baselines import Center, Random
from workers.methods.gradients import (
    Deconvnet,
    GradCam,
    GradCamPlusPlus,
    GuidedBackprop,
    GuidedGradCam,
    Saliency,
)
from workers.methods.occlusion import Occlusion
from workers.methods.rise import RISE, RandomMasks
from workers.methods.words import WordGradient, WordOcclusion
from workers.models.base import Geometry, freeze

MATRIX = [(trunk, "attention") for trunk in nets.TRUNKS]
MATRIX += [("plain", "pooled"), ("functional", "pooled"), ("resnet", "pooled")]
RULES = {Saliency: "saliency", Deconvnet: "deconvnet", GuidedBackprop: "guided"}
GRADIENT_METHODS = (*RULES, GradCam, GradCamPlusPlus, GuidedGradCam)
SCORES = ("probability", "logit", "log_probability")


@pytest.fixture(params=MATRIX, ids="-".join)
def model(request: pytest.FixtureRequest) -> nets.TinyVQA:
    return nets.build(*request.param)


@pytest.fixture
def plain() -> nets.TinyVQA:
    return nets.build("plain")


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    scale = np.abs(wanted).max()
    assert scale > 0
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 * scale)


def per_row(scene: Scene, reference: Callable[..., object], *args: object) -> np.ndarray:
    """The reference's value of every row."""
    asked = [(scene.questions[row.question], row.answer) for row in scene.rows]
    return np.array([reference(scene.model, scene.canvas, *pair, *args) for pair in asked])


def sliding() -> Occlusion:
    return Occlusion(window=(10, 8), stride=(7, 5))


def image_method(method: Callable[[], ImageMethod]) -> ImageMethod:
    small = {Occlusion: {"grid": 5}, RISE: {"masks": 20, "cells": 3}}
    return method(**small.get(method, {}))


IMAGE_METHODS = (*GRADIENT_METHODS, Occlusion, sliding, RISE, Attention)


@pytest.mark.parametrize("method", RULES)
def test_backpropagation_over_all_nets_equals_reference(
    model: nets.TinyVQA, method: type[Saliency]
) -> None:
    scene = nets.scene(model)
    wanted = per_row(scene, gradients.pixel_gradient, "logit", RULES[method])
    close(method().explain(scene).arrays["map"], np.abs(wanted).max(1))


@pytest.mark.parametrize("score", SCORES)
def test_grad_cam_plus_plus_equals_reference(model: nets.TinyVQA, score: str) -> None:
    scene = nets.scene(model)
    found = GradCamPlusPlus(score=score).explain(scene).arrays["map"]
    close(found, per_row(scene, grad_cam.grad_cam_plus_plus, score))


def test_grad_cam_over_all_nets_equals_reference(model: nets.TinyVQA) -> None:
    scene = nets.scene(model)
    arrays = GradCam().explain(scene).arrays
    signed = per_row(scene, grad_cam.grad_cam, "logit")
    close(arrays["signed"], signed)
    np.testing.assert_array_equal(arrays["map"], np.maximum(arrays["signed"], 0))


def test_guided_grad_cam_over_all_nets_equals_reference(model: nets.TinyVQA) -> None:
    scene = nets.scene(model)
    wanted = per_row(scene, grad_cam.guided_grad_cam, "logit")
    close(GuidedGradCam().explain(scene).arrays["map"], np.abs(wanted).max(1))


def occlusion_reference(
    scene: Scene,
    windows: int | tuple[occlusion.Cover, occlusion.Cover],
    drop: Callable[..., np.ndarray],
    fill: Tensor | None = None,
) -> np.ndarray:
    """Of a grid, or of windows along both sides."""
    if isinstance(windows, int):
        _, height, width = scene.canvas.shape
        windows = occlusion.cells(height, windows), occlusion.cells(width, windows)
    fill = occlusion.colour(scene.canvas) if fill is None else fill
    rows = []
    for row in scene.rows:
        question = scene.questions[row.question]
        clean = occlusion.logits(scene.model, scene.canvas, question)
        painted = occlusion.occlusion(scene.model, scene.canvas, question, *windows, fill)
        rows.append(drop(clean, painted, row.answer))
    return np.array(rows)


def test_occlusion_over_all_nets_equals_reference(model: nets.TinyVQA) -> None:
    scene = nets.scene(model)
    arrays = Occlusion(grid=3).explain(scene).arrays
    close(arrays["drop"], occlusion_reference(scene, 3, occlusion.drop))
    close(arrays["log_drop"], occlusion_reference(scene, 3, occlusion.log_drop))


@pytest.mark.parametrize("grid", [5, 7])
def test_occlusion_of_black_box_equals_reference(grid: int) -> None:
    scene = nets.scene(nets.black_box())
    arrays = Occlusion(grid=grid).explain(scene).arrays
    close(arrays["drop"], occlusion_reference(scene, grid, occlusion.drop))
    tops = occlusion_reference(scene, grid, lambda clean, painted, answer: painted.argmax(-1))
    np.testing.assert_array_equal(arrays["top_answer"], tops[::2])


@pytest.mark.parametrize(
    ("window", "stride"),
    [((6, 5), None), ((7, 7), None), ((9, 4), (5, 3)), ((24, 20), None), ((10, 9), (1, 9))],
)
def test_strided_occlusion_equals_reference(
    plain: nets.TinyVQA, window: tuple[int, int], stride: tuple[int, int] | None
) -> None:
    scene, step = nets.scene(plain, nets.QUESTIONS[:1]), stride or window
    covers = occlusion.steps(24, window[0], step[0]), occlusion.steps(20, window[1], step[1])
    arrays = Occlusion(window=window, stride=stride).explain(scene).arrays
    close(arrays["drop"], occlusion_reference(scene, covers, occlusion.drop))
    close(arrays["log_drop"], occlusion_reference(scene, covers, occlusion.log_drop))
    wanted = [occlusion.per_pixel(drop, *covers) for drop in arrays["drop"]]
    close(arrays["map"], np.array(wanted))


FILLS: dict[str, tuple[dict[str, object], Callable[[Tensor], Tensor]]] = {
    "colour": ({"patch": (9, 99, 250)}, lambda canvas: occlusion.colour(canvas, (9, 99, 250))),
    "gray": ({"patch": "gray"}, occlusion.colour),
    "mean": ({"patch": "mean"}, occlusion.mean),
    "blur": ({"patch": "blur"}, lambda canvas: occlusion.blur(canvas, 10 / 224)),
    "wide blur": (
        {"patch": "blur", "sigma": 0.1},
        lambda canvas: occlusion.blur(canvas, 0.1),
    ),
    "noise": ({"patch": "noise"}, lambda canvas: occlusion.noise(canvas, 0)),
    "other noise": ({"patch": "noise", "seed": 7}, lambda canvas: occlusion.noise(canvas, 7)),
}


@pytest.mark.parametrize("name", FILLS)
def test_occlusion_by_every_patch_equals_reference(plain: nets.TinyVQA, name: str) -> None:
    options, fill = FILLS[name]
    scene = nets.scene(plain, nets.QUESTIONS[:1])
    drop = Occlusion(grid=3, **options).explain(scene).arrays["drop"]
    close(drop, occlusion_reference(scene, 3, occlusion.drop, fill(scene.canvas)))


def test_occlusions_that_differ_in_any_option_share_no_sweep(plain: nets.TinyVQA) -> None:
    scene = nets.scene(plain)
    windows = ({"grid": 4}, {"window": 6}, {"window": 6, "stride": (5, 6)})
    made = [Occlusion(**a, **b) for a in windows for b, _ in FILLS.values()]
    drops = [method.explain(scene).arrays["drop"] for method in made]
    alone = [method.explain(nets.scene(plain)).arrays["drop"] for method in made]
    for got, wanted in zip(drops, alone, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert len({drop.tobytes() for drop in drops}) == len(made)


@pytest.mark.parametrize(
    "model", [nets.build("plain"), nets.build("vgg", "pooled"), nets.black_box()]
)
@pytest.mark.parametrize(
    "options",
    [
        {"masks": 6, "cells": 3},
        {"masks": 5, "keep": 0.2, "seed": 3},
        {"masks": 4, "cells": 20, "patch": (0, 99, 250)},
    ],
)
def test_rise_equals_reference(
    model: nets.TinyVQA | nets.BlackBox, options: dict[str, object]
) -> None:
    method, scene = RISE(**options), nets.scene(model, batch=4)
    masks = rise.draw(scene.canvas, method.masks, method.cells, method.keep, method.seed)
    wanted = per_row(scene, rise.rise, masks, method.keep, method.patch)
    close(method.explain(scene).arrays["map"], wanted)


def test_rise_over_all_nets_equals_reference(model: nets.TinyVQA) -> None:
    scene = nets.scene(model, nets.QUESTIONS[:2])
    wanted = per_row(scene, rise.rise, rise.draw(scene.canvas, 5, 7, 0.5, 0), 0.5)
    close(RISE(masks=5).explain(scene).arrays["map"], wanted)


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_masks_of_rise_show_a_pixel_as_often_as_they_keep_it(keep: float) -> None:
    masks = RandomMasks.draw(RISE(masks=3000, keep=keep), nets.canvas())[0:3000]
    assert 0 <= masks.min() < 0.01 < 0.99 < masks.max() <= 1
    np.testing.assert_allclose(masks.mean(0), keep, atol=0.04)
    assert masks.mean().item() == pytest.approx(keep, abs=0.01)


def test_masks_of_rise_hang_on_image_seed_and_number_alone() -> None:
    few, many, seeded, elsewhere = (
        RandomMasks.draw(RISE(masks=n, seed=seed), nets.canvas(image))
        for n, seed, image in ((9, 0, 0), (99, 0, 0), (9, 1, 0), (9, 0, 1))
    )
    assert torch.equal(few[2:9], torch.cat([many[2:4], many[4:9]]))
    for other in (seeded, elsewhere):
        assert not torch.isclose(few[0:9], other[0:9]).flatten(1).all(1).any()


class Spot(nets.BlackBox):
    """Its first answer is the surer the brighter one corner of the image is."""

    def logits(self, canvas: Tensor, questions: object) -> Tensor:
        corner = canvas[:, :, 16:, :6].mean((1, 2, 3)) / 50
        return torch.stack([corner, torch.full_like(corner, 2.5)], 1)


def test_rise_is_highest_where_the_answer_is_seen() -> None:
    model = freeze(Spot())
    model.answers = ("bright", "dark")
    scene = Scene(model, torch.full((3, 24, 20), 255.0), [("where",)], [1], [1], batch=64)
    bright, dark = RISE(masks=2000, patch=(0, 0, 0)).explain(scene).arrays["map"]
    inside = np.zeros((24, 20), bool)
    inside[16:, :6] = True
    assert bright[inside].min() > bright[:12].max()
    assert inside.flat[bright.argmax()]
    assert dark[inside].max() < dark[:12].min()


def test_rise_refuses_more_cells_than_pixels() -> None:
    geometry = Geometry(input_height=24, input_width=20)
    assert RISE().passes(geometry) == 1000
    assert RISE(cells=20).arrays(geometry)[0].pixels
    with pytest.raises(UserError) as error:
        RISE(cells=21).arrays(geometry)
    assert str(error.value) == (
        "rise: masks of 21 cells a side do not fit an input of 24 x 20 pixels; choose 2 to 20 "
        "cells."
    )


def test_rise_shares_its_sweep_with_the_same_masks_alone(plain: nets.TinyVQA) -> None:
    passes, scene = record_batches(plain), nets.scene(plain, batch=8)
    options = ({}, {"cells": 4}, {"keep": 0.4}, {"seed": 1}, {"masks": 9}, {"patch": (0, 0, 0)})
    made = [RISE(**{"masks": 10, **changed}) for changed in options]
    maps = [method.explain(scene).arrays["map"] for method in made * 2]
    assert sum(passes) == 1 + 5 * 10 + 9
    assert max(passes) == 5
    assert len({values.tobytes() for values in maps}) == len(made)


@pytest.mark.parametrize("reduction", ["l2_norm", "grad_x_input"])
def test_word_gradient_over_all_nets_equals_reference(model: nets.TinyVQA, reduction: str) -> None:
    scene = nets.scene(model)
    got = WordGradient(reduction=reduction).explain(scene).importances
    for importances, row in zip(got, scene.rows, strict=True):
        question = scene.questions[row.question]
        close(
            importances,
            words.word_gradient(model, scene.canvas, question, row.answer, "logit", reduction),
        )


@pytest.mark.parametrize("model", [nets.build("plain"), nets.black_box()], ids=["split", "box"])
def test_word_occlusion_equals_reference(model: nets.TinyVQA | nets.BlackBox) -> None:
    scene = nets.scene(model)
    got = WordOcclusion().explain(scene)
    for importances, row in zip(got.importances, scene.rows, strict=True):
        question = scene.questions[row.question]
        drops, tops = words.word_occlusion(model, scene.canvas, question, row.answer)
        close(importances, drops)
        assert got.top_answers[row.question].tolist() == tops


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_gradient_methods_equal_reference(plain: nets.TinyVQA, score: str) -> None:
    scene = nets.scene(plain)
    saliency = per_row(scene, gradients.pixel_gradient, score, "saliency")
    close(Saliency(score=score).explain(scene).arrays["map"], np.abs(saliency).max(1))
    signed = per_row(scene, grad_cam.grad_cam, score)
    close(GradCam(score=score).explain(scene).arrays["signed"], signed)
    row = scene.rows[1]
    question = scene.questions[row.question]
    wanted = words.word_gradient(plain, scene.canvas, question, row.answer, score, "l2_norm")
    close(WordGradient(score=score).explain(scene).importances[1], wanted)


def test_scores_of_occlusion_are_three_different_drops(plain: nets.TinyVQA) -> None:
    scene = nets.scene(plain)
    drops = {s: Occlusion(grid=3, score=s).explain(scene).arrays for s in SCORES}
    close(drops["log_probability"]["drop"], drops["probability"]["log_drop"])
    logits = occlusion_reference(scene, 3, lambda clean, painted, a: clean[a] - painted[..., a])
    close(drops["logit"]["drop"], logits)


@pytest.mark.parametrize("reduction", ["abs_max", "abs_sum", "sum"])
def test_channel_reductions_equal_reference(plain: nets.TinyVQA, reduction: str) -> None:
    scene = nets.scene(plain)
    full = per_row(scene, gradients.pixel_gradient, "logit", "saliency")
    wanted = np.array([gradients.reduce_channels(pixels, reduction) for pixels in full])
    close(Saliency(reduction=reduction).explain(scene).arrays["map"], wanted)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_float32_over_all_nets_keeps_ranks_and_values(
    model: nets.TinyVQA, method: type[ImageMethod]
) -> None:
    wanted = method().explain(nets.scene(model)).arrays["map"]
    got = method().explain(nets.scene(model.float())).arrays["map"]
    assert got.dtype == np.float32
    assert np.median(np.abs(got - wanted)) < 1e-5 * np.abs(wanted).max()
    for a, b in zip(got, wanted, strict=True):
        if np.ptp(b) > 0:
            assert spearmanr(a.ravel(), b.ravel()).statistic >= 0.999


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_questions_together_equal_questions_alone(
    plain: nets.TinyVQA, method: type[ImageMethod]
) -> None:
    together = image_method(method).explain(nets.scene(plain)).arrays
    alone = [image_method(method).explain(nets.scene(plain, [q])).arrays for q in nets.QUESTIONS]
    for name, array in together.items():
        close(array, np.concatenate([arrays[name] for arrays in alone]))


@pytest.mark.parametrize("method", [WordOcclusion, WordGradient])
def test_word_scores_of_questions_together_equal_questions_alone(
    plain: nets.TinyVQA, method: type[WordOcclusion]
) -> None:
    together = method().explain(nets.scene(plain)).importances
    scenes = [nets.scene(plain, [question]) for question in nets.QUESTIONS]
    alone = [values for scene in scenes for values in method().explain(scene).importances]
    for a, b in zip(together, alone, strict=True):
        close(a, b)


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("method", [Occlusion, RISE, Saliency, WordOcclusion])
def test_batch_size_changes_nothing(plain: nets.TinyVQA, method: type[Method], batch: int) -> None:
    def values(batch: int) -> np.ndarray:
        made = RISE(masks=40) if method is RISE else method()
        result = made.explain(nets.scene(plain, batch=batch))
        arrays = result.importances if method is WordOcclusion else result.arrays.values()
        return np.concatenate([array.ravel() for array in arrays])

    close(values(batch), values(32))


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_arrays_are_as_announced(plain: nets.TinyVQA, method: type[ImageMethod]) -> None:
    made, scene = image_method(method), nets.scene(plain)
    specs = {spec.name: spec for spec in made.arrays(plain.geometry)}
    arrays = made.explain(scene).arrays
    assert made.primary in specs
    assert arrays.keys() == specs.keys()
    for name, spec in specs.items():
        first = len(scene.rows) if spec.per_target else len(scene.questions)
        assert arrays[name].shape == (first, *spec.shape)
        assert len(spec.dims) == len(spec.shape)


def record_batches(model: nets.TinyVQA) -> list[int]:
    """Fills with the batch size of every trunk pass to come."""
    sizes: list[int] = []
    model.trunk_net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])))
    return sizes


def test_trunk_sees_each_occluded_image_once(plain: nets.TinyVQA) -> None:
    passes = record_batches(plain)
    scene = nets.scene(plain, batch=8)
    for score in SCORES:
        Occlusion(grid=5, score=score).explain(scene)
    assert sorted(passes) == [1, 6, 6, 6, 7]


def test_gradient_methods_share_one_trunk_pass(plain: nets.TinyVQA) -> None:
    passes = record_batches(plain)
    scene = nets.scene(plain, gradients=True)
    for method in GRADIENT_METHODS:
        method().explain(scene)
    WordGradient().explain(scene)
    assert passes == [1]


def test_word_methods_need_no_further_trunk_pass(plain: nets.TinyVQA) -> None:
    passes = record_batches(plain)
    scene = nets.scene(plain)
    WordOcclusion().explain(scene)
    assert passes == [1]


def test_attention_is_mean_over_glimpses(plain: nets.TinyVQA) -> None:
    scene = nets.scene(plain)
    arrays = Attention().explain(scene).arrays
    np.testing.assert_allclose(arrays["glimpses"].sum((2, 3)), 1)
    close(arrays["map"], np.repeat((arrays["glimpses"][:, 0] + arrays["glimpses"][:, 1]) / 2, 2, 0))


def test_head_that_overwrites_its_features_leaves_the_scene_intact() -> None:
    scene = nets.scene(nets.build("plain", "pooled"), [("where",)])
    before = scene.features.clone()
    for method in (Occlusion(grid=2), GradCam(), WordOcclusion(), WordGradient()):
        method.explain(scene)
    torch.testing.assert_close(scene.features, before, rtol=0, atol=0)


def test_grad_cam_of_negative_evidence_is_zero_and_keeps_its_signed_map() -> None:
    model = nets.build("plain", "pooled")
    head = model.head_net
    head.hidden.weight.abs_()
    head.hidden.bias.abs_()
    head.answer.weight.copy_(-head.answer.weight.abs())
    arrays = GradCam().explain(nets.scene(model)).arrays
    assert (arrays["map"] == 0).all()
    assert (arrays["signed"] < 0).any()


class Confident(nets.BlackBox):
    """Two answers, the first ahead by a gap that painting a cell changes a little."""

    gap = 25.0

    def logits(self, canvas: Tensor, questions: object) -> Tensor:
        ahead = self.gap - canvas.mean((1, 2, 3)) / 255
        return torch.stack([ahead, torch.zeros_like(ahead)], 1)


@pytest.mark.parametrize("gap", [9.0, 25.0, 60.0])
def test_occlusion_of_confident_answer_keeps_its_drops(gap: float) -> None:
    model = Confident()
    model.gap, model.answers = gap, ("yes", "no")
    scene = Scene(model, nets.canvas().float(), [("where",)], [1], [1])
    arrays = Occlusion(grid=4).explain(scene).arrays
    ahead = model.logits(scene.canvas[None], None)[0, 0].item()
    covers, fill = (occlusion.cells(24, 4), occlusion.cells(20, 4)), occlusion.colour(scene.canvas)
    painted = occlusion.occlusion(model, scene.canvas, ("where",), *covers, fill)[..., 0]
    drops = expit(-painted) - expit(-ahead)
    assert np.unique(drops).size > 8
    np.testing.assert_allclose(arrays["drop"], [drops, -drops], rtol=1e-6)
    logs = np.log1p(np.exp(-painted)) - np.log1p(np.exp(-ahead))
    np.testing.assert_allclose(arrays["log_drop"], [logs, painted - ahead + logs], rtol=1e-6)


@pytest.mark.parametrize("score", ["probability", "log_probability"])
def test_gradient_of_confident_answer_does_not_vanish(score: str) -> None:
    model, exact = nets.build("plain"), nets.build("plain")
    for each in (model, exact):
        each.head_net.answer.bias[0] += 25
    got = Saliency(score=score).explain(nets.scene(model.float())).arrays["map"][0]
    wanted = Saliency(score=score).explain(nets.scene(exact)).arrays["map"][0]
    assert spearmanr(got.ravel(), wanted.ravel()).statistic >= 0.999
    assert 0.99 < got.max() / wanted.max() < 1.01


def test_dropped_word_equals_shorter_question_tokenised_afresh(plain: nets.TinyVQA) -> None:
    question = "what colour is the circle"
    scene = nets.scene(plain, [plain.tokenise(question)])
    tops = WordOcclusion().explain(scene).top_answers[0]
    drops = WordOcclusion(score="logit").explain(scene).importances[0]
    for i, word in enumerate(question.split()):
        afresh = nets.scene(plain, [plain.tokenise(question.replace(word, ""))])
        logits = afresh.output.logits[0]
        assert tops[i] == logits.argmax()
        answer = scene.rows[0].answer
        assert drops[i] == pytest.approx(float(scene.output.logits[0, answer] - logits[answer]))


def test_single_word_question_is_compared_with_the_empty_one(plain: nets.TinyVQA) -> None:
    scene = nets.scene(plain, [("where",)])
    drops = WordOcclusion(score="logit").explain(scene).importances
    empty = plain.logits(scene.canvas[None], [()])[0]
    assert drops[0].shape == (1,)
    assert drops[0][0] == pytest.approx(
        float(scene.output.logits[0].max() - empty[scene.rows[0].answer])
    )


@pytest.mark.parametrize("questions", [[()], [(), ("where",)]])
@pytest.mark.parametrize("method", [WordOcclusion, WordGradient])
def test_empty_question_has_no_importances(
    plain: nets.TinyVQA, method: type[WordOcclusion], questions: list[tuple[str, ...]]
) -> None:
    result = method().explain(nets.scene(plain, questions))
    assert [len(i) for i in result.importances] == [len(q) for q in questions for _ in range(2)]


def test_long_question_is_answered_in_batches(plain: nets.TinyVQA) -> None:
    scene = nets.scene(plain, [("is", "the") * 250], batch=16)
    assert WordOcclusion().explain(scene).importances[0].shape == (500,)


def test_random_is_fixed_by_question_and_seed(plain: nets.TinyVQA) -> None:
    maps = Random().explain(nets.scene(plain)).arrays["map"]
    np.testing.assert_array_equal(maps, Random().explain(nets.scene(plain)).arrays["map"])
    assert not np.array_equal(maps, Random(seed=1).explain(nets.scene(plain)).arrays["map"])
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])
    assert maps[0, 0, 0] == np.float32(0.5221571)


def test_center_is_a_symmetric_gaussian(plain: nets.TinyVQA) -> None:
    center = Center(grid=5, sigma=0.2).explain(nets.scene(plain)).arrays["map"][0]
    np.testing.assert_array_equal(center, center[::-1])
    np.testing.assert_array_equal(center, center.T)
    assert center[2, 2] == 1
    assert center[2, 3] == pytest.approx(np.exp(-0.5))
