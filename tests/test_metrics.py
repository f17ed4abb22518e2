"""Metrics against literal replicas, scipy and torch, and the ways in which they go wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata, spearmanr

from schemas.frame import Frame
from tests.reference import metrics as reference
from workers.errors import BadExample, UserError
from workers.metrics.frame import cut
from workers.metrics.rank_correlation import RankCorrelation
from workers.metrics.ranks import average_ranks
from workers.metrics.resampling import resize
from workers.metrics.tang_yuan import TangYuan

SIZES = [(14, 14), (16, 16), (28, 28), (31, 19), (10, 40), (40, 10), (7, 7), (1, 1)]
SIDE = 20
"""A side at which the replicas' loops are quick."""
FEW_VALUES = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])


def signed_map(seed, shape, sparse=0.0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * (rng.random(shape) >= sparse)
    return values.astype(np.float32)


def human_map(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32)


def score(metric, model, human):
    return metric.score(metric.prepare([model]), metric.prepare([human]))


def value(metric, model, human, name):
    scores = score(metric, model, human)[name]
    return scores.values[0], scores.statuses[0]


# Scaling


@pytest.mark.parametrize("shape", SIZES)
def test_resize_any_shape_equals_loops(shape):
    values = np.abs(signed_map(0, shape))
    assert resize(values, 14) == pytest.approx(reference.resize(values, 14), rel=1e-6)


def test_resize_down_by_an_integer_is_the_block_mean():
    values = human_map(0, (56, 56))
    blocks = values.reshape(14, 4, 14, 4).mean(axis=(1, 3))
    assert resize(values, 14) == pytest.approx(blocks, rel=1e-6)


def test_resize_up_equals_torch_bilinear_half_pixel():
    values = signed_map(1, (14, 14))
    tensor = torch.from_numpy(values)[None, None].double()
    expected = torch.nn.functional.interpolate(tensor, size=448, mode="bilinear")[0, 0].numpy()
    assert resize(values, 448) == pytest.approx(expected, abs=1e-6)


def test_resize_down_bilinear_without_antialiasing_is_another_map():
    noise = np.abs(signed_map(2, (448, 448)))
    tensor = torch.from_numpy(noise)[None, None]
    bilinear = torch.nn.functional.interpolate(tensor, size=14, mode="bilinear")[0, 0].numpy()
    assert spearmanr(resize(noise, 14).ravel(), bilinear.ravel()).statistic < 0.3


@pytest.mark.parametrize("shape", [(30, 45), (9, 11)])
def test_resize_plateau_stays_one_value(shape):
    values = np.full(shape, 0.1, np.float32)
    assert len(np.unique(resize(values, 14))) == 1


@pytest.mark.parametrize(
    "bad", [np.full((3, 3), np.nan), np.array([[np.inf, 1.0]]), np.ones(5), np.ones((0, 4))]
)
def test_prepare_map_that_is_none_is_a_bad_example(bad):
    with pytest.raises(BadExample, match=r"map 1 of 2, shape .* cannot be scored"):
        RankCorrelation().prepare([np.eye(3), bad])


# Ranks


MAGNITUDES = st.floats(0, width=32, allow_infinity=False) | st.sampled_from([0.0, 0.5, 1.0])


@given(arrays(np.float32, st.integers(1, 60), elements=MAGNITUDES))
def test_average_ranks_with_ties_equals_scipy(values):
    values = np.abs(values)  # -0.0 is a zero
    assert np.array_equal(average_ranks(values), rankdata(values))


@settings(deadline=None)
@given(
    arrays(np.float32, (14, 14), elements=FEW_VALUES),
    arrays(np.float32, (14, 14), elements=FEW_VALUES),
    arrays(np.bool_, (14, 14)),
)
def test_rank_correlation_with_ties_and_flipped_signs_equals_scipy(model, human, flips):
    measured, status = value(RankCorrelation(), np.where(flips, -model, model), human, NAME)
    model, human = np.abs(model).ravel(), np.abs(human).ravel()
    if model.min() == model.max():
        assert (status, np.isnan(measured)) == ("degenerate_model", True)
    elif human.min() == human.max():
        assert (status, np.isnan(measured)) == ("degenerate_human", True)
    else:
        assert measured == pytest.approx(spearmanr(model, human).statistic, abs=1e-9)


NAME = "rank_correlation"


@pytest.mark.parametrize("shape", [(16, 16), (31, 19), (10, 40)])
def test_rank_correlation_any_shape_equals_replica(shape):
    model, human = signed_map(3, shape, sparse=0.5), human_map(4, (48, 64))
    measured, _ = value(RankCorrelation(), model, human, NAME)
    assert measured == pytest.approx(reference.rank_correlation(model, human), abs=1e-9)


def test_rank_correlation_of_sparse_maps_is_not_inflated_by_ties():
    """Ranks by ``argsort(argsort)`` order tied zeros by position, alike in both maps."""
    metric = RankCorrelation()
    models = metric.prepare([signed_map(i, (14, 14), sparse=0.8) for i in range(300)])
    humans = metric.prepare([signed_map(i, (14, 14), sparse=0.8) for i in range(300, 600)])
    assert abs(metric.score(models, humans)[NAME].values.mean()) < 0.02

    def naive(ranked):
        return np.argsort(np.argsort(np.round(ranked.ranks, 12), kind="stable"))

    inflated = [np.corrcoef(naive(m), naive(h))[0, 1] for m, h in zip(models, humans, strict=True)]
    assert np.mean(inflated) > 0.1


def test_score_batch_equals_singles_and_one_stands_against_many():
    metric = RankCorrelation()
    maps = [signed_map(i, shape) for i, shape in enumerate([(14, 14), (20, 30), (9, 9)])]
    human = human_map(9, (33, 44))
    many = metric.score(metric.prepare(maps), metric.prepare([human]))[NAME].values
    repeated = metric.score(metric.prepare(maps), metric.prepare([human] * 3))[NAME].values
    singles = [value(metric, m, human, NAME)[0] for m in maps]
    assert many.tolist() == repeated.tolist() == singles


def test_score_batches_of_unequal_length_are_refused():
    metric = RankCorrelation()
    maps = metric.prepare([signed_map(i, (14, 14)) for i in range(3)])
    with pytest.raises(ValueError, match="zip"):
        metric.score(maps, maps[:2])


@pytest.mark.parametrize("metric", [RankCorrelation(), TangYuan(side=SIDE)])
def test_constant_maps_are_named_and_valued_nan(metric):
    flat, varied = np.full((16, 16), 0.3, np.float32), signed_map(5, (16, 16))
    for model, human, expected in [
        (flat, varied, "degenerate_model"),
        (varied, flat, "degenerate_human"),
        (flat, flat, "degenerate_model"),
    ]:
        scores = score(metric, model, human)
        assert set(scores) == set(metric.names)
        assert all(s.statuses == [expected] and np.isnan(s.values).all() for s in scores.values())


# Tang and Yuan


@pytest.mark.parametrize("ties", ["above_minimum", "exact_k"])
@pytest.mark.parametrize("sparse", [0.0, 0.95])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (7, 7), (33, 26)])
def test_tang_yuan_equals_replica(ties, sparse, shape):
    model, human = signed_map(6, shape, sparse), human_map(7, (48, 36)) // 32
    metric = TangYuan(side=SIDE, ties=ties)
    expected = reference.tang_yuan(model, human, SIDE, ties=ties)
    measured = {name: s.values[0] for name, s in score(metric, model, human).items()}
    assert measured == pytest.approx(expected, abs=1e-9, nan_ok=True)


