"""Agreement of importance maps with human attention: the tables of the papers.

Goyal et al. 2016, Table 1 (mean and standard error a method); Tang and Yuan, figures 2 and 7
(means a metric; medians by correctness and confidence).
"""

from typing import Self

import pandas as pd
from pydantic import Field, model_validator

from pipeline.studies.summary import Bootstrap, summarise
from pipeline.studies.targets import is_correct, is_wrong, per_target
from schemas.base import Frozen
from workers.errors import UserError
from workers.metrics.base import OK

KEYS = ["method", "target", "metric"]
BASELINES = frozenset({"random", "center", "shuffled_human", "human"})
"""What a method is read against: three floors and, as a ceiling, the annotators themselves."""


class Confidence(Frozen):
    """Where a prediction counts as unsure or sure, by its softmax probability.

    Tang and Yuan call it low below 0.25; a small answer vocabulary hardly goes there.
    """

    low: float = Field(default=0.5, ge=0, le=1)
    """Low: below this."""
    high: float = Field(default=0.75, ge=0, le=1)
    """High: above this."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"low is {self.low}, high is {self.high}: a prediction would be unsure and sure at "
                "once; give a low that is at most high"
            )
        return self


def agreement(
    metrics: pd.DataFrame, examples: pd.DataFrame, bootstrap: Bootstrap | None = None
) -> pd.DataFrame:
    """One row a (method, target, metric), best mean first, the baselines in their place.

    ``metrics`` has one row a (question_id, method, target, metric, annotator) with ``value`` and
    ``status``; ``examples`` gives each question its ``image_id`` and whether its prediction is
    ``correct``. A question's value is the mean over its annotators; a question none of whose pairs
    is ok enters no mean and counts as ``n_degenerate``. The rows of a target are those of
    ``targets.of_target``.
    Columns: ``method, target, metric, mean, standard_error, ci_low, ci_high, median, n_used,
    n_degenerate, baseline``.
    """
    return agreement_of(question_values(metrics, examples), examples, bootstrap or Bootstrap())


def agreement_of(
    values: pd.DataFrame, examples: pd.DataFrame, bootstrap: Bootstrap
) -> pd.DataFrame:
    """``agreement`` from ``question_values``."""
    return _ranked(summarise(per_target(values, examples), KEYS, bootstrap))


def crossings(
    metrics: pd.DataFrame,
    examples: pd.DataFrame,
    confidence: Confidence | None = None,
    bootstrap: Bootstrap | None = None,
) -> pd.DataFrame:
    """The agreement table of nine groups of examples (Tang and Yuan, section 4.2).

    ``examples`` has ``correct`` and ``confidence`` too. The first column, ``group``, is ``all``,
    ``correct``, ``wrong``, ``low``, ``high``, ``correct_low``, ``correct_high``, ``wrong_low`` or
    ``wrong_high``; a group without examples has no rows.
    """
    values = question_values(metrics, examples)
    return crossings_of(values, examples, confidence or Confidence(), bootstrap or Bootstrap())


def crossings_of(
    values: pd.DataFrame, examples: pd.DataFrame, confidence: Confidence, bootstrap: Bootstrap
) -> pd.DataFrame:
    """``crossings`` from ``question_values``."""
    values = per_target(values, examples)
    tables = {
        group: _ranked(summarise(members, KEYS, bootstrap))
        for group, questions in question_groups(examples, confidence).items()
        if len(members := values[values["question_id"].isin(questions)])
    }
    return pd.concat(tables, names=["group"]).reset_index("group").reset_index(drop=True)


def question_groups(examples: pd.DataFrame, confidence: Confidence) -> dict[str, pd.Series]:
    """The ``question_id``s of each group. Examples without a prediction are in ``all`` only."""
    correct, wrong = is_correct(examples), is_wrong(examples)
    low = examples["confidence"] < confidence.low
    high = examples["confidence"] > confidence.high
    masks = {
        "all": pd.Series(True, index=examples.index),
        "correct": correct,
        "wrong": wrong,
        "low": low,
        "high": high,
        "correct_low": correct & low,
        "correct_high": correct & high,
        "wrong_low": wrong & low,
        "wrong_high": wrong & high,
    }
    return {group: examples.loc[mask, "question_id"] for group, mask in masks.items()}


def question_values(metrics: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """One row a (method, target, metric, question): the mean over annotators, NaN if none is ok."""
    ok = metrics["status"] == OK
    unexplained = metrics[ok & metrics["value"].isna()]
    if len(unexplained):
        raise UserError(
            f"{len(unexplained)} metric rows have status {OK!r} but no value, the first of "
            f"question {unexplained['question_id'].iloc[0]}: evaluate the run again"
        )
    values = metrics.assign(value=metrics["value"].where(ok).astype(float))
    values = values.groupby([*KEYS, "question_id"], observed=True)["value"].mean().reset_index()
    return values.assign(image_id=_images(values["question_id"], examples))


def _images(questions: pd.Series, examples: pd.DataFrame) -> pd.Series:
    images = questions.map(examples.set_index("question_id")["image_id"])
    unknown = questions[images.isna()]
    if len(unknown):
        raise UserError(
            f"{unknown.nunique()} questions have metrics but no example, the first is "
            f"{unknown.iloc[0]}: pass the examples of the same run"
        )
    return images


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Blocks of one metric and target, best mean first; a group without any value comes last."""
    table = table.assign(baseline=table["method"].isin(BASELINES))
    order = ["metric", "target", "mean", "method"]
    return table.sort_values(order, ascending=[True, True, False, True], ignore_index=True)
