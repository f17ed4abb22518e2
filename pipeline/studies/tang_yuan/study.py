"""The study: what can be computed of it from a run, and what not."""

import pandas as pd

from pipeline.studies.agreement import BASELINES, Confidence
from pipeline.studies.base import Evidence, Finding, Part, Study, Table, Text
from pipeline.studies.tang_yuan.figure2 import EVERY_MAP, EXACT, figure_2, means, readings, views
from pipeline.studies.tang_yuan.figures import (
    boxes,
    correlation_map,
    difference_dots,
    histograms,
    median_bars,
)
from pipeline.studies.tang_yuan.findings import (
    base_method,
    correlation_finding,
    group_findings,
    ranking,
)
from pipeline.studies.tang_yuan.groups import (
    COMPARISONS,
    correlations,
    differences,
    group_summary,
    masks,
)
from pipeline.studies.tang_yuan.panels import panels
from pipeline.studies.tang_yuan.published import SOURCE, TESTED
from pipeline.studies.tang_yuan.tables import (
    correlation_table,
    difference_table,
    digest,
    group_table,
    thresholds,
)
from pipeline.studies.targets import PREDICTED, TRUTH, usable

FIGURES = {
    "3": ("correct_wrong", "correct_wrong_low", "correct_wrong_high"),
    "5": ("high_low_correct",),
    "6": ("high_low_wrong",),
}
NO_METRICS = (
    "No map was compared with human attention by Tang and Yuan's metrics: the dataset has no human "
    "maps, or the recipe's metrics lack `tang_yuan`. Add it and evaluate the run."
)
ONE_READING = (
    "The second reading of the discretisation: the run was evaluated before it was stored. Make "
    "the run anew and evaluate it."
)
ONE_TARGET = (
    "Maps of the labelled answer: the run has none, because its recipe's targets lack `truth` or "
    "every prediction is correct."
)


def tang_yuan(evidence: Evidence) -> Study:
    """Everything the paper reports, of this run."""
    return study(evidence.values, evidence.examples, evidence)


def study(values: pd.DataFrame, examples: pd.DataFrame, evidence: Evidence) -> Study:
    """From ``Evidence.values`` and ``Evidence.examples``; of the evidence itself only its bootstrap
    and its limits of confidence are used."""
    examples = usable(examples)
    values = values[values["metric"].isin([*TESTED, *EXACT])]
    seen = views(values, examples)
    methods = seen[PREDICTED].columns.unique("method").difference(list(BASELINES))
    if not len(methods) or not set(TESTED) <= set(values["metric"]):
        return Study("tang_yuan", "Human attention", SOURCE, missing=(NO_METRICS,))
    return _Maker(seen, examples, evidence).study()


class _Maker:
    """The matrices and what is computed from them, once."""

    def __init__(
        self, seen: dict[str, pd.DataFrame], examples: pd.DataFrame, evidence: Evidence
    ) -> None:
        self.seen, self.examples = seen, examples
        self.bootstrap, self.confidence = evidence.bootstrap, evidence.confidence
        self.means = {name: means(w, examples, self.bootstrap) for name, w in seen.items()}
        self.base = base_method(self.means[PREDICTED])
        tested = {name: only(wide, list(TESTED)) for name, wide in seen.items()}
        targets = {name: tested[name] for name in (PREDICTED, TRUTH) if name in tested}
        self.predicted = tested[PREDICTED]
        self.rows = examples.loc[self.predicted.index]
        self.summaries = pd.concat(
            group_summary(wide, examples, self.confidence, self.bootstrap).assign(target=name)
            for name, wide in targets.items()
        )
        self.differences = differences(targets, examples, self.confidence, self.bootstrap)
        self.correlations = correlations(self.predicted, examples, self.bootstrap)

    def study(self) -> Study:
        return Study(
            name="tang_yuan",
            title="Human attention, correctness and confidence",
            source=SOURCE,
            parts=(
                *(figure_2(name, table) for name, table in self.means.items()),
                *self._readings(),
                digest(self.differences, self.confidence),
                *self._figures(),
                *(
                    difference_table(self.differences, comparison, self.confidence)
                    for comparison in COMPARISONS
                ),
                *(
                    group_table(self.summaries, statistic, self.confidence)
                    for statistic in ("mean", "median")
                ),
                correlation_table(self.correlations),
                *panels(self.predicted, self.examples, self.confidence),
                conventions(self.confidence),
            ),
            findings=self._findings(),
            missing=self._missing(),
        )

    def _readings(self) -> list[Table]:
        table = self.means[EVERY_MAP if EVERY_MAP in self.means else PREDICTED]
        return [readings(table)] if set(EXACT) <= set(table) else []

    def _figures(self) -> list[Part]:
        dots = [
            difference_dots(self.differences, number, names, self.confidence)
            for number, names in FIGURES.items()
        ]
        found: list[Part] = [dots[0], correlation_map(self.correlations), *dots[1:]]
        if self.base is None:
            return found
        predicted = self.summaries[self.summaries["target"] == PREDICTED]
        groups = masks(self.rows, self.confidence)
        middle = pd.DataFrame(
            {
                "group": list(groups),
                "n": [int(mask.sum()) for mask in groups.values()],
                "median": [self.rows["confidence"][mask].median() for mask in groups.values()],
            }
        )
        given = (self.predicted, self.examples, self.base, self.confidence)
        return [
            *found,
            median_bars(predicted, middle, self.base, self.confidence),
            boxes(*given),
            *(histograms(*given, level) for level in ("low", "high")),
        ]

    def _findings(self) -> tuple[Finding, ...]:
        if self.base is None:
            return ()
        images = self.rows["image_id"].to_numpy()
        return (
            *ranking(self.means[PREDICTED], self.predicted, images, self.bootstrap),
            *group_findings(self.differences, self.base),
            *correlation_finding(self.correlations, self.base),
        )

    def _missing(self) -> tuple[str, ...]:
        groups = masks(self.rows, self.confidence)
        empty = [group.replace("_", " and ") for group, mask in groups.items() if not mask.any()]
        found = [] if self._readings() else [ONE_READING]
        if TRUTH not in self.seen:
            found.append(ONE_TARGET)
        if empty:
            found.append(
                f"Groups without a prediction: {', '.join(empty)} ({thresholds(self.confidence)}). "
                "Other limits of confidence may fill them."
            )
        return tuple(found)


def only(wide: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """The columns of these metrics."""
    return wide.loc[:, wide.columns.get_level_values("metric").isin(metrics)]


def conventions(confidence: Confidence) -> Text:
    """What was decided where the paper is silent."""
    return Text(
        name="conventions",
        title="How this was computed",
        paragraphs=(
            f"Confidence is the softmax probability of the prediction; "
            f"{thresholds(confidence)}. Correct: the prediction is the labelled answer.",
            "An example's value is the mean over its annotators. Maps that are constant have no "
            "value; they are counted, and enter no mean and no test.",
            "Figures 7 and 8 and the boxes show the method with the highest mean F1, which is how "
            "the paper chose its base technique; the findings speak of guided Grad-CAM where the "
            "run has it, because the paper does. All other methods are in the tables.",
            "The paper makes some hundred t-tests at 0.05 without correction. Here all tests form "
            "one family (Benjamini and Hochberg), and since the questions of an image resemble one "
            "another a difference counts only if exchanging whole images tells it too.",
        ),
    )