@settings(deadline=None)
@given(
    arrays(np.float32, (6, 6), elements=FEW_VALUES),
    arrays(np.float32, (6, 6), elements=FEW_VALUES),
    st.sampled_from(["above_minimum", "exact_k"]),
)
def test_tang_yuan_with_ties_equals_replica(model, human, ties):
    scores = score(TangYuan(side=6, top=0.25, ties=ties), model, human)
    if scores["ty_rank"].statuses == ["ok"]:
        expected = reference.tang_yuan(model, human, 6, 0.25, ties)
        measured = {name: s.values[0] for name, s in scores.items()}
        assert measured == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_tang_yuan_few_nonzero_pixels_are_not_padded():
    """The paper's precision and recall differ, so its regions have different areas."""
    model, human = np.zeros((SIDE, SIDE)), human_map(8, (SIDE, SIDE))
    model[5, 5:15] = 1
    human[5, 5:10] = 999
    scores = score(TangYuan(side=SIDE), model, human)
    assert scores["ty_disc_intersection"].values[0] >= 5
    assert scores["ty_precision"].values[0] == pytest.approx(4 * scores["ty_recall"].values[0])


def test_tang_yuan_exact_k_gives_equal_areas():
    model = np.zeros((SIDE, SIDE))
    model[5, 5:15] = 1
    scores = score(TangYuan(side=SIDE, ties="exact_k"), model, human_map(8, (SIDE, SIDE)))
    assert scores["ty_precision"].values[0] == pytest.approx(scores["ty_recall"].values[0])


def test_tang_yuan_both_readings_stand_side_by_side():
    """A map of ten pixels: its own region, and one padded to k; the same where nothing is tied."""
    model, human = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    model[5, 5:15] = human[5, 5:15] = 1
    human[0, 0] = 0.5
    scores = {n: s.values[0] for n, s in score(TangYuan(side=SIDE), model, human).items()}
    k = round(0.1 * SIDE**2)
    assert scores["ty_disc_intersection"] == 10
    assert 10 <= scores["ty_disc_intersection_exact"] <= k
    assert scores["ty_f1_exact"] == pytest.approx(scores["ty_disc_intersection_exact"] / k)

    untied = score(TangYuan(side=SIDE), signed_map(1, (SIDE, SIDE)), signed_map(2, (SIDE, SIDE)))
    for name in ("ty_disc_intersection", "ty_iou", "ty_f1", "ty_f1_nonempty"):
        assert untied[f"{name}_exact"].values == pytest.approx(untied[name].values)


