"""Worked examples, chosen by a rule: sure and wrong, unsure and right."""

import pandas as pd

from pipeline.studies.agreement import BASELINES, Confidence
from pipeline.studies.base import Panels, Shown
from pipeline.studies.tang_yuan.groups import masks

SHOWN = 6
RULE = (
    "Of the {what} predictions, those with the largest {gap}, where agreement is the mean F1 of "
    "all methods' maps of the predicted answer with the human maps; one question an image, ties by "
    "question_id."
)


def panels(
    wide: pd.DataFrame, examples: pd.DataFrame, confidence: Confidence
) -> tuple[Panels, ...]:
    """Both kinds, as far as there are examples; ``wide`` is the matrix of the predicted answer."""
    sure = Panels(
        name="sure_and_wrong",
        title="Sure and wrong",
        rule=RULE.format(
            what=f"wrong, high-confidence (above {confidence.high:g})",
            gap="confidence minus agreement: sure, and looking elsewhere than people",
        ),
        examples=_chosen(wide, examples, confidence, "wrong_high", 1),
    )
    unsure = Panels(
        name="unsure_and_right",
        title="Unsure and right",
        rule=RULE.format(
            what=f"correct, low-confidence (below {confidence.low:g})",
            gap="agreement minus confidence: unsure, and looking where people look",
        ),
        examples=_chosen(wide, examples, confidence, "correct_low", -1),
    )
    return tuple(panel for panel in (sure, unsure) if panel.examples)


def _chosen(
    wide: pd.DataFrame, examples: pd.DataFrame, confidence: Confidence, group: str, sign: int
) -> tuple[Shown, ...]:
    rows = examples.loc[wide.index]
    methods = [m for m in wide.columns.unique("method") if m not in BASELINES]
    rows = rows.assign(agreement=wide[[(method, "ty_f1") for method in methods]].mean(axis=1))
    rows = rows[masks(rows, confidence)[group]].dropna(subset=["agreement"])
    rows = rows.assign(gap=sign * (rows["confidence"] - rows["agreement"])).reset_index()
    rows = rows.sort_values(["gap", "question_id"], ascending=[False, True])
    rows = rows.drop_duplicates("image_id").head(SHOWN)
    return tuple(
        Shown(
            question_id=int(row.question_id),
            note=f"confidence {row.confidence:.0%}, agreement (mean F1) {row.agreement:.2f}",
        )
        for row in rows.itertuples()
    )
