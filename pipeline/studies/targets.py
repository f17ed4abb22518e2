"""Which rows explain an answer: the same ones in every table of a target; and as a matrix.

A correct prediction has one map, which explains the labelled answer as well: it is stored as
``predicted`` and is a row of ``truth`` too.
"""

from collections.abc import Iterable

import pandas as pd

PREDICTED, TRUTH = "predicted", "truth"
HUMAN_TARGET = "human"
"""The target of rows that compare human maps only, and so hold for every target."""
LABELLED = "Where a correct prediction is explained, its map is the labelled answer's as well. "
"""Said where a table is of ``truth``."""


def usable(examples: pd.DataFrame) -> pd.DataFrame:
    """Examples by ``question_id``, without those whose labelled answer the model cannot give."""
    inside = ~examples["truth_in_vocabulary"].eq(False).fillna(False).astype(bool)
    return examples[inside].set_index("question_id").sort_index()


def is_correct(examples: pd.DataFrame) -> pd.Series:
    """True where the prediction is the labelled answer; unlabelled examples are not."""
    return examples["correct"].eq(True).fillna(False).astype(bool)


def is_wrong(examples: pd.DataFrame) -> pd.Series:
    """True where the prediction is not the labelled answer; unlabelled examples are not."""
    return examples["correct"].eq(False).fillna(False).astype(bool)


def correct_questions(examples: pd.DataFrame) -> pd.Series:
    """The ``question_id``s of correct predictions."""
    return examples.loc[is_correct(examples), "question_id"]


def explains(rows: pd.DataFrame, target: str, correct: Iterable[int]) -> pd.Series:
    """Which rows explain the answer ``target``; ``correct``: the questions answered correctly."""
    own = rows["target"] == target
    if target == TRUTH:
        own |= (rows["target"] == PREDICTED) & rows["question_id"].isin(correct)
    return own


def of_target(values: pd.DataFrame, target: str, correct: Iterable[int]) -> pd.DataFrame:
    """The rows that explain ``target``, and those of human maps over the same questions, all with
    that target's name."""
    own = explains(values, target, correct)
    human = values["target"] == HUMAN_TARGET
    human &= values["question_id"].isin(values.loc[own, "question_id"])
    return values[own | human].assign(target=target)


def per_target(values: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """``of_target`` of every target that has rows; where there are human rows alone, those."""
    targets = sorted(set(values["target"]) - {HUMAN_TARGET})
    if not targets:
        return values
    correct = correct_questions(examples)
    return pd.concat([of_target(values, t, correct) for t in targets], ignore_index=True)


def matrix(values: pd.DataFrame, examples: pd.DataFrame, target: str) -> pd.DataFrame:
    """``Evidence.values`` as one row an example and one column a (method, metric).

    ``examples`` as ``usable`` gives them; rows are those that have a map that explains
    ``target``. Human maps are compared with one another: their columns hold for any target.
    """
    return _wide(values, examples, target, examples.index[is_correct(examples)])


def wrong_only(values: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """The matrix of the maps that explain the labelled answer where the prediction is another."""
    return _wide(values, examples, TRUTH, ())


def _wide(
    values: pd.DataFrame, examples: pd.DataFrame, target: str, correct: Iterable[int]
) -> pd.DataFrame:
    rows = of_target(values[values["question_id"].isin(examples.index)], target, correct)
    wide = rows.pivot(index="question_id", columns=["method", "metric"], values="value")
    return wide.sort_index(axis=1)
