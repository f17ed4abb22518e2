"""The studies' statistics: equal to scipy, statsmodels or replicas, and right about known truth."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from pipeline.studies.statistics.columns import Moments
from pipeline.studies.statistics.correlations import clustered_intervals, pearson, spearman
from pipeline.studies.statistics.families import benjamini_hochberg
from pipeline.studies.statistics.groups import hedges_g, t_test
from pipeline.studies.statistics.pairs import paired, sign_flips, sign_test
from pipeline.studies.statistics.permutation import Permutations
from pipeline.studies.statistics.proportions import mcnemar_test, proportion
from pipeline.studies.summary import Bootstrap, effective_clusters
from tests.reference import statistics as reference

QUICK = Bootstrap(resamples=200)
COARSE = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 7.0])
"""Values with many ties."""
GROUP = st.lists(COARSE, min_size=2, max_size=12)
SPREAD = GROUP.filter(lambda values: len(set(values)) > 1)


def row(frame: pd.DataFrame) -> pd.Series:
    assert len(frame) == 1
    return frame.iloc[0]


def generated(seed, n, k=5, missing=0.2):
    """Columns with ties and gaps."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, k)).round(1)
    values[rng.random((n, k)) < missing] = np.nan
    return values


# Two groups


@pytest.mark.filterwarnings("ignore:Precision loss occurred")  # scipy's, of a constant group
@pytest.mark.parametrize("equal_variances", [False, True])
@given(SPREAD, GROUP)
@settings(max_examples=40, deadline=None)
def test_t_test_equals_scipy_and_statsmodels(equal_variances, first, second):
    found = row(t_test(np.array(first), np.array(second), equal_variances))
    theirs = stats.ttest_ind(first, second, equal_var=equal_variances)
    bounds = CompareMeans(DescrStatsW(first), DescrStatsW(second)).tconfint_diff(
        usevar="pooled" if equal_variances else "unequal"
    )
    assert found[["t", "df", "p"]].tolist() == pytest.approx(
        [theirs.statistic, theirs.df, theirs.pvalue]
    )
    assert found[["ci_low", "ci_high"]].tolist() == pytest.approx(bounds)
    assert found["reason"] is None


def test_t_test_columns_with_gaps_are_tested_each_by_itself():
    first, second = generated(0, 40), generated(1, 25)
    found = t_test(first, second)
    for k in range(5):
        one, two = (side[~np.isnan(side[:, k]), k] for side in (first, second))
        assert found["p"][k] == pytest.approx(stats.ttest_ind(one, two, equal_var=False).pvalue)
        assert (found["n_first"][k], found["n_second"][k]) == (len(one), len(two))


@given(SPREAD, GROUP)
@settings(max_examples=40, deadline=None)
def test_hedges_g_equals_the_replica(first, second):
    found = row(hedges_g(np.array(first), np.array(second)))
    assert found[["g", "g_low", "g_high"]].tolist() == pytest.approx(
        reference.hedges_g(first, second)
    )


@pytest.mark.parametrize("test", [t_test, hedges_g])
@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([], [1, 2], "group has 0 examples; {} needs 2"),
        ([1.0], [1, 2, 3], "group has 1 example; {} needs 2"),
        ([np.nan, 1.0], [1, 2, 3], "group has 1 example; {} needs 2"),
        ([1, 1, 1], [0.1, 0.1, 0.1], "all values of each group are equal; {} needs spread"),
    ],
)
def test_groups_that_cannot_be_tested_say_why(test, first, second, reason):
    found = row(test(np.array(first, float), np.array(second, float)))
    assert found["reason"] == reason.format("an effect size" if test is hedges_g else "a t-test")
    tested = [c for c in ("t", "df", "p", "ci_low", "g", "g_low", "g_high") if c in found]
    assert found[tested].isna().all()


def test_groups_that_cannot_be_tested_leave_their_neighbours_alone():
    first, second = generated(2, 20, missing=0), generated(3, 20, missing=0)
    alone = t_test(first, second).drop(index=2).reset_index(drop=True)
    first[:, 2] = np.nan
    found = t_test(first, second)
    assert found["reason"][2] == "group has 0 examples; a t-test needs 2"
    pd.testing.assert_frame_equal(found.drop(index=2).reset_index(drop=True), alone)


