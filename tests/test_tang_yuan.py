"""The study of Tang and Yuan: on a real run, and on generated frames with known truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import parse, read_recipe
from pipeline.studies.agreement import BASELINES, Confidence
from pipeline.studies.base import Column, Evidence, Panels, Picture, Study, Table
from pipeline.studies.registry import STUDIES
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tang_yuan.findings import verdict
from pipeline.studies.tang_yuan.groups import COMPARISONS, GROUPS, masks
from pipeline.studies.tang_yuan.panels import panels
from pipeline.studies.tang_yuan.published import CONFIDENCE, FIGURE_2, MEASURES, TESTED
from pipeline.studies.tang_yuan.study import (
    Computed,
    compute,
    findings,
    group_tables,
    means_tables,
    missing,
    pictures,
)
from pipeline.studies.targets import PREDICTED, TRUTH, is_correct, matrix, usable
from workers.datasets.shapes import Shapes
from workers.metrics.tang_yuan import TangYuan

QUICK = Bootstrap(resamples=60)


@pytest.fixture(scope="module")
def evidence(world: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A small run of the embedded world with human maps, evaluated."""
    root = tmp_path_factory.mktemp("study") / "run"
    config = parse(
        {
            "dataset": {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3},
            "model": {"name": "kazemi", "checkpoint": str(checkpoint)},
            "methods": {"saliency": {}, "guided_grad_cam": {}, "attention": {}},
            "metrics": {"rank_correlation": {}, "tang_yuan": {"side": 28}},
            "resources": {"executor": "local"},
        },
        "test recipe",
    )
    stages.run(config, root)
    stages.evaluate(root)
    return Evidence(Run(root), QUICK, CONFIDENCE)


def parts(result: Study, kind: type) -> dict:
    return {part.name: part for part in result.parts if isinstance(part, kind)}


def compute_all(values: pd.DataFrame, examples: pd.DataFrame) -> Computed:
    found = compute(values, examples, CONFIDENCE, QUICK)
    assert found is not None
    return found


def assert_sound(found: Computed) -> None:
    """Every column exists, every gap has its reason, every finding its source."""
    tables = [*means_tables(found), *group_tables(found)]
    for table in tables:
        for column in table.columns:
            assert_column(table, column)
    said = findings(found)
    assert {finding.source for finding in said} <= {table.name for table in tables}
    assert all(0 <= finding.weight <= 1 for finding in said)
    assert not any("nan" in finding.sentence for finding in said)


def assert_drawn(drawn: list[Picture]) -> None:
    for picture in drawn:
        assert len(picture.data)
        picture.figure.draw_without_rendering()


def assert_column(table: Table, column: Column) -> None:
    for other in (column.low, column.high, column.reason):
        assert other is None or other in table.frame
    gaps = table.frame[column.name].isna()
    if gaps.any():
        assert column.reason is not None, f"{table.name}.{column.name}"
        assert table.frame.loc[gaps, column.reason].notna().all(), f"{table.name}.{column.name}"


# A real run


@pytest.fixture(scope="module")
def result(evidence: Evidence) -> Study:
    return STUDIES["tang_yuan"](evidence)


def test_study_of_a_run_is_whole(result: Study, evidence: Evidence) -> None:
    assert_sound(compute_all(evidence.values, evidence.examples))
    pictures = parts(result, Picture)
    assert_drawn(list(pictures.values()))
    assert {"figure_7_medians", "boxes", "figure_8_low", "figure_8_high"} < set(pictures)
    names = [part.name for part in result.parts]
    assert {f"differences_{comparison.name}" for comparison in COMPARISONS} < set(names)
    assert len(set(names)) == len(names)
    assert len(result.findings) >= 6


def test_study_of_a_run_has_the_means_of_its_metric_rows(result: Study, evidence: Evidence) -> None:
    tables = parts(result, Table)
    rows = evidence.run.metrics
    rows = rows[rows["question_id"].isin(usable(evidence.examples).index)]
    for target, name in ((PREDICTED, "figure_2_predicted"), ("", "figure_2_every_map")):
        frame = tables[name].frame
        ours = frame[frame["source"] == "this run"].set_index("method")
        for method in ("saliency", "guided_grad_cam", "attention", "random"):
            own = rows[(rows["method"] == method) & (rows["status"] == "ok")]
            own = own[own["target"] == target] if target else own
            for metric in MEASURES:
                values = own[own["metric"] == metric]
                by_map = values.groupby(["question_id", "target"])["value"].mean()
                assert ours.loc[method, metric] == pytest.approx(by_map.mean())
                assert ours.loc[method, "n"] == len(by_map)


