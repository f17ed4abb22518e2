"""The study of Goyal et al. 2016: literal replicas, planted truth, tiny and broken runs."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline import open_run
from pipeline import run as stages
from pipeline.report.readme import replace_block, rewrite
from pipeline.studies.base import Evidence, Picture, Study, Table
from pipeline.studies.goyal2016 import cross_method, failure, instability, roc, table1, tags, words
from pipeline.studies.registry import STUDIES
from pipeline.studies.stacks import stacks
from pipeline.studies.summary import Bootstrap
from pipeline.studies.targets import of_target
from tests.conftest import Recipe
from tests.reference import goyal2016 as reference
from workers.errors import UserError
from workers.metrics.ranks import rank, rank_rows
from workers.metrics.resampling import magnitude_stack, magnitudes
from workers.models.tokenisers import TOKENISERS

QUICK = Bootstrap(resamples=200)


# Table 1


def agreement_values(rng, questions=40, per_image=2):
    """Rows as ``Evidence.values`` has them: three methods, baselines, people; some degenerate."""
    centres = {"saliency": 0.6, "noise": 0.1, "center": 0.3, "shuffled_human": 0.1, "human": 0.8}
    rows = []
    for method, centre in centres.items():
        target = "human" if method in ("human", "shuffled_human") else "predicted"
        for q in range(questions):
            value = centre + 0.1 * rng.normal() if rng.random() > 0.1 else np.nan
            rows.append((method, target, q, value))
    rows += [("saliency", "truth", q, 0.5 + 0.1 * rng.normal()) for q in range(0, questions, 4)]
    frame = pd.DataFrame(rows, columns=["method", "target", "question_id", "value"])
    literal = [(m, t, q, None if np.isnan(v) else v) for m, t, q, v in rows]
    return frame.assign(image_id=frame["question_id"] // per_image), literal


@pytest.fixture(scope="module")
def values():
    return agreement_values(np.random.default_rng(0))


def test_table1_equals_the_literal_replicas(values):
    frame, literal = values
    for target, methods in (("predicted", ["saliency", "noise"]), ("truth", ["saliency"])):
        own = of_target(frame, target, ())
        table = table1.agreement_table(own, {}, QUICK).set_index("method")
        for method in methods:
            own = [v for m, t, _, v in literal if (m, t) == (method, target) and v is not None]
            row = table.loc[method]
            assert row["mean"] == pytest.approx(np.mean(own), abs=1e-12)
            assert row["standard_error"] == pytest.approx(np.std(own, ddof=1) / len(own) ** 0.5)
            share = reference.ceiling_percentage(literal, method, target)
            assert row["ceiling"] == pytest.approx(share, abs=1e-9)
            floor = "shuffled_human"
            difference = reference.paired_difference(literal, method, floor, target)
            assert row[f"over_{floor}"] == pytest.approx(difference, abs=1e-12)


def test_table1_human_rows_count_for_the_questions_of_the_target(values):
    table = table1.agreement_table(of_target(values[0], "truth", ()), {}, QUICK).set_index("method")
    assert table.loc["human", ["n", "degenerate"]].sum() == 10
    assert table.loc["saliency", "over_center_reason"] == "the run has no values of center"


def test_table1_tells_what_beats_the_baselines(values):
    table = table1.agreement_table(of_target(values[0], "predicted", ()), {}, QUICK).set_index(
        "method"
    )
    assert table.loc["saliency", "verdict"] == "beats both"
    assert table.loc["noise", "verdict"] == "beats neither"
    assert table.loc["noise", "over_center_high"] < 0
    assert (table.loc[["human", "center"], "verdict"] == "").all()
    assert table.loc["center", "over_center_reason"] == "the baseline itself"


def test_table1_false_verdicts_are_as_rare_as_they_should_be():
    """Methods no better than either baseline: a verdict in their favour is a false discovery."""
    rng, won, worlds = np.random.default_rng(5), 0, 25
    names = ("a", "b", "c", "center", "shuffled_human")
    for _ in range(worlds):
        shared = np.repeat(rng.normal(size=30), 2)
        frames = [
            pd.DataFrame({"method": name, "value": shared + rng.normal(size=60)}) for name in names
        ]
        frame = pd.concat(frames).assign(target="predicted")
        frame["question_id"] = np.tile(np.arange(60), len(names))
        frame["image_id"] = frame["question_id"] // 2
        table = table1.agreement_table(of_target(frame, "predicted", ()), {}, QUICK)
        won += table["verdict"].str.contains("beats both|only").any()
    assert won <= 3


def test_table1_ceiling_interval_is_that_of_the_ratio():
    """A method at exactly half of what people reach has no doubt about its share."""
    human = np.random.default_rng(2).uniform(0.2, 0.9, 30)
    frames = [
        pd.DataFrame({"method": m, "target": t, "value": v, "question_id": np.arange(30)})
        for m, t, v in (("half", "predicted", human / 2), ("human", "human", human))
    ]
    frame = pd.concat(frames).assign(image_id=lambda f: f["question_id"])
    row = (
        table1.agreement_table(of_target(frame, "predicted", ()), {}, QUICK)
        .set_index("method")
        .loc["half"]
    )
    assert [row["ceiling"], row["ceiling_low"], row["ceiling_high"]] == pytest.approx([50] * 3)
    assert row["ci_high"] - row["ci_low"] > 0.02


def test_table1_without_people_or_images_says_why():
    frame = pd.DataFrame(
        {
            "method": ["occlusion", "occlusion", "grad_cam", "grad_cam"],
            "target": "predicted",
            "question_id": [0, 1, 0, 1],
            "image_id": 7,
            "value": [0.2, 0.3, np.nan, np.nan],
        }
    )
    table = table1.agreement_table(of_target(frame, "predicted", ()), {}, QUICK).set_index("method")
    assert table.loc["occlusion", "ceiling_reason"].startswith("no question has two human maps")
    assert table.loc["occlusion", "verdict"] == "not decided: too few maps"
    assert np.isnan(table.loc["occlusion", "ci_low"])
    assert table.loc["grad_cam", "reason"] == table1.CONSTANT
    assert table.loc["grad_cam", ["n", "degenerate"]].tolist() == [0, 2]
    assert "saliency" not in str(table1.sentences(table.reset_index(), "predicted"))


def test_table1_published_figures_stand_beside_every_label_of_their_method(values):
    names = {"saliency": "occlusion", "noise": "grad_cam"}
    table = table1.agreement_table(of_target(values[0], "predicted", ()), names, QUICK).set_index(
        "method"
    )
    assert table.loc["saliency", "published"] == "0.173 ± 0.004"
    assert table.loc["human", "published_mean"] == 0.623
    assert table.loc["noise", "published"] == ""


# Figure 3


@pytest.mark.parametrize(
    ("question", "tokeniser", "expected"),
    [
        ("What color is the cat?", "simple", "WP NN VBZ DT NN"),
        ("What's on the T-shirt?", "pytorch_vqa", "WP IN DT NN"),
        ("What's on the T-shirt?", "simple", "WP PRP IN DT NN NN"),
        ("Is the cat   (small)?", "pytorch_vqa", "VBZ DT NN JJ"),
        ("How many things aren't red?", "simple", "WRB JJ NNS VBP NN JJ"),
    ],
)
def test_tokens_take_the_tags_of_the_words_they_share_most_with(question, tokeniser, expected):
    assert tags.token_tags(question, TOKENISERS[tokeniser](question)) == expected.split()


@pytest.mark.parametrize(
    ("question", "tokens", "tagged"),
    [
        ("red cat", ["red", "dog"], [("red", "JJ"), ("cat", "NN")]),
        ("red cat", ["cat"], [("red", "JJ"), ("cat", "NN")]),
        ("red cat", ["red", "cat"], [("red", "JJ"), ("dog", "NN")]),
        ("red cat", ["red", "cat"], []),
        ("red cat", ["red", ""], [("red", "JJ"), ("cat", "NN")]),
    ],
)
def test_what_cannot_be_aligned_has_no_tags(question, tokens, tagged):
    assert tags.align(question, tokens, tagged) is None


def test_tag_of_the_longest_share_wins_and_of_equal_ones_the_first():
    tagged = [("ab", "X"), ("c", "Y"), ("d", "Z-PERS")]
    assert tags.align("ABC d", ["abc", "d"], tagged) == ["X", "Z"]
    assert tags.align("ABCD", ["bc", "d"], [("ab", "X"), ("cd", "Y")]) is None, "a is skipped"
    assert tags.align("ABCD", ["ab", "cd"], [("a", "X"), ("bcd", "Y")]) == ["X", "Y"]


def spoken(rng, questions=60, methods=("word_occlusion", "word_gradient")):
    """Questions of tagged words, and rows as the words table has them; importances tie often."""
    kinds = np.array(["WP", "NN", "NNS", "VBZ", "DT", "JJ"])
    tagged = {q: rng.choice(kinds, rng.integers(1, 7)).tolist() for q in range(questions)}
    rows = [
        {
            "method": method,
            "question_id": q,
            "image_id": q // 3,
            "tokens": np.array([tag.lower() for tag in own]),
            "importances": rng.integers(-3, 4, len(own)) / 4,
        }
        for method in methods
        for q, own in tagged.items()
    ]
    return pd.DataFrame(rows), tagged


def test_figure3_equals_the_literal_counting_loop():
    rows, tagged = spoken(np.random.default_rng(1))
    each = words.importance_by_word(rows, tagged)
    table = words.probabilities(each, words.frequent_tags(tagged), QUICK)
    for signed, column in ((True, "probability"), (False, "by_size")):
        for method, own in rows.groupby("method"):
            questions = [
                [
                    (tags.group_of(tag), float(v if signed else abs(v)))
                    for tag, v in zip(tagged[row.question_id], row.importances, strict=True)
                ]
                for row in own.itertuples()
            ]
            expected = reference.figure3(questions)
            got = table[table["method"] == method].set_index("group")
            assert set(got.index) == set(expected)
            for group, (n, probability, chance) in expected.items():
                assert got.loc[group, "n"] == n
                assert got.loc[group, column] == pytest.approx(probability, abs=1e-12)
                assert got.loc[group, "chance"] == pytest.approx(chance, abs=1e-12)
    assert table["n"].is_monotonic_decreasing


def test_figure3_finds_a_tag_that_always_wins():
    rows, tagged = spoken(np.random.default_rng(2))
    rows["importances"] = [
        np.array([2.0 + i if tag == "NN" else 1 / (2 + i) for i, tag in enumerate(tagged[q])])
        for q in rows["question_id"]
    ]
    single = {q: own for q, own in tagged.items() if own.count("NN") == 1}
    each = words.importance_by_word(rows, single)
    table = words.probabilities(each, ["NN", "VBZ", "DT", "JJ", "WP"], QUICK)
    noun = table[table["group"] == "noun"].iloc[0]
    assert noun["probability"] == 1
    assert noun["chance"] < noun["ci_low"] < noun["ci_high"] == 1, "Wilson's: few images"
    rest = table[~table["group"].isin(["noun", words.OTHER])]
    assert (rest["probability"] == 0).all()
    assert (rest["ci_low"] == 0).all()
    assert (rest["ci_high"] > 0).all()
    sentence = words.sentences(table)[0].sentence
    assert "count most are those tagged noun" in sentence
    assert "wh-words, which came first in the paper, 0%" in sentence


def test_figure3_noise_is_chance_within_its_interval():
    rng, covered, bars = np.random.default_rng(3), 0, 0
    for _ in range(12):
        rows, tagged = spoken(rng, 120, ["word_gradient"])
        rows["importances"] = [rng.normal(size=len(v)) for v in rows["importances"]]
        each = words.importance_by_word(rows, tagged)
        table = words.probabilities(each, words.frequent_tags(tagged), QUICK)
        covered += table["chance"].between(table["ci_low"], table["ci_high"]).sum()
        bars += len(table)
    assert covered / bars > 0.85


def test_figure3_shows_fifteen_tags_and_keeps_the_rest_in_one_row():
    tagged = {q: [f"T{t:02d}" for t in range(18) if t <= q] for q in range(20)}
    rows = pd.DataFrame(
        {
            "method": "word_gradient",
            "question_id": list(tagged),
            "image_id": list(tagged),
            "tokens": [np.array(own) for own in tagged.values()],
            "importances": [np.arange(len(own), dtype=float) for own in tagged.values()],
        }
    )
    each = words.importance_by_word(rows, tagged)
    table = words.probabilities(each, words.frequent_tags(tagged), QUICK)
    assert table["group"].tolist() == [*(f"T{t:02d}" for t in range(15)), words.OTHER]
    assert table["shown"].tolist() == [True] * 15 + [False]
    assert table["tags"].iloc[-1] == "T15 T16 T17"


def test_figure3_of_one_image_has_no_interval():
    rows, tagged = spoken(np.random.default_rng(4), 3)
    each = words.importance_by_word(rows.assign(image_id=0), tagged)
    table = words.probabilities(each, words.frequent_tags(tagged), QUICK)
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)
    assert table["probability"].notna().all()
    assert len(words.sentences(table)) == 2


# Failure prediction


def test_area_equals_all_pairs_and_sklearn():
    rng = np.random.default_rng(0)
    for _ in range(5):
        n = int(rng.integers(12, 40))
        scores, right = rng.integers(0, 6, n) / 3, rng.random(n) < 0.6
        right[:2] = [True, False]
        clusters = rng.integers(0, 8, n)
        own = roc.area(scores, right)
        value, error = reference.auc_and_error(scores.tolist(), right.tolist(), clusters.tolist())
        assert own.value == pytest.approx(value, abs=1e-12)
        assert own.value == pytest.approx(roc_auc_score(right, scores), abs=1e-12)
        assert own.error(clusters) == pytest.approx(error, abs=1e-12)


def test_area_interval_covers_the_truth_with_images_as_clusters():
    """Right and wrong answers of one image share half of their scores' variance."""
    rng, covered, worlds = np.random.default_rng(1), 0, 300
    for _ in range(worlds):
        images = np.repeat(np.arange(60), 3)
        right = rng.random(180) < 0.6
        shared = np.repeat(rng.normal(size=60), 3)
        scores = shared + rng.normal(size=180) + right
        low, high = roc.area(scores, right).interval(images, 0.95)
        covered += low <= 0.6915 <= high  # P(N(1, 2^2) > 0)
    assert covered / worlds > 0.90
    assert covered / worlds < 0.99