@given(st.lists(st.floats(-100, 100), max_size=9))
@settings(max_examples=60, deadline=None)
def test_moments_equal_numpy(values):
    found = Moments.of(np.array(values, float)[:, None])
    assert found.n[0] == len(values)
    assert found.constant[0] == (len(set(values)) < 2)
    if values:
        assert found.mean[0] == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) > 1:
        assert found.sd[0] == pytest.approx(np.std(values, ddof=1), abs=1e-9)


# Permutation


@pytest.mark.parametrize(
    ("labels", "clusters"),
    [
        ([1, 1, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]),
        ([1, 1, 1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 2, 3, 4]),
        ([1, 0, 1, 1, 0, 0, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 4, 5]),
    ],
    ids=["single questions", "whole images", "grouping varies within images"],
)
def test_permutation_test_equals_all_exchanges(labels, clusters):
    values = np.random.default_rng(0).normal(size=(len(labels), 3)).round(1) + labels[0]
    found = Permutations(resamples=20_000).test(values, np.array(labels), np.array(clusters))
    for k in range(3):
        exact = reference.permutation_p(values[:, k].tolist(), labels, clusters)
        assert found["p"][k] == pytest.approx(exact, abs=0.015)
        expected = reference.difference(values[:, k].tolist(), labels)
        assert found["difference"][k] == pytest.approx(expected)


def test_permutation_test_of_single_questions_agrees_with_scipy():
    values, labels = np.random.default_rng(1).normal(size=30), np.arange(30) < 12
    values[labels] += 0.6
    found = row(Permutations(resamples=9_999).test(values, labels, np.arange(30)))
    theirs = stats.permutation_test(
        (values[labels], values[~labels]),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=9_999,
        rng=np.random.default_rng(0),
    )
    assert found["p"] == pytest.approx(theirs.pvalue, abs=0.015)