def test_study_prints_the_published_figures_below_the_same_method(result: Study) -> None:
    frame = parts(result, Table)["figure_2_predicted"].frame
    published = frame[frame["source"] == "published"]
    assert set(published["method"]) == {"saliency", "guided_grad_cam"}
    for place, row in published.iterrows():
        assert frame["method"][place - 1] == row["method"]
        assert row[list(MEASURES)].tolist() == [FIGURE_2[row["method"]][m] for m in MEASURES]
        assert row["marked"]


def test_study_has_baselines_in_every_table_of_methods(result: Study) -> None:
    for name, table in parts(result, Table).items():
        if "method" in table.frame:
            found = set(table.frame["method"])
            assert {"random", "center", "shuffled_human", "human"} <= found, name


def test_study_readings_stand_side_by_side(result: Study) -> None:
    frame = parts(result, Table)["readings"].frame
    ours = frame[frame["source"] == "this run"]
    assert ours[["ty_f1_exact", "ty_precision", "ty_recall"]].notna().all(axis=None)
    paper = frame[frame["source"] == "published"].set_index("method").loc["saliency"]
    assert paper["ty_f1_nonempty"] == FIGURE_2["saliency"]["ty_f1"]
    assert paper["empty"] == pytest.approx(1 - 0.209920 / 0.308305)


def test_study_names_its_limits_of_confidence(result: Study, evidence: Evidence) -> None:
    caption = parts(result, Table)["differences_correct_wrong_low"].caption
    assert caption.startswith("Low confidence: below 0.25; high: above 0.75, as in the paper.")
    wider = Confidence(low=0.4, high=0.6)
    found = compute(evidence.values, evidence.examples, wider, QUICK)
    assert found is not None
    assert group_tables(found)[2].caption.startswith(
        "Low confidence: below 0.4; high: above 0.6 (the paper: below 0.25, above 0.75)."
    )


def test_study_of_a_run_without_the_metric_says_so(evidence: Evidence) -> None:
    values = evidence.values[evidence.values["metric"] == "rank_correlation"]
    assert compute(values, evidence.examples, CONFIDENCE, QUICK) is None
    baselines = evidence.values[evidence.values["method"].isin(BASELINES)]
    assert compute(baselines, evidence.examples, CONFIDENCE, QUICK) is None


# Generated frames


METRICS = list(TangYuan.names)


