"""Agreement tables: means, counts, clustered intervals, baselines and their rendering."""

import io

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from rich.console import Console

from pipeline.studies.agreement import Confidence, agreement, crossings
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tables import number, render, to_markdown
from workers.errors import UserError

QUICK = Bootstrap(resamples=200)


def examples(n, per_image=1, **columns):
    base = {
        "question_id": np.arange(n),
        "image_id": np.arange(n) // per_image,
        "confidence": 0.9,
        "correct": True,
    }
    return pd.DataFrame({**base, **columns})


def rows(values, method="occlusion", target="predicted", questions=None, annotator=0):
    """Metric rows of one annotator; NaN stands for a degenerate map."""
    values = np.asarray(values, float)
    return pd.DataFrame(
        {
            "question_id": np.arange(len(values)) if questions is None else questions,
            "method": method,
            "target": target,
            "metric": "rank_correlation",
            "value": values,
            "status": np.where(np.isnan(values), "degenerate_model", "ok"),
            "annotator": annotator,
        }
    )


def test_agreement_averages_annotators_first_then_questions():
    three = pd.concat([rows([0.0], annotator=k) for k in range(3)])
    one = rows([1.0], questions=[1])
    row = agreement(pd.concat([three, one]), examples(2), QUICK).iloc[0]
    assert (row["mean"], row["n_used"]) == (0.5, 2)


def test_agreement_statistics_equal_numpy():
    values = np.random.default_rng(0).normal(size=50)
    row = agreement(rows(values), examples(50), QUICK).iloc[0]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["median"] == pytest.approx(np.median(values))
    assert row["standard_error"] == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_agreement_degenerate_maps_are_counted_and_leave_the_mean_alone():
    metrics = pd.concat([rows([0.2, np.nan, np.nan]), rows([0.4, np.nan, 0.6], annotator=1)])
    row = agreement(metrics, examples(3), QUICK).iloc[0]
    assert row["mean"] == pytest.approx(0.45)
    assert (row["n_used"], row["n_degenerate"]) == (2, 1)


def test_agreement_method_with_only_degenerate_maps_stays_in_the_table():
    metrics = pd.concat([rows([np.nan, np.nan], "grad_cam"), rows([0.1, 0.2])])
    table = agreement(metrics, examples(2), QUICK)
    assert table["method"].tolist() == ["occlusion", "grad_cam"]
    assert table[["n_used", "n_degenerate"]].to_numpy().tolist() == [[2, 0], [0, 2]]
    assert table[["mean", "ci_low", "ci_high"]].iloc[1].isna().all()


def test_agreement_baselines_are_sorted_into_their_place():
    means = {"occlusion": 0.2, "random": 0.0, "center": 0.3, "saliency": 0.25}
    metrics = [rows([mean - 0.1, mean + 0.1], method) for method, mean in means.items()]
    metrics += [rows([0.6, 0.6], "human", "human"), rows([0.22, 0.22], "shuffled_human", "human")]
    table = agreement(pd.concat(metrics), examples(2), QUICK)
    ranked = ["human", "center", "saliency", "shuffled_human", "occlusion", "random"]
    assert table["method"].tolist() == ranked
    assert table["baseline"].tolist() == [True, True, False, True, False, True]


def test_agreement_human_rows_cover_the_questions_of_each_target():
    metrics = [rows([0.1, 0.2, 0.3]), rows([0.5], target="truth", questions=[2])]
    metrics.append(rows([0.4, 0.6, 0.8], "human", "human"))
    wrong = examples(3, correct=False)
    table = agreement(pd.concat(metrics), wrong, QUICK).set_index(["method", "target"])
    assert table.loc[("human", "predicted"), "mean"] == pytest.approx(0.6)
    assert table.loc[("human", "truth"), ["mean", "n_used"]].tolist() == [0.8, 1]


def test_the_only_map_of_a_correct_prediction_explains_the_labelled_answer_too():
    """Questions 0 and 1 right; 2 wrong; 3 wrong, its label unknown to the model."""
    metrics = [rows([0.1, 0.2, 0.3, 0.9]), rows([0.6], target="truth", questions=[2])]
    metrics.append(rows([0.4, 0.6, 0.8, 0.0], "human", "human"))
    frame = examples(4, correct=[True, True, False, False])
    table = agreement(pd.concat(metrics), frame, QUICK).set_index(["method", "target"])
    assert table["n_used"].tolist() == [4, 4, 3, 3]
    assert table.loc[("occlusion", "truth"), "mean"] == pytest.approx(0.3)
    assert table.loc[("human", "truth"), "mean"] == pytest.approx(0.6)
    assert table.loc[("occlusion", "predicted"), "mean"] == pytest.approx(0.375)


def test_agreement_row_order_changes_nothing():
    metrics = pd.concat([rows(np.arange(9.0)), rows(np.arange(9.0)[::-1], "saliency")])
    frame = examples(9, per_image=3)
    shuffled = agreement(metrics.sample(frac=1, random_state=1), frame[::-1], QUICK)
    pd.testing.assert_frame_equal(agreement(metrics, frame, QUICK), shuffled)