def test_permutation_blocks_and_seed(monkeypatch):
    values, labels = generated(4, 60), np.arange(60) % 3 == 0
    test = Permutations(resamples=300).test
    whole = test(values, labels, np.arange(60) // 2)
    pd.testing.assert_frame_equal(whole, test(values, labels, np.arange(60) // 2))
    other = Permutations(resamples=300, seed=1).test(values, labels, np.arange(60) // 2)
    assert whole["p"].tolist() != other["p"].tolist()
    monkeypatch.setattr("pipeline.studies.statistics.permutation._BLOCK", 60 * 17)
    blocked = test(values, labels, np.arange(60) // 2)
    assert blocked["p"].to_numpy() == pytest.approx(whole["p"].to_numpy(), abs=0.12)


@pytest.mark.parametrize(
    ("values", "labels", "reason"),
    [
        ([1.0, 2.0], [1, 1], "group has 0 examples; a permutation test needs 1"),
        ([], [], "group has 0 examples; a permutation test needs 1"),
        ([1.0, 1.0, 1.0], [1, 0, 0], "all values are equal; there is nothing to permute"),
    ],
)
def test_permutation_test_that_cannot_be_made_says_why(values, labels, reason):
    found = row(QUICK_PERMUTATIONS.test(np.array(values), np.array(labels), np.arange(len(values))))
    assert found["reason"] == reason
    assert np.isnan(found["p"])


QUICK_PERMUTATIONS = Permutations(resamples=199)


@pytest.mark.parametrize("pure", [True, False])
def test_permutation_test_keeps_its_level_where_images_resemble_themselves(pure):
    """1,000 worlds without a difference: values and, within images, groups go together."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    share = rng.integers(0, 2, 60) if pure else rng.beta(0.4, 0.4, 60)
    labels = rng.random(len(clusters)) < share[clusters]
    values = rng.normal(size=(60, 1000))[clusters] + 0.5 * rng.normal(size=(len(clusters), 1000))
    p = QUICK_PERMUTATIONS.test(values, labels, clusters)["p"]
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    independent = t_test(values[labels], values[~labels])["p"]
    assert (independent <= 0.05).mean() > 0.08


# Pairs


@given(st.lists(st.tuples(COARSE, COARSE), min_size=2, max_size=14))
@settings(max_examples=60, deadline=None)
def test_paired_equals_scipy(pairs):
    first, second = np.array(pairs).T
    found = row(paired(first, second, np.arange(len(pairs)), QUICK))
    if len(set(first - second)) == 1:
        assert found["reason"] == "all differences are equal; a paired test needs spread"
        assert found[["t", "p_t", "p_wilcoxon", "p_sign"]].isna().all()
        return
    theirs = stats.ttest_rel(first, second)
    assert found[["t", "p_t"]].tolist() == pytest.approx([theirs.statistic, theirs.pvalue])
    ties = len({abs(c) for c in first - second} - {0.0}) < len(pairs)
    wilcoxon = stats.wilcoxon(first, second, method="asymptotic" if ties else "exact")
    assert found["p_wilcoxon"] == pytest.approx(wilcoxon.pvalue)
    above, below = (first > second).sum(), (first < second).sum()
    assert found["p_sign"] == pytest.approx(stats.binomtest(above, above + below).pvalue)


@pytest.mark.parametrize("n", [20, 80])
def test_paired_without_ties_equals_scipy(n):
    first, second = np.random.default_rng(n).normal(size=(2, n))
    found = row(paired(first, second, np.arange(n), QUICK))
    assert found["p_wilcoxon"] == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_paired_leaves_out_rows_without_both_values():
    first, second = generated(5, 30), generated(6, 30)
    found = paired(first, second, np.arange(30) // 2, QUICK)
    both = ~np.isnan(first[:, 0]) & ~np.isnan(second[:, 0])
    assert found["n"][0] == both.sum()
    assert found["mean_first"][0] == pytest.approx(first[both, 0].mean())
    change = (first - second)[:, :1]
    assert found[["ci_low", "ci_high"]].iloc[0].tolist() == pytest.approx(
        QUICK.intervals(change, np.arange(30) // 2)[:, 0]
    )


@pytest.mark.parametrize(
    ("n", "reason"),
    [
        (0, "group has 0 pairs; a paired test needs 2"),
        (1, "group has 1 pair; a paired test needs 2"),
    ],
)
def test_paired_too_few_say_why(n, reason):
    found = row(paired(np.arange(n) + 0.5, np.zeros(n), np.arange(n), QUICK))
    assert found["reason"] == reason
    assert np.isnan(found["p_t"])


def test_sign_test_without_a_difference_has_no_p_value():
    assert np.isnan(sign_test(np.zeros((4, 1))))[0]


def test_sign_flips_of_whole_clusters_equal_all_flips():
    change = np.random.default_rng(2).normal(0.4, 1, size=(13, 2)).round(1)
    clusters = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7])
    found = sign_flips(change, clusters, Permutations(resamples=20_000))
    for k in range(2):
        exact = reference.sign_flip_p(change[:, k].tolist(), clusters.tolist())
        assert found["p"][k] == pytest.approx(exact, abs=0.015)
        assert found["difference"][k] == pytest.approx(change[:, k].mean())


def test_sign_flips_that_cannot_be_made_say_why():
    found = sign_flips(np.array([[0.0, np.nan], [0.0, np.nan]]), np.arange(2), QUICK_PERMUTATIONS)
    assert found["reason"].tolist() == [
        "all differences are 0; there is nothing to permute",
        "group has 0 pairs; a permutation test needs 1",
    ]
    assert found["p"].isna().all()


# Correlations


@given(st.lists(st.tuples(COARSE, COARSE), min_size=3, max_size=14))
@example([(0.0, 0.75), (0.25, 0.25), (0.25, 0.25), (0.5, 0.0)])
@settings(max_examples=60, deadline=None)
def test_correlations_equal_scipy(pairs):
    """Also where the ranks lie on a line and the values do not."""
    x, y = np.array(pairs).T
    if len(set(x)) < 2 or len(set(y)) < 2:
        for found in (row(pearson(x, y)), row(spearman(x, y))):
            assert found["reason"].endswith("are equal; a correlation needs spread")
            assert found[["r", "ci_low", "ci_high", "p"]].isna().all()
        return
    theirs = stats.pearsonr(x, y)
    found = row(pearson(x, y))
    assert found[["r", "p"]].tolist() == pytest.approx([theirs.statistic, theirs.pvalue], abs=1e-7)
    if len(x) > 3 and abs(theirs.statistic) < 0.999:
        bounds = theirs.confidence_interval()
        assert found[["ci_low", "ci_high"]].tolist() == pytest.approx(list(bounds))
    ranks = stats.spearmanr(x, y)
    if len(x) > 3 and abs(ranks.statistic) < 0.999:
        assert row(spearman(x, y))[["ci_low", "ci_high"]].tolist() == pytest.approx(
            reference.spearman_interval(x.tolist(), y.tolist())
        )
    assert row(spearman(x, y))[["r", "p"]].tolist() == pytest.approx(
        [ranks.statistic, ranks.pvalue], abs=1e-7
    )


def test_correlations_leave_out_rows_without_both_values():
    x, values = generated(7, 50, 1)[:, 0], generated(8, 50)
    for function, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        found = function(x, values)
        for k in range(5):
            both = ~np.isnan(x) & ~np.isnan(values[:, k])
            assert found["r"][k] == pytest.approx(theirs(x[both], values[both, k]).statistic)
            assert found["n"][k] == both.sum()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_correlation_of_too_few_says_why(n):
    found = row(pearson(np.arange(n) * 1.0, np.arange(n) * 2.0))
    plural = "example" if n == 1 else "examples"
    assert found["reason"] == f"group has {n} {plural}; a correlation needs 3"
    assert np.isnan(found["r"])


def test_correlation_of_rounding_errors_is_none():
    column = 0.1 + 0.2 * np.ones(5) + np.array([0, 1, 0, 1, 0]) * 4e-17
    assert "are equal" in row(pearson(np.arange(5.0), column))["reason"]


# Families and shares


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_equals_replica_and_skips_gaps(p):
    adjusted = benjamini_hochberg(np.array([np.nan, *p]))
    assert np.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx(reference.benjamini_hochberg(p))


def test_benjamini_hochberg_of_nothing():
    assert benjamini_hochberg(np.array([])).tolist() == []
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@given(st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_proportion_equals_statsmodels_and_wilson(hits, misses):
    n = hits + misses
    found = row(proportion(np.repeat([1.0, 0.0], [hits, misses]), np.arange(n), QUICK))
    if n == 0:
        assert found["reason"] == "group has 0 examples; a share needs 1"
        assert found[["share", "ci_low", "clustered_low"]].isna().all()
        return
    bounds = found[["ci_low", "ci_high"]].tolist()
    assert bounds == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-12)
    assert bounds == pytest.approx(reference.wilson(hits, n), abs=1e-9)
    assert found["share"] == hits / n


def test_proportion_clustered_interval_is_the_bootstrap():
    hits = (np.random.default_rng(3).random((40, 2)) < 0.3).astype(float)
    found = proportion(hits, np.arange(40) // 4, QUICK)
    bounds = QUICK.intervals(hits, np.arange(40) // 4)
    assert pytest.approx(bounds) == found[["clustered_low", "clustered_high"]].to_numpy().T


@given(st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), max_size=20))
@settings(max_examples=40, deadline=None)
def test_mcnemar_equals_a_sign_test_of_the_discordant(pairs):
    first, second = np.array([*pairs, (1, np.nan)], float).T
    found = row(mcnemar_test(first, second))
    above, below = pairs.count((1, 0)), pairs.count((0, 1))
    assert found[["n", "only_first", "only_second"]].tolist() == [len(pairs), above, below]
    if above + below:
        assert found["p"] == pytest.approx(stats.binomtest(above, above + below).pvalue)
    else:
        assert np.isnan(found["p"])
        assert found["reason"] is not None


# Known truth


def worlds(rng, sizes, draw, count=1000):
    """``count`` columns of questions of images, which share half of their variance; mean 0."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    common = draw(rng, (len(sizes), count))[clusters]
    return common + draw(rng, (len(clusters), count)), clusters


DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.gamma(4, size=shape) - 4,
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("images", [60, 200])
def test_bootstrap_interval_covers_at_its_level(images, draw):
    """1,000 worlds whose images have one to six questions."""
    rng = np.random.default_rng(images)
    values, clusters = worlds(rng, rng.integers(1, 7, images), DRAWS[draw])
    low, high = Bootstrap(resamples=1000).intervals(values, clusters)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.02)


def test_bootstrap_interval_of_ten_images_covers_where_plain_percentiles_do_not():
    rng = np.random.default_rng(0)
    values, clusters = worlds(rng, rng.integers(1, 7, 10), DRAWS["normal"])
    means = Bootstrap(resamples=1000).resampled(values, clusters)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert ((low <= 0) & (high >= 0)).mean() < 0.91
    low, high = Bootstrap(resamples=1000).intervals(values, clusters)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.03)


def test_bootstrap_interval_of_a_difference_covers_at_its_level():
    rng = np.random.default_rng(5)
    values, clusters = worlds(rng, rng.integers(1, 7, 80), DRAWS["normal"])
    first = rng.random(len(clusters)) < 0.3
    values[first] += 2
    low, high = Bootstrap(resamples=1000).differences(values, first, clusters)
    assert ((low <= 2) & (high >= 2)).mean() == pytest.approx(0.95, abs=0.02)


def test_bootstrap_interval_of_a_correlation_covers_at_its_level():
    """x and y of a question share 0.6 of their noise; x and y of an image do too."""
    rng = np.random.default_rng(6)
    sizes = rng.integers(1, 7, 120)
    shared, clusters = worlds(rng, sizes, DRAWS["normal"])
    x, _ = worlds(rng, sizes, DRAWS["normal"])
    y = 0.6 * x + 0.8 * shared
    low, high = clustered_intervals(x, y, clusters, Bootstrap(resamples=400))
    assert ((low <= 0.6) & (high >= 0.6)).mean() == pytest.approx(0.95, abs=0.02)


def test_bootstrap_bounds_equal_the_replica():
    values = np.random.default_rng(7).normal(size=(45, 3))
    values[:9, 1] = np.nan
    clusters = np.arange(45) // 3
    means, effective = QUICK.resampled(values, clusters), effective_clusters(values, clusters)
    assert effective == pytest.approx([15, 12, 15])
    for k, bounds in enumerate(QUICK.intervals(values, clusters).T):
        expected = reference.expanded_bounds(means[:, k].tolist(), effective[k])
        assert bounds == pytest.approx(expected)


def test_bootstrap_of_nothing_has_no_bounds():
    assert np.isnan(QUICK.intervals(np.empty((0, 2)), np.empty(0, int))).all()
    assert QUICK.intervals(np.empty((3, 0)), np.arange(3)).shape == (2, 0)


def test_benjamini_hochberg_keeps_false_discoveries_at_the_nominal_rate():
    """1,000 families of 50 tests, of which 10 have something to find."""
    rng = np.random.default_rng(8)
    truth = np.arange(50) < 10
    shares, found = np.empty((2, 1000))
    first, second = rng.normal(size=(2, 30, 50_000))
    p = t_test(first + np.tile(truth, 1000), second)["p"].to_numpy()
    for world, family in enumerate(p.reshape(1000, 50)):
        called = benjamini_hochberg(family) <= 0.05
        shares[world] = (called & ~truth).sum() / max(called.sum(), 1)
        found[world] = (called & truth).sum()
    assert shares.mean() <= 0.05
    assert found.mean() > 7


def test_planted_correlation_is_found_and_its_interval_covers():
    rng = np.random.default_rng(9)
    x = rng.normal(size=200)
    values = 0.3 * x[:, None] + np.sqrt(1 - 0.3**2) * rng.normal(size=(200, 1000))
    noise = rng.normal(size=(200, 1000))
    expected = 0.3 * x.std() / np.sqrt(0.09 * x.var() + 0.91)
    for function in (pearson, spearman):
        found = function(x, values)
        assert (found["p"] < 0.05).mean() > 0.95
        assert (function(x, noise)["p"] < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    bounds = pearson(x, values)
    inside = (bounds["ci_low"] <= expected) & (expected <= bounds["ci_high"])
    assert inside.mean() == pytest.approx(0.95, abs=0.02)