def generated(
    n: int = 300, seed: int = 0, methods: tuple[str, ...] = ("saliency", "guided_grad_cam")
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and examples: three questions an image, no relation between anything."""
    rng = np.random.default_rng(seed)
    examples = pd.DataFrame(
        {
            "question_id": np.arange(n),
            "image_id": np.arange(n) // 3,
            "confidence": rng.random(n),
            "correct": rng.random(n) < 0.6,
            "truth_in_vocabulary": True,
        }
    )
    wrong = examples["question_id"][~examples["correct"]].to_numpy()
    blocks = []
    for method in (*methods, "random", "center"):
        for target, questions in (("predicted", np.arange(n)), ("truth", wrong)):
            blocks += [block(rng, method, target, metric, questions) for metric in METRICS]
    for method in ("human", "shuffled_human"):
        blocks += [block(rng, method, "human", metric, np.arange(n)) for metric in METRICS]
    return pd.concat(blocks, ignore_index=True), examples


def block(rng, method, target, metric, questions):
    return pd.DataFrame(
        {
            "method": method,
            "target": target,
            "metric": metric,
            "question_id": questions,
            "value": rng.random(len(questions)),
            "image_id": questions // 3,
        }
    )


def differences(found: Computed, name: str) -> pd.DataFrame:
    frame = found.differences[found.differences["comparison"] == name]
    return frame.set_index(["target", "method", "metric"]).sort_index()


def test_differences_equal_scipy_and_the_family_is_adjusted_as_a_whole() -> None:
    values, examples = generated()
    found = compute_all(values, examples)
    wide = matrix(values, usable(examples), PREDICTED)
    row = differences(found, "correct_wrong_low").loc[(PREDICTED, "saliency", "ty_iou")]
    low, correct = examples["confidence"] < 0.25, examples["correct"]
    first, second = (
        wide["saliency", "ty_iou"].to_numpy()[(low & side).to_numpy()]
        for side in (correct, ~correct)
    )
    assert row["p"] == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert row["p_student"] == pytest.approx(stats.ttest_ind(first, second).pvalue)
    assert row["difference"] == pytest.approx(first.mean() - second.mean())
    family = found.differences
    assert len(family) == (6 + 5) * 6 * len(TESTED)
    assert family["p_bh"].to_numpy() == pytest.approx(stats.false_discovery_control(family["p"]))


def test_differences_without_any_relation_are_not_told() -> None:
    values, examples = generated(seed=1)
    found = compute_all(values, examples)
    assert_sound(found)
    digest = group_tables(found)[0].frame
    assert digest[["above", "below"]].to_numpy().sum() == 0
    assert all("no difference can be told" in f.sentence for f in findings(found)[1:6])
    assert "no relation" in findings(found)[6].sentence


def test_differences_that_are_planted_are_told_with_their_side() -> None:
    values, examples = generated(seed=2)
    low_correct = examples.index[examples["correct"] & (examples["confidence"] < 0.25)]
    planted = (values["method"] == "guided_grad_cam") & values["question_id"].isin(low_correct)
    values.loc[planted, "value"] += 1
    found = compute_all(values, examples)
    sentences = {finding.source: finding.sentence for finding in findings(found)}
    assert (
        "is higher for correct, low than for wrong, low"
        in sentences["differences_correct_wrong_low"]
    )
    assert (
        "is lower for correct, high than for correct, low"
        in sentences["differences_high_low_correct"]
    )
    assert (
        "9 of 18 differences can be told (9 above 0, 0 below)"
        in sentences["differences_correct_wrong_low"]
    )
    assert "(p = 0.009)" in sentences["differences_correct_wrong_low"]
    assert "no difference" in sentences["differences_high_low_wrong"]


def test_correlation_that_is_planted_is_told_with_its_side() -> None:
    values, examples = generated(seed=3)
    planted = (values["metric"] == "ty_rank") & values["method"].isin(
        ["saliency", "guided_grad_cam"]
    )
    confidence = values["question_id"].map(examples["confidence"])
    values.loc[planted, "value"] -= 2 * confidence[planted]
    found = compute_all(values, examples)
    assert "surer predictions have lower rank correlation" in findings(found)[-1].sentence
    frame = found.correlations.set_index(["method", "metric"])
    own = examples[examples["correct"]]
    wide = matrix(values, usable(examples), PREDICTED).loc[own["question_id"]]
    theirs = stats.pearsonr(own["confidence"], wide["saliency", "ty_rank"])
    assert frame.loc[("saliency", "ty_rank"), "r"] == pytest.approx(theirs.statistic)
    assert frame.loc[("saliency", "ty_rank"), "n"] == len(own)


EMPTY = {
    "nobody is unsure": lambda e: e.assign(confidence=0.5 + e["confidence"] / 2),
    "nobody is sure": lambda e: e.assign(confidence=e["confidence"] / 2),
    "one is unsure and right": lambda e: e.assign(
        confidence=e["confidence"]
        .where((e["confidence"] > 0.25) | ~e["correct"] | (e.index < 8))
        .fillna(0.6)
    ),
    "all are right": lambda e: e.assign(correct=True),
    "all are wrong": lambda e: e.assign(correct=False),
    "no labels": lambda e: e.assign(correct=None, truth_in_vocabulary=None),
    "one image": lambda e: e.assign(image_id=7),
    "one example": lambda e: e.head(1),
}


@pytest.mark.parametrize("case", EMPTY)
def test_study_with_empty_groups_has_reasons_instead(case: str) -> None:
    values, examples = generated(60)
    examples = EMPTY[case](examples)
    if case in ("all are right", "no labels"):
        values = values[values["target"] != "truth"]
    found = compute_all(values, examples)
    assert_sound(found)
    if case == "no labels":
        assert_drawn(pictures(found))
    assert missing(found) or case in ("one image", "one is unsure and right")


def test_study_names_the_groups_without_predictions() -> None:
    values, examples = generated(60)
    examples["confidence"] = 0.9
    found = compute_all(values, examples)
    assert missing(found)[-1].startswith(
        "Groups without a prediction: low, middle, correct and low"
    )
    frame = differences(found, "correct_wrong_low")
    assert (frame["reason"] == "group has 0 examples; a t-test needs 2").all()
    assert frame[["p", "p_bh", "g", "p_permutation", "p_student"]].isna().all(axis=None)


def test_study_with_degenerate_maps_counts_them_and_goes_on() -> None:
    values, examples = generated(90)
    values.loc[values["method"] == "guided_grad_cam", "value"] = np.nan
    some = (values["method"] == "saliency") & (values["question_id"] < 5)
    values.loc[some, "value"] = np.nan
    found = compute_all(values, examples)
    assert_sound(found)
    frame = found.means[PREDICTED]
    ours = frame[frame["source"] == "this run"].set_index("method")
    assert ours.loc["guided_grad_cam", ["n", "n_degenerate"]].tolist() == [0, 90]
    assert ours.loc["saliency", ["n", "n_degenerate"]].tolist() == [85, 5]
    kept = examples["confidence"][5:].mean()
    assert ours.loc["saliency", "confidence"] == pytest.approx(kept)


def test_study_of_constant_values_has_reasons_instead_of_zeros() -> None:
    values, examples = generated(60)
    values["value"] = 0.3
    found = compute_all(values, examples)
    assert_sound(found)
    frame = differences(found, "correct_wrong")
    assert (frame["reason"] == "all values of each group are equal; a t-test needs spread").all()
    assert (frame["difference"].abs() < 1e-12).all()


def test_study_without_the_second_reading_or_target_says_so() -> None:
    values, examples = generated(60)
    older = values[~values["metric"].str.endswith("_exact") & (values["target"] != "truth")]
    found = compute_all(older, examples)
    assert_sound(found)
    assert [table.name for table in means_tables(found)] == ["figure_2_predicted"]
    assert [text.split(":")[0] for text in missing(found)] == [
        "The second reading of the discretisation",
        "Maps of the labelled answer",
    ]


# Groups and targets


def test_groups_are_those_of_the_paper_and_the_middle() -> None:
    frame = pd.DataFrame(
        {
            "correct": [True, True, True, False, False, False, None],
            "confidence": [0.1, 0.5, 0.9, 0.25, 0.75, 0.8, 0.1],
        }
    )
    found = {
        group: np.flatnonzero(mask).tolist() for group, mask in masks(frame, CONFIDENCE).items()
    }
    assert list(found) == list(GROUPS)
    assert found == {
        "all": [0, 1, 2, 3, 4, 5, 6],
        "correct": [0, 1, 2],
        "wrong": [3, 4, 5],
        "low": [0, 6],
        "middle": [1, 3, 4],
        "high": [2, 5],
        "correct_low": [0],
        "correct_middle": [1],
        "correct_high": [2],
        "wrong_low": [],
        "wrong_middle": [3, 4],
        "wrong_high": [5],
    }


def test_matrix_of_the_truth_takes_a_correct_predictions_only_map() -> None:
    values, examples = generated(30)
    examples = usable(examples)
    truth, predicted = (matrix(values, examples, target) for target in (TRUTH, PREDICTED))
    correct = is_correct(examples)
    pd.testing.assert_frame_equal(truth[correct], predicted[correct])
    assert (truth.index == predicted.index).all()
    assert (truth["saliency"][~correct] != predicted["saliency"][~correct]).all(axis=None)
    pd.testing.assert_frame_equal(truth["human"], predicted["human"])


def test_usable_leaves_out_answers_that_the_model_cannot_give() -> None:
    _, examples = generated(9)
    examples["truth_in_vocabulary"] = [True, False, None] * 3
    assert usable(examples).index.tolist() == [0, 2, 3, 5, 6, 8]


# Sentences and panels


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "the IoU of saliency is higher for correct than for wrong (+0.200 [0.100, 0.300]"),
        ({"difference": -0.2}, "is lower for correct"),
        (
            {"p_bh": 0.051},
            "no difference can be told in the IoU of saliency (+0.200 [0.100, 0.300]",
        ),
        ({"p_permutation": 0.2}, "exchanging whole images does not (p = 0.200): it cannot be"),
        ({"reason": "group has 1 example"}, "cannot be compared (group has 1 example)."),
    ],
)
def test_verdict_claims_no_more_than_the_tests(changes: dict, text: str) -> None:
    row = {
        "metric": "ty_iou",
        "method": "saliency",
        "difference": 0.2,
        "clustered_low": 0.1,
        "clustered_high": 0.3,
        "p_bh": 0.0004,
        "p_permutation": 0.001,
        "n_first": 10,
        "n_second": 20,
        "reason": None,
    }
    assert text in verdict(pd.Series({**row, **changes}, dtype=object), "correct", "wrong")


def panels_of(values: pd.DataFrame, examples: pd.DataFrame) -> tuple[Panels, ...]:
    examples = usable(examples)
    return panels(matrix(values, examples, PREDICTED), examples, CONFIDENCE)


def test_panels_follow_their_rule() -> None:
    values, examples = generated(120, seed=5)
    found = {panel.name: panel for panel in panels_of(values, examples)}
    wide = matrix(values, usable(examples), PREDICTED)
    agreement = (wide["saliency", "ty_f1"] + wide["guided_grad_cam", "ty_f1"]) / 2
    gap = examples["confidence"] - agreement.to_numpy()
    for name, sign, rows in (
        ("sure_and_wrong", -1, ~examples["correct"] & (examples["confidence"] > 0.75)),
        ("unsure_and_right", 1, examples["correct"] & (examples["confidence"] < 0.25)),
    ):
        ranked = examples[rows].assign(gap=sign * gap[rows]).sort_values("gap")
        expected = ranked.drop_duplicates("image_id")["question_id"].head(6).tolist()
        assert [shown.question_id for shown in found[name].examples] == expected


def test_recipe_of_the_study_asks_for_what_it_needs() -> None:
    config = read_recipe(Path("recipes/tang_yuan.yaml"))
    assert set(FIGURE_2) < set(config.methods)
    assert config.targets == ("predicted", "truth")
    assert Shapes.model_validate(config.dataset.options).scenes == 200
