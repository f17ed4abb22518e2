"""VQA accuracy overall and by answer type, as published tables print it."""

import pandas as pd

from pipeline.studies.summary import Bootstrap, summarise

OVERALL = "overall"


def accuracy_table(examples: pd.DataFrame, bootstrap: Bootstrap | None = None) -> pd.DataFrame:
    """``overall``, then one row an answer type (the most frequent first).

    ``examples`` has ``question_id, image_id, answer_type, accuracy, correct``. Columns:
    ``answer_type, accuracy, standard_error, ci_low, ci_high, correct, n, n_unscored``: mean soft
    accuracy with an interval clustered by image, the share of predictions equal to the labelled
    answer, and how many examples have no accuracy (unlabelled or failed), which enter no mean.
    """
    values = examples.assign(
        value=examples["accuracy"].astype(float),
        correct=examples["correct"].astype("boolean").astype("Float64").astype(float),
        answer_type=examples["answer_type"].astype(object).fillna("unknown"),
    )
    values = pd.concat([values.assign(answer_type=OVERALL), values], ignore_index=True)
    table = summarise(values, ["answer_type"], bootstrap or Bootstrap())
    correct = values.groupby("answer_type")["correct"].mean()
    table = table.drop(columns="median").rename(
        columns={"mean": "accuracy", "n_used": "n", "n_degenerate": "n_unscored"}
    )
    table.insert(5, "correct", table["answer_type"].map(correct))
    table["part"] = table["answer_type"] != OVERALL
    order = ["part", "n", "answer_type"]
    table = table.sort_values(order, ascending=[True, False, True], ignore_index=True)
    return table.drop(columns="part")