def test_agreement_value_missing_under_status_ok_is_a_user_error():
    metrics = rows([0.1, np.nan]).assign(status="ok")
    with pytest.raises(UserError, match="1 metric rows have status 'ok' but no value"):
        agreement(metrics, examples(2))


def test_agreement_examples_of_another_run_are_a_user_error():
    with pytest.raises(UserError, match="1 questions have metrics but no example, the first is 2"):
        agreement(rows([0.1, 0.2, 0.3]), examples(2))


# Intervals


def interval(values, clusters, bootstrap=QUICK):
    return bootstrap.intervals(np.asarray(values, float)[:, None], np.asarray(clusters))[:, 0]


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    """200 worlds of 40 images with 3 questions, which share half of their variance."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 3)
    covered = 0
    for _ in range(200):
        values = np.repeat(rng.normal(size=40), 3) + rng.normal(size=120)
        low, high = interval(values, clusters)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.985


def test_bootstrap_questions_that_agree_within_an_image_widen_the_interval():
    values = np.repeat(np.random.default_rng(1).normal(size=50), 4)
    low, high = interval(values, np.repeat(np.arange(50), 4))
    independent_low, independent_high = interval(values, np.arange(200))
    assert 1.6 < (high - low) / (independent_high - independent_low) < 2.4


def test_bootstrap_one_question_an_image_is_the_ordinary_interval():
    values = np.random.default_rng(2).normal(size=400)
    low, high = interval(values, np.arange(400), Bootstrap())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_blocks_change_nothing(monkeypatch):
    values, clusters = np.random.default_rng(3).normal(size=90), np.arange(90) // 3
    whole = interval(values, clusters)
    monkeypatch.setattr("pipeline.studies.summary._BLOCK", 7 * 30)
    assert interval(values, clusters) == pytest.approx(whole, abs=1e-12)


def test_bootstrap_same_seed_same_interval():
    values, clusters = np.random.default_rng(4).normal(size=60), np.arange(60) // 2
    assert interval(values, clusters).tolist() == interval(values, clusters).tolist()
    other = interval(values, clusters, Bootstrap(resamples=200, seed=1))
    assert interval(values, clusters).tolist() != other.tolist()


def test_bootstrap_column_in_one_cluster_has_no_interval():
    values = np.array([[0.1, 0.5], [0.3, np.nan], [0.2, np.nan]])
    bounds = QUICK.intervals(values, np.arange(3))
    assert np.isfinite(bounds[:, 0]).all()
    assert np.isnan(bounds[:, 1]).all()


# Crossings


def test_crossings_give_mean_and_median_of_each_group():
    values = np.arange(8) / 10
    frame = examples(
        8,
        correct=[True, True, True, False, False, False, None, True],
        confidence=[0.1, 0.9, 0.95, 0.2, 0.8, 0.6, np.nan, 0.5],
    )
    table = crossings(rows(values), frame, Confidence(), QUICK).set_index("group")
    assert table["n_used"].to_dict() == {
        "all": 8,
        "correct": 4,
        "wrong": 3,
        "low": 2,
        "high": 3,
        "correct_low": 1,
        "correct_high": 2,
        "wrong_low": 1,
        "wrong_high": 1,
    }
    assert table.loc["correct", ["mean", "median"]].tolist() == pytest.approx([0.25, 0.15])
    assert table.loc["wrong_high", "mean"] == pytest.approx(0.4)


def test_crossings_thresholds_are_those_asked_for():
    frame = examples(3, confidence=[0.3, 0.2, 0.6])
    paper = crossings(rows([1.0, 2.0, 3.0]), frame, Confidence(low=0.25), QUICK)
    assert paper.set_index("group").loc["low", ["mean", "n_used"]].tolist() == [2.0, 1]


# Rendering


@pytest.mark.parametrize(
    ("value", "scale", "expected"),
    [
        (0.1734, None, "0.173"),
        (-0.0004, 0.01, "-0.000"),
        (6.2e-6, None, "6.2e-06"),
        (4835.2, None, "4835"),
        (0.0, None, "0.000"),
        (np.nan, None, "-"),
    ],
)
def test_number_suits_its_scale(value, scale, expected):
    assert number(value, scale) == expected


def test_to_markdown_shows_errors_intervals_and_degenerate_counts():
    metrics = pd.concat([rows([0.1, 0.2, 0.3, np.nan]), rows([0.0] * 4, "random")])
    lines = to_markdown(agreement(metrics, examples(4), QUICK)).splitlines()
    assert lines[0].startswith("| method | target | metric | mean ± s.e. | interval | median | n |")
    assert lines[2].startswith("| occlusion | predicted | rank_correlation | 0.200 ± 0.058 | [0.")
    assert lines[2].endswith("| 0.200 | 3 | 1 |")
    assert lines[3].startswith("| *random* |")


def test_render_shows_the_same_cells():
    table = agreement(rows([0.1, 0.2, 0.3]), examples(3), QUICK)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render(table, "Agreement"))
    text = console.export_text()
    assert "Agreement" in text
    assert "0.200 ± 0.058" in text


def test_unsure_that_reaches_beyond_sure_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"low is 0\.8, high is 0\.6: a prediction would be"):
        Confidence(low=0.8, high=0.6)