def test_area_of_perfect_order_has_no_error_to_estimate():
    right = np.arange(10) > 4
    own = roc.area(np.arange(10.0), right)
    assert own.value == 1
    assert np.isnan(own.interval(np.arange(10), 0.95)).all()
    assert np.isnan(roc.area(np.ones(10), right).error(np.zeros(10)))


def labelled(features, right, images):
    """Examples as ``failure.labelled`` makes them."""
    return failure.Labelled(features.assign(confidence=0.9), right, images)


def maps_of(changed, rng):
    n = len(changed)
    return pd.DataFrame({"cells_changed": changed, "drop_mean": rng.normal(size=n)})


def test_instability_that_is_failure_is_foreseen():
    rng = np.random.default_rng(3)
    right = rng.random(300) < 0.7
    changed = np.where(right, 0.1, 0.4) + 0.05 * rng.normal(size=300)
    data = labelled(maps_of(changed, rng), right, np.arange(300) // 3)
    section = failure.predict(data, QUICK)
    table = section.parts[0].frame.set_index("prediction")
    for name in (failure.MAPS, failure.PAPER):
        assert table.loc[name, "auc"] > 0.98
        assert table.loc[name, "accuracy"] > 0.95
        assert table.loc[name, "over_majority_low"] > 0.1
        assert table.loc[name, "balanced_low"] > 0.9
    assert table.loc[failure.SURE, "auc"] == pytest.approx(0.5, abs=0.1), "confidence is constant"
    features = section.parts[2].frame.set_index("feature")
    assert features.loc["cells_changed", "coefficient_high"] < 0
    assert features.loc["cells_changed", "auc"] < 0.02
    assert "tell right answers from wrong ones" in section.findings[0].sentence
    assert "add to" in section.findings[1].sentence


def test_noise_foresees_nothing():
    rng, covered, claimed, worlds = np.random.default_rng(4), 0, 0, 15
    for _ in range(worlds):
        right = rng.random(240) < 0.6
        data = labelled(maps_of(rng.random(240), rng), right, np.arange(240) // 3)
        folds = failure.image_folds(data, 0)
        scores = failure.out_of_fold(data.features[data.maps].to_numpy(), right, folds)
        low, high = roc.area(scores, right).interval(data.images, 0.95)
        covered += low <= 0.5 <= high
        claimed += low > 0.5
    assert covered >= worlds - 3
    assert claimed <= 1


def test_predictions_come_from_other_images():
    """An image's own feature tells its answers' fate exactly and no other image's: useless."""
    rng = np.random.default_rng(5)
    image_right = rng.random(60) < 0.5
    images = np.repeat(np.arange(60), 5)
    own = pd.get_dummies(images).to_numpy(float)
    data = labelled(maps_of(rng.random(300), rng), image_right[images], images)
    folds = failure.image_folds(data, 0)
    assert (pd.Series(folds).groupby(images).nunique() == 1).all()
    score = failure.out_of_fold(own, data.right, folds)
    assert roc.area(score, data.right).value < 0.6


def test_constant_feature_is_carried_along():
    rng = np.random.default_rng(6)
    right = np.arange(60) % 3 > 0
    data = labelled(maps_of(np.zeros(60), rng), right, np.arange(60))
    section = failure.predict(data, QUICK)
    features = section.parts[2].frame.set_index("feature")
    assert features.loc["cells_changed", ["coefficient", "auc"]].tolist() == [0, 0.5]
    assert "do not tell" in section.findings[0].sentence


@pytest.mark.parametrize(
    ("wrong", "images", "message"),
    [
        (0, 50, "0 of 50 answers with a label and maps are wrong, on 0 images"),
        (9, 50, "9 of 50 answers with a label and maps are wrong, on 9 images"),
        (25, 2, "right, on 1 images"),
        (45, 50, "5 of 50 answers with a label and maps are right"),
    ],
)
def test_too_few_of_a_kind_is_refused(wrong, images, message):
    right = np.arange(50) >= wrong
    places = np.arange(50) if images == 50 else np.repeat([0, 1], 25)
    data = labelled(maps_of(np.zeros(50), np.random.default_rng(7)), right, places)
    assert message in failure.refusal(data)


def test_examples_without_a_label_are_left_out():
    features = maps_of(np.zeros(4), np.random.default_rng(8)).set_index(
        pd.Index([3, 1, 2, 9], name="question_id")
    )
    examples = pd.DataFrame(
        {
            "question_id": [1, 2, 3, 4],
            "correct": [True, None, False, True],
            "confidence": [0.1, 0.2, 0.3, 0.4],
            "image_id": [10, 20, 30, 40],
        }
    )
    data = failure.labelled(features, examples)
    assert data.features.index.tolist() == [1, 3]
    assert data.features["confidence"].tolist() == [0.1, 0.3]
    assert (data.right.tolist(), data.images.tolist()) == ([True, False], [10, 30])


# Agreement of methods


def test_magnitude_stack_equals_magnitudes():
    rng = np.random.default_rng(0)
    for shape in ((14, 14), (48, 40), (4, 4), (100, 7)):
        maps = rng.normal(size=(5, *shape)).astype(np.float32)
        got, expected = magnitude_stack(maps, 14), magnitudes(list(maps), 14)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.float32


def ranks_of(maps):
    ranks = rank_rows(magnitude_stack(np.asarray(maps, np.float32), 14))
    return cross_method.Ranks(ranks.astype(np.float32))


def test_rank_rows_equals_rank():
    maps = np.random.default_rng(3).integers(0, 9, (20, 50)).astype(np.float32)
    maps[4] = 2
    np.testing.assert_array_equal(rank_rows(maps), [r.ranks for r in rank(maps)])


def test_pairs_equal_scipy_loops_with_ties_and_constants():
    rng = np.random.default_rng(1)
    maps = {
        "a": rng.integers(-2, 3, (12, 16, 16)).astype(float),
        "occlusion": rng.normal(size=(12, 16, 16)),
        "z": rng.integers(0, 2, (12, 7, 7)).astype(float),
    }
    maps["z"][[2, 5]] = 0
    ranks = {name: ranks_of(own) for name, own in maps.items()}
    names = {"a": "grad_cam", "occlusion": "occlusion", "z": "guided_backprop"}
    table = cross_method.pair_table(ranks, np.arange(12), names, QUICK)
    assert len(table) == 3
    for row in table.itertuples():
        mean, n, degenerate = reference.cross_method(maps[row.first], maps[row.second])
        assert row.mean == pytest.approx(mean, abs=1e-6)
        assert (row.n, row.degenerate) == (n, degenerate)
    published = table[table["published"] != ""].set_index("first")["published"].to_dict()
    assert published == {"a": "0.60", "z": "0.42"}


def test_pair_without_any_comparable_maps_gives_a_reason():
    first = ranks_of(np.zeros((3, 5, 5)))
    second = ranks_of(np.random.default_rng(2).normal(size=(3, 5, 5)))
    names = {"a": "a", "b": "b"}
    table = cross_method.pair_table({"a": first, "b": second}, np.arange(3), names, QUICK)
    row = table.iloc[0]
    assert np.isnan(row["mean"])
    assert row["reason"] == "no example has two maps that are not constant"
    assert (row["n"], row["degenerate"]) == (0, 3)
    square = cross_method.square(table, ["a", "b"])
    assert np.isnan(square[0, 1])


# A small real run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("goyal") / "run"


@pytest.fixture
def run_folder(folder: Path, recipe: Recipe) -> Path:
    """A run with maps and words, evaluated."""
    if not folder.exists():
        methods = {
            "occlusion": {"grid": 4},
            "sliding": {"method": "occlusion", "window": 24, "stride": 12},
            "guided_backprop": {},
            "grad_cam": {},
            "word_occlusion": {},
            "word_gradient": {},
        }
        store = {"shard_size": 7, "pixel_dtype": "float16"}
        resources = {"executor": "local", "engine": "plain"}
        config = recipe(methods=methods, store=store, resources=resources)
        stages.run(config, folder)
        stages.evaluate(folder)
    return folder


@pytest.fixture
def evidence(run_folder: Path) -> Evidence:
    return Evidence(open_run(run_folder), QUICK)


def test_study_of_a_real_run_is_complete(evidence: Evidence) -> None:
    study = STUDIES["goyal2016"](evidence)
    names = [part.name for part in study.parts]
    for name in ("table1_predicted", "table1_truth", "figure3", "cross_method_predicted"):
        assert name in names
    assert {finding.source for finding in study.findings} <= set(names)
    assert all(0 <= finding.weight <= 1 for finding in study.findings)
    assert_drawable(study)


def assert_drawable(study: Study) -> None:
    """Every column is there, a missing value has its reason, every figure can be drawn."""
    for part in study.parts:
        if isinstance(part, Picture):
            part.figure.savefig(io.BytesIO(), format="png", dpi=20)
            assert len(part.data) > 0
        if isinstance(part, Table):
            named = {c for column in part.columns for c in column_names(column)}
            assert named <= set(part.frame.columns)
            assert part.marked is None or part.frame[part.marked].dtype == bool


def column_names(column):
    return {c for c in (column.name, column.low, column.high, column.reason) if c}


def test_study_of_a_run_that_was_not_evaluated_says_what_to_do(
    tmp_path: Path, recipe: Recipe
) -> None:
    root = tmp_path / "run"
    stages.run(recipe(methods={"grad_cam": {}}, targets=["truth"]), root)
    missing = STUDIES["goyal2016"](Evidence(open_run(root), QUICK)).missing
    assert any(f"evaluate {root}" in reason for reason in missing)
    assert any("add word_occlusion" in reason for reason in missing)
    assert any("add occlusion and word_occlusion" in reason for reason in missing)


def test_features_of_a_real_run_equal_naive_loops(evidence: Evidence) -> None:
    run = evidence.run
    frame = instability.map_features(evidence)
    assert list(frame.columns) == list(instability.FEATURES)
    assert len(frame) == len(evidence.examples)
    examples = evidence.examples.set_index("question_id")
    rows = run.maps[(run.maps.method == "occlusion") & (run.maps.target == "predicted")]
    spoken = run.words[(run.words.method == "word_occlusion") & (run.words.target == "predicted")]
    spoken = spoken.set_index("question_id")
    numbers = vocabulary(run, evidence)
    for row, drops, tops in zip(
        rows.itertuples(), run.fetch(rows), run.fetch(rows, "top_answer"), strict=True
    ):
        prediction = examples.loc[row.question_id, "prediction"]
        own = spoken.loc[row.question_id]
        expected = reference.failure_features(
            drops,
            tops,
            numbers[prediction],
            own["importances"].tolist(),
            own["top_answers"].tolist(),
            prediction,
        )
        assert frame.loc[row.question_id].to_dict() == pytest.approx(expected, abs=1e-6)


def vocabulary(run, evidence):
    """The model's own numbering of its answers."""
    from workers import catalog

    model = catalog.model_spec(evidence.config.model).build(catalog.pick_device("cpu"))
    return {answer: i for i, answer in enumerate(model.answers)}


def test_pairs_of_a_real_run_equal_scipy_loops(evidence: Evidence) -> None:
    run = evidence.run
    section = cross_method.section(evidence)
    table = section.parts[1].frame
    assert section.parts[1].name == "cross_method_predicted"
    maps = run.maps[run.maps.target == "predicted"].sort_values("question_id")
    for pair in (("grad_cam", "occlusion"), ("grad_cam", "guided_backprop")):
        row = table[(table["first"] == pair[0]) & (table["second"] == pair[1])].iloc[0]
        first, second = (run.fetch(maps[maps.method == method]) for method in pair)
        mean, n, degenerate = reference.cross_method(first, second)
        assert row["mean"] == pytest.approx(mean, abs=1e-6)
        assert (row["n"], row["degenerate"]) == (n, degenerate)


@pytest.mark.parametrize("block", [40_000, 2**26])
def test_stacks_equal_fetch(evidence: Evidence, monkeypatch, block: int) -> None:
    monkeypatch.setattr("pipeline.studies.stacks.BLOCK", block)
    run = evidence.run
    for method, array in (("guided_backprop", None), ("grad_cam", None), ("sliding", "top_answer")):
        rows = run.maps[run.maps.method == method]
        for chosen in (rows, rows.iloc[::5], rows.iloc[[0, -1]]):
            read = 0
            for part, values in stacks(run, chosen, array):
                np.testing.assert_array_equal(values, run.fetch(part, array))
                read += len(part)
            assert read == len(chosen)


def test_more_maps_than_can_be_read_are_drawn_by_image(evidence: Evidence, monkeypatch) -> None:
    rows = evidence.run.maps
    everything = cross_method.sample(evidence.run, rows, 0)
    assert len(everything) == len(rows)
    monkeypatch.setattr(cross_method, "READ", 10 * 2**20)
    monkeypatch.setattr(cross_method, "RUN", 2)
    some = cross_method.sample(evidence.run, rows, 0)
    images = set(some["image_id"])
    assert 0 < len(images) < rows["image_id"].nunique()
    assert len(some) == rows["image_id"].isin(images).sum()
    pd.testing.assert_frame_equal(some, cross_method.sample(evidence.run, rows, 0))
    others = [set(cross_method.sample(evidence.run, rows, seed)["image_id"]) for seed in (1, 2, 3)]
    assert any(other != images for other in others)
    caption = cross_method.section(evidence).parts[0].caption
    assert f"{len(images)} of 8 images drawn at random, 2 neighbours at a time" in caption
    monkeypatch.setattr(cross_method, "READ", 1)
    assert cross_method.sample(evidence.run, rows, 0)["image_id"].nunique() == 2


# README


def test_readme_block_is_rewritten_and_nothing_else(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- table:demo -->\nold\n<!-- /table -->\nafter \\1\n")
    rewrite(path, "demo", str(run_folder))
    text = path.read_text()
    assert text.startswith("before\n<!-- table:demo -->\n\n| method | rank correlation | ty iou |")
    assert text.endswith("|\n\n<!-- /table -->\nafter \\1\n")
    assert "| *center* |" in text
    assert "old" not in text
    rewrite(path, "demo", str(run_folder))
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "<!-- table:other -->\n<!-- /table -->\n"])
def test_readme_without_the_block_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="0 blocks <!-- table:demo -->"):
        replace_block(text, "demo", "| a |\n", "README.md")


def test_readme_of_the_project_has_its_blocks() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    for block in ("demo", "easy_vqa"):
        assert "| x |" in replace_block(text, block, "| x |\n", "README.md")
