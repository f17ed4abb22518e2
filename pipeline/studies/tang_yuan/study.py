"""The study: what can be computed of it from a run, and what not."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.studies.agreement import BASELINES, Confidence
from pipeline.studies.base import Evidence, Finding, Picture, Study, Table, Text
from pipeline.studies.summary import Bootstrap
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

TITLE = "Human attention, correctness and confidence"
FIGURES = {
    "3": ("correct_wrong", "correct_wrong_low", "correct_wrong_high"),
    "5": ("high_low_correct",),
    "6": ("high_low_wrong",),
}
NO_METRICS = (
    "No map was compared with human attention by Tang and Yuan's metrics: the dataset has no human "
    "maps, or the recipe's metrics lack `tang_yuan`. Add it and evaluate the run."
)
NO_PREDICTED = (
    "No map of the predicted answer was compared with human attention: the recipe's targets lack "
    "`predicted`. Run it with that target into another --out."
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
    found = compute(evidence.values, evidence.examples, evidence.confidence, evidence.bootstrap)
    if found is None:
        compared = evidence.values["metric"].isin(TESTED).any()
        why = NO_PREDICTED if compared and TRUTH in set(evidence.values["target"]) else NO_METRICS
        return Study("tang_yuan", TITLE, SOURCE, missing=(why,))
    means, tests = means_tables(found), group_tables(found)
    return Study(
        name="tang_yuan",
        title=TITLE,
        source=SOURCE,
        parts=(
            *means,
            *tests[:1],
            *pictures(found),
            *tests[1:],
            *panels(found.predicted, found.examples, found.confidence),
            conventions(found.confidence),
        ),
        findings=findings(found),
        missing=missing(found),
    )


@dataclass(frozen=True)
class Computed:
    """All numbers of the study."""

    examples: pd.DataFrame
    """As ``targets.usable`` gives them."""
    confidence: Confidence
    bootstrap: Bootstrap
    means: dict[str, pd.DataFrame]
    """View of the targets -> figure 2."""
    predicted: pd.DataFrame
    """The matrix of the predicted answer, with the metrics that are tested."""
    summaries: pd.DataFrame
    differences: pd.DataFrame
    correlations: pd.DataFrame

    @property
    def rows(self) -> pd.DataFrame:
        """The examples behind the rows of ``predicted``."""
        return self.examples.loc[self.predicted.index]

    @property
    def groups(self) -> dict[str, np.ndarray]:
        return masks(self.rows, self.confidence)

    @property
    def base(self) -> str | None:
        """The method with the highest mean F1."""
        return base_method(self.means[PREDICTED])

    @property
    def pooled(self) -> pd.DataFrame:
        """Figure 2 over every map."""
        return self.means.get(EVERY_MAP, self.means[PREDICTED])

    @property
    def both_readings(self) -> bool:
        return set(EXACT) <= set(self.pooled)


def compute(
    values: pd.DataFrame, examples: pd.DataFrame, confidence: Confidence, bootstrap: Bootstrap
) -> Computed | None:
    """From ``Evidence.values`` and ``Evidence.examples``; None where nothing was compared."""
    examples = usable(examples)
    values = values[values["metric"].isin([*TESTED, *EXACT])]
    if not set(TESTED) <= set(values["metric"]) or set(values["method"]) <= BASELINES:
        return None
    if PREDICTED not in set(values["target"]):
        return None
    seen = views(values, examples)
    tested = {name: only(wide, list(TESTED)) for name, wide in seen.items()}
    targets = {name: tested[name] for name in (PREDICTED, TRUTH) if name in tested}
    return Computed(
        examples=examples,
        confidence=confidence,
        bootstrap=bootstrap,
        means={name: means(wide, examples, bootstrap) for name, wide in seen.items()},
        predicted=tested[PREDICTED],
        summaries=pd.concat(
            group_summary(wide, examples, confidence, bootstrap).assign(target=name)
            for name, wide in targets.items()
        ),
        differences=differences(targets, examples, confidence, bootstrap),
        correlations=correlations(tested[PREDICTED], examples, bootstrap),
    )


def means_tables(found: Computed) -> list[Table]:
    """Figure 2 for every view of the targets, then both readings of the discretisation."""
    tables = [figure_2(name, table) for name, table in found.means.items()]
    return [*tables, readings(found.pooled)] if found.both_readings else tables


def group_tables(found: Computed) -> list[Table]:
    """The digest of all differences first, then everything it digests, the groups and the
    correlations."""
    return [
        digest(found.differences, found.confidence),
        *(difference_table(found.differences, c, found.confidence) for c in COMPARISONS),
        *(group_table(found.summaries, s, found.confidence) for s in ("mean", "median")),
        correlation_table(found.correlations),
    ]


def pictures(found: Computed) -> list[Picture]:
    """Figures 3 to 8 and box plots; 7, 8 and the boxes need a method with values."""
    dots = [
        difference_dots(found.differences, number, names, found.confidence)
        for number, names in FIGURES.items()
    ]
    drawn = [dots[0], correlation_map(found.correlations), *dots[1:]]
    if found.base is None:
        return drawn
    given = (found.predicted, found.examples, found.base, found.confidence)
    predicted = found.summaries[found.summaries["target"] == PREDICTED]
    return [
        *drawn,
        median_bars(predicted, confidence_medians(found), found.base, found.confidence),
        boxes(*given),
        *(histograms(*given, level) for level in ("low", "high")),
    ]


def confidence_medians(found: Computed) -> pd.DataFrame:
    """Columns ``group, n, median``: of the confidence itself, which figure 7 shows too."""
    confidence = found.rows["confidence"]
    rows = [(g, int(mask.sum()), confidence[mask].median()) for g, mask in found.groups.items()]
    return pd.DataFrame(rows, columns=["group", "n", "median"])


def findings(found: Computed) -> tuple[Finding, ...]:
    """What the numbers say about the paper's claims."""
    if found.base is None:
        return ()
    images = found.rows["image_id"].to_numpy()
    return (
        *ranking(found.means[PREDICTED], found.predicted, images, found.bootstrap),
        *group_findings(found.differences, found.base),
        *correlation_finding(found.correlations, found.base),
    )


def missing(found: Computed) -> tuple[str, ...]:
    """What the run does not hold."""
    empty = [group.replace("_", " and ") for group, mask in found.groups.items() if not mask.any()]
    texts = [] if found.both_readings else [ONE_READING]
    if TRUTH not in found.means:
        texts.append(ONE_TARGET)
    if empty:
        texts.append(
            f"Groups without a prediction: {', '.join(empty)} ({thresholds(found.confidence)}). "
            "Other limits of confidence may fill them: `report --low` and `--high`."
        )
    return tuple(texts)


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
