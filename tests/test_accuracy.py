"""VQA accuracy by the official rules, quirks included, and its table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workers.vqa_accuracy
from pipeline.studies.accuracy import accuracy_table
from tests.reference.metrics import OfficialVQA
from workers.errors import UserError
from workers.vqa_accuracy import accuracy, normalise

TABLES = json.loads(
    Path(workers.vqa_accuracy.__file__).with_name("answer_normalisation.json").read_text("utf-8")
)
OFFICIAL = OfficialVQA(TABLES)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Cat", "cat"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("blue/green", "blue green"),
        ("blue / green", "blue green"),
        ("what?", "what"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),
        ("mr. smith", "mr smith"),
        ("2.5", "2.5"),
        ("a.5", "a.5"),
        ("5.", "5"),
        ("it's", "it's"),
        ("yes\n", "yes"),
        ("on\tit", "on it"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("12:30", "12:30"),
        ("the", ""),
        ("", ""),
        ("." * 40, "." * 8),
    ],
)
def test_normalise_case_gives_official_answer(answer, expected):
    assert normalise(answer) == expected
    assert OFFICIAL.digit_article(OFFICIAL.punctuation(OFFICIAL.tidy(answer))) == expected


@given(st.text(alphabet="aA1 2.,;/-?!'\n\tthenowIm", max_size=25))
def test_normalise_any_text_equals_official(answer):
    assert normalise(answer) == OFFICIAL.digit_article(OFFICIAL.punctuation(OFFICIAL.tidy(answer)))


@pytest.mark.parametrize(
    ("said", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_accuracy_counts_annotators_who_agree(said, expected):
    answers = ["red"] * said + [f"colour {i}" for i in range(10 - said)]
    assert accuracy("red", answers) == pytest.approx(expected)


VOCABULARY = st.sampled_from(["yes", "Yes.", "no", "two", "2", "a dog", "dog", "dogs!", "dont"])


@given(VOCABULARY, st.lists(VOCABULARY, min_size=4, max_size=10))
def test_accuracy_any_answers_equals_official(prediction, answers):
    assert accuracy(prediction, answers) == pytest.approx(OFFICIAL.accuracy(prediction, answers))


def test_accuracy_unanimous_answers_are_compared_as_they_are():
    assert accuracy("2", ["two"] * 10) == 0
    assert accuracy("2", ["two"] * 9 + ["three"]) == 1


@pytest.mark.parametrize(("prediction", "expected"), [("a circle", 1.0), ("square", 0.0)])
def test_accuracy_single_answer_is_equality_after_normalisation(prediction, expected):
    assert accuracy(prediction, ["Circle"]) == expected


@pytest.mark.parametrize("count", [2, 3])
def test_accuracy_few_unanimous_answers_reach_one(count):
    assert accuracy("red", ["red"] * count) == 1


def test_accuracy_without_answers_is_a_user_error():
    with pytest.raises(UserError, match="needs at least one answer, got none"):
        accuracy("red", [])


def test_normalisation_tables_equal_the_official_ones(shared_data):
    official = shared_data / "vqa-tools" / "answer_normalisation_tables.json"
    assert json.loads(official.read_text("utf-8")) == TABLES


def test_accuracy_real_annotations_most_common_answer_beats_the_rest(shared_data):
    """Real VQA v2 answers: the replica agrees for every answer any annotator gave."""
    path = shared_data / "vqav2-mini" / "test_fixtures" / "vision" / "vqav2" / "annotations.json"
    annotations = json.loads(path.read_text("utf-8"))["annotations"]
    for annotation in annotations:
        answers = [a["answer"] for a in annotation["answers"]]
        for said in set(answers):
            assert accuracy(said, answers) == pytest.approx(OFFICIAL.accuracy(said, answers))


# The table


def examples(**columns):
    n = len(next(iter(columns.values())))
    base = {"question_id": range(n), "image_id": range(n), "answer_type": "other", "correct": True}
    return pd.DataFrame({**base, **columns})


def test_accuracy_table_has_overall_then_types_by_frequency():
    frame = examples(
        accuracy=[1.0, 0.0, 0.3, 1.0, 1.0, 0.6],
        answer_type=["other", "yes/no", "other", "yes/no", "other", "number"],
        correct=[True, False, False, True, True, True],
    )
    table = accuracy_table(frame)
    assert table["answer_type"].tolist() == ["overall", "other", "yes/no", "number"]
    assert table["accuracy"].tolist() == pytest.approx([0.65, 2.3 / 3, 0.5, 0.6])
    assert table["correct"].tolist() == pytest.approx([4 / 6, 2 / 3, 0.5, 1.0])
    assert table["n"].tolist() == [6, 3, 2, 1]


def test_accuracy_table_counts_unlabelled_and_failed_examples_apart():
    frame = examples(
        accuracy=[1.0, np.nan, 0.0, None],
        correct=[True, None, False, None],
        answer_type=["other", None, "other", "other"],
    )
    table = accuracy_table(frame).set_index("answer_type")
    assert table.loc["overall", ["accuracy", "correct", "n", "n_unscored"]].tolist() == [
        0.5,
        0.5,
        2,
        2,
    ]
    assert table.loc["unknown", ["n", "n_unscored"]].tolist() == [0, 1]


def test_accuracy_table_interval_contains_the_mean():
    rng = np.random.default_rng(0)
    frame = examples(accuracy=rng.integers(0, 2, 60).astype(float), image_id=np.arange(60) // 3)
    row = accuracy_table(frame).iloc[0]
    assert row["ci_low"] < row["accuracy"] < row["ci_high"]
