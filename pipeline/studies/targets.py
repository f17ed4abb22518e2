"""Values as a matrix: one target's examples by methods and metrics."""

import pandas as pd

from pipeline.studies.agreement import HUMAN_TARGET

PREDICTED, TRUTH = "predicted", "truth"


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


def matrix(values: pd.DataFrame, examples: pd.DataFrame, target: str) -> pd.DataFrame:
    """``Evidence.values`` as one row an example and one column a (method, metric).

    ``examples`` as ``usable`` gives them; rows are those that have a map of ``target``. A correct
    prediction has one map, which explains the labelled answer as well, so it is a row of ``truth``
    too. Human maps are compared with one another: their columns hold for any target.
    """
    values = values[values["question_id"].isin(examples.index)]
    own = values["target"] == target
    if target == TRUTH:
        correct = examples.index[is_correct(examples)]
        own |= (values["target"] == PREDICTED) & values["question_id"].isin(correct)
    return _wide(values, own)


def wrong_only(values: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """The matrix of the maps that explain the labelled answer where the prediction is another."""
    values = values[values["question_id"].isin(examples.index)]
    return _wide(values, values["target"] == TRUTH)


def _wide(values: pd.DataFrame, own: pd.Series) -> pd.DataFrame:
    questions = values.loc[own, "question_id"].unique()
    human = (values["target"] == HUMAN_TARGET) & values["question_id"].isin(questions)
    rows = values.loc[own | human, ["question_id", "method", "metric", "value"]]
    return rows.pivot(index="question_id", columns=["method", "metric"], values="value").sort_index(
        axis=1
    )