def test_tang_yuan_empty_overlap_is_zero_f1_and_left_out_beside_it():
    model, human = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    model[0, 0] = human[9, 9] = 1
    scores = score(TangYuan(side=SIDE), model, human)
    assert (scores["ty_f1"].values[0], scores["ty_f1"].statuses) == (0.0, ["ok"])
    assert scores["ty_f1_nonempty"].statuses == ["empty_overlap"]
    assert np.isnan(scores["ty_f1_nonempty"].values[0])


@given(st.integers(0, 1000), st.floats(0, 0.99))
@settings(deadline=None, max_examples=30)
def test_tang_yuan_dice_equals_f1(seed, sparse):
    model, human = signed_map(seed, (SIDE, SIDE), sparse), human_map(seed, (SIDE, SIDE))
    scores = score(TangYuan(side=SIDE), model, human)
    if scores["ty_f1"].statuses == ["ok"]:
        assert scores["ty_f1"].values[0] == pytest.approx(scores["ty_dice"].values[0], abs=1e-5)


def test_tang_yuan_intersection_of_a_nearly_uniform_map_is_one_over_the_pixels():
    model = np.ones((448, 448), np.float32)
    model[0, 0] = 0
    measured, _ = value(TangYuan(), model, human_map(1, (120, 160)), "ty_intersection")
    assert measured == pytest.approx(1 / 448**2, rel=1e-4)


def test_tang_yuan_scale_of_a_map_changes_nothing():
    model, human = signed_map(2, (16, 16)), human_map(3, (30, 40))
    metric = TangYuan(side=SIDE)
    small, large = score(metric, model * 2.0**-6, human), score(metric, model * 2.0**8, human)
    for name in metric.names:
        assert small[name].values == pytest.approx(large[name].values, rel=1e-4)


def test_conventions_name_size_and_ties():
    assert RankCorrelation(side=16).conventions().startswith("abs; area down, bilinear up to 16x16")
    assert "ties exact_k" in TangYuan(ties="exact_k").conventions()


# Frames


def frame(top=0.0, left=0.0, bottom=1.0, right=1.0):
    return Frame(
        top=top,
        left=left,
        bottom=bottom,
        right=right,
        image_height=480,
        image_width=640,
        input_height=448,
        input_width=448,
    )


def test_cut_whole_image_changes_nothing():
    human = human_map(0, (37, 51))
    assert np.array_equal(cut(human, frame()), human)


def test_cut_whole_pixels_is_a_slice():
    human = human_map(0, (48, 64))
    assert np.array_equal(cut(human, frame(left=1 / 8, right=7 / 8)), human[:, 8:56])


@given(st.floats(0, 0.45), st.floats(0, 0.45), st.floats(0.55, 1), st.floats(0.55, 1))
@settings(deadline=None, max_examples=25)
def test_cut_fractional_frame_equals_rectangle_means(top, left, bottom, right):
    human = human_map(1, (11, 13))
    inside = cut(human, frame(top, left, bottom, right))
    rows, columns = np.linspace(top * 11, bottom * 11, len(inside) + 1), inside.shape[1]
    edges = np.linspace(left * 13, right * 13, columns + 1)
    expected = [
        [
            reference.rectangle_mean(human, *rows[i : i + 2], *edges[j : j + 2])
            for j in range(columns)
        ]
        for i in range(len(inside))
    ]
    assert inside == pytest.approx(np.array(expected), rel=1e-5)


def test_cut_leaves_out_what_the_model_never_saw():
    human = np.zeros((40, 40), np.float32)
    human[0, 0] = 1
    assert not cut(human, frame(0.1, 0.1, 0.9, 0.9)).any()


def test_cut_empty_frame_is_a_user_error():
    with pytest.raises(UserError, match=r"frame rows 0.5..0.5, columns 0..1 is empty"):
        cut(np.ones((4, 4)), frame(top=0.5, bottom=0.5))


def test_cut_sliver_of_a_pixel_is_one_cell():
    assert cut(np.ones((3, 3)), frame(0.5, 0.5, 0.51, 0.51)).shape == (1, 1)


def test_rank_correlation_on_the_frame_ignores_the_unseen_border():
    """A map that follows attention inside the crop is perfect, whatever lies outside."""
    human = human_map(5, (64, 64))
    model = human[8:56, 8:56]
    seen = cut(human, frame(1 / 8, 1 / 8, 7 / 8, 7 / 8))
    assert value(RankCorrelation(), model, seen, NAME)[0] == pytest.approx(1)
    assert value(RankCorrelation(), model, human, NAME)[0] < 0.5
