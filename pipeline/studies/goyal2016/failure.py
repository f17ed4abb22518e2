"""Failure prediction: do a model's maps tell whether its answer is right (section 4.2)?

The paper found that "the number of times the predicted answer changes correlates with the model's
accuracy" and predicts success or failure from it 72 % of the time; it names neither classifier nor
split. Here: logistic regression, every probability from a fit that has not seen the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.studies.base import Column, Evidence, Finding, Picture, Table
from pipeline.studies.goyal2016.instability import CHANGED, FEATURES, map_features
from pipeline.studies.goyal2016.published import FAILURE_ACCURACY
from pipeline.studies.goyal2016.roc import Area, area, difference
from pipeline.studies.goyal2016.section import Section
from pipeline.studies.summary import Bootstrap, effective_clusters

FEWEST = 10
"""Right answers, and wrong ones, below which nothing is fitted."""
FOLDS = 5
SOLVER = "newton-cholesky"
"""A few steps where there are many more examples than features."""
REFITS = 200
"""Resamples of images behind the coefficients' intervals."""
MAPS, PAPER, SURE, BOTH = (
    "all map features",
    "share of painted cells that change the answer",
    "confidence",
    "confidence and all map features",
)
DRAWN = {MAPS: "#0072B2", PAPER: "#E69F00", SURE: "#666666"}


@dataclass(frozen=True)
class Labelled:
    """Examples whose answer is known to be right or wrong, with all features."""

    features: pd.DataFrame
    """One row an example, ``confidence`` among the columns but no map feature."""
    right: np.ndarray
    images: np.ndarray

    @property
    def maps(self) -> list[str]:
        """Names of the map features."""
        return [name for name in self.features if name in FEATURES]


def section(evidence: Evidence) -> Section:
    """Accuracies, ROC curves and coefficients, or why there are none."""
    features = map_features(evidence)
    if not len(features.columns):
        return Section(
            missing=(
                "Failure prediction needs maps that paint or drop parts of the input: add "
                "occlusion and word_occlusion to the recipe's methods and run "
                f"`python run_pipeline.py run RECIPE --out {evidence.run.root}` again.",
            )
        )
    data = labelled(features, evidence.examples)
    if reason := refusal(data):
        return Section(missing=(f"Failure prediction: {reason}",))
    return predict(data, evidence.bootstrap)


def labelled(features: pd.DataFrame, examples: pd.DataFrame) -> Labelled:
    """Features by ``question_id`` joined with ``confidence``, ``correct`` and ``image_id``."""
    known = examples[examples["correct"].notna()].set_index("question_id")
    known = known[known.index.isin(features.index)].sort_index()
    table = features.loc[known.index].assign(confidence=known["confidence"])
    return Labelled(table, known["correct"].astype(bool).to_numpy(), known["image_id"].to_numpy())


def refusal(data: Labelled) -> str | None:
    """Why these examples do not allow a prediction to be learnt and tested."""
    for kind, own in (("right", data.right), ("wrong", ~data.right)):
        images = len(np.unique(data.images[own]))
        if own.sum() < FEWEST or images < FOLDS:
            return (
                f"{own.sum():,} of {len(own):,} answers with a label and maps are {kind}, on "
                f"{images:,} images; it takes {FEWEST} on {FOLDS}. Explain more examples, or "
                f"some where the model is more often {kind}."
            )
    return None


def predict(data: Labelled, bootstrap: Bootstrap) -> Section:
    """Everything about one set of examples."""
    folds = image_folds(data, bootstrap.seed)
    scores = {
        name: out_of_fold(data.features[columns].to_numpy(float), data.right, folds)
        for name, columns in scorings(data).items()
    }
    areas = {name: area(values, data.right) for name, values in scores.items()}
    frame = prediction_table(data, scores, areas, bootstrap)
    coefficients = coefficient_table(data, bootstrap)
    parts = (
        _table(frame, bootstrap.level),
        _picture(data, scores, areas),
        _coefficients(coefficients, bootstrap.level),
    )
    return Section(parts, tuple(sentences(data, frame, areas, bootstrap.level)))


def scorings(data: Labelled) -> dict[str, list[str]]:
    """Name -> the features that a prediction uses."""
    paper = {PAPER: [CHANGED]} if CHANGED in data.maps else {}
    sure = ["confidence"]
    return {MAPS: data.maps, **paper, SURE: sure, BOTH: [*sure, *data.maps]}


def image_folds(data: Labelled, seed: int) -> np.ndarray:
    """The fold ``(n,)`` of each example: whole images, stratified by right and wrong."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    folds = np.empty(len(data.right), int)
    for k, (_, test) in enumerate(splitter.split(data.right, data.right, data.images)):
        folds[test] = k
    return folds


def out_of_fold(features: np.ndarray, right: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Probability ``(n,)`` that each answer is right, fitted on the other folds;
    ``features (n, k)``."""
    probabilities = np.empty(len(features))
    for k in range(FOLDS):
        test = folds == k
        fitted = regression().fit(features[~test], right[~test])
        probabilities[test] = fitted.predict_proba(features[test])[:, 1]
    return probabilities


def regression() -> Pipeline:
    """Standardised features, an L2 penalty of 1."""
    return make_pipeline(StandardScaler(), LogisticRegression(solver=SOLVER))


def prediction_table(
    data: Labelled,
    scores: Mapping[str, np.ndarray],
    areas: Mapping[str, Area],
    bootstrap: Bootstrap,
) -> pd.DataFrame:
    """One row a prediction: accuracy, accuracy over the majority's, balanced accuracy, AUC.

    A prediction is "right" where its probability exceeds 1/2; for the balanced accuracy where it
    exceeds the share of right answers. Intervals resample images; they hold the fits fixed.
    """
    majority = data.right if data.right.mean() >= 0.5 else ~data.right
    hits = {name: (values > 0.5) == data.right for name, values in scores.items()}
    even = {name: (values > data.right.mean()) == data.right for name, values in scores.items()}
    columns = [majority, *hits.values()]
    columns += [hit.astype(float) - majority for hit in hits.values()]
    columns += [np.where(side, own, np.nan) for own in even.values() for side in _sides(data)]
    values = np.array(columns, float).T
    means = bootstrap.resampled(values, data.images)
    behind = effective_clusters(values, data.images)
    k = len(scores)
    balanced = (means[:, 1 + 2 * k :: 2] + means[:, 2 + 2 * k :: 2]) / 2
    fewer = np.minimum(behind[1 + 2 * k :: 2], behind[2 + 2 * k :: 2])
    hit, gain = slice(1, 1 + k), slice(1 + k, 1 + 2 * k)
    table = pd.DataFrame({"prediction": list(scores), "reference": [s == SURE for s in scores]})
    table["accuracy"] = [hit.mean() for hit in hits.values()]
    table["accuracy_low"], table["accuracy_high"] = bootstrap.bounds(means[:, hit], behind[hit])
    table["over_majority"] = table["accuracy"] - majority.mean()
    gains = bootstrap.bounds(means[:, gain], behind[gain])
    table["over_majority_low"], table["over_majority_high"] = gains
    table["balanced"] = [
        np.mean([own[side].mean() for side in _sides(data)]) for own in even.values()
    ]
    table["balanced_low"], table["balanced_high"] = bootstrap.bounds(balanced, fewer)
    table["auc"] = [areas[name].value for name in scores]
    bounds = [areas[name].interval(data.images, bootstrap.level) for name in scores]
    table["auc_low"], table["auc_high"] = np.array(bounds).T
    always = bootstrap.bounds(means[:, :1], behind[:1])[:, 0]
    return _with_references(table, majority, always, data)


def _sides(data: Labelled) -> tuple[np.ndarray, np.ndarray]:
    return data.right, ~data.right


def _with_references(
    table: pd.DataFrame, majority: np.ndarray, bounds: np.ndarray, data: Labelled
) -> pd.DataFrame:
    """The majority class and the published accuracy, set apart."""
    kind = "right" if data.right.mean() >= 0.5 else "wrong"
    constant = {
        "prediction": f"always {kind} (majority)",
        "accuracy": majority.mean(),
        "accuracy_low": bounds[0],
        "accuracy_high": bounds[1],
        "over_majority": 0.0,
        "balanced": 0.5,
        "reason": "one answer for all has no ROC curve",
    }
    published = {
        "prediction": "Goyal et al. 2016, published",
        "accuracy": FAILURE_ACCURACY,
        "reason": "not published",
    }
    table = pd.concat(
        [table, pd.DataFrame([constant, published]).assign(reference=True)], ignore_index=True
    )
    table["n"] = pd.array([len(data.right)] * (len(table) - 1) + [None], dtype="Int64")
    table["n_wrong"] = pd.array([(~data.right).sum()] * (len(table) - 1) + [None], dtype="Int64")
    return table


def coefficient_table(data: Labelled, bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a map feature: what it is where answers are right and wrong, what it predicts alone,
    and its weight beside the others (standardised, towards right), refitted on resampled images."""
    values = data.features[data.maps].to_numpy(float)
    weights = refitted(values, data, bootstrap)
    behind = effective_clusters(np.ones((len(values), 1)), data.images)
    low, high = bootstrap.bounds(weights, behind.repeat(weights.shape[1]))
    alone = [area(column, data.right) for column in values.T]
    bounds = np.array([a.interval(data.images, bootstrap.level) for a in alone])
    return pd.DataFrame(
        {
            "feature": data.maps,
            "definition": [FEATURES[name] for name in data.maps],
            "right": values[data.right].mean(axis=0),
            "wrong": values[~data.right].mean(axis=0),
            "auc": [a.value for a in alone],
            "auc_low": bounds[:, 0],
            "auc_high": bounds[:, 1],
            "auc_reason": [_why_no_interval(a) for a in alone],
            "coefficient": regression().fit(values, data.right)[-1].coef_[0],
            "coefficient_low": low,
            "coefficient_high": high,
        }
    )


def _why_no_interval(own: Area) -> str | None:
    return None if 0 < own.value < 1 else "every pair is ordered: no error can be estimated"


def refitted(values: np.ndarray, data: Labelled, bootstrap: Bootstrap) -> np.ndarray:
    """Coefficients ``(resample, k)`` of fits on resampled images."""
    _, codes = np.unique(data.images, return_inverse=True)
    rng = np.random.default_rng(bootstrap.seed)
    scaled = StandardScaler().fit_transform(values)
    found = []
    for _ in range(min(REFITS, bootstrap.resamples)):
        drawn = np.bincount(rng.integers(codes.max() + 1, size=codes.max() + 1))
        weights = np.append(drawn, np.zeros(codes.max() + 1 - len(drawn)))[codes]
        kept = weights > 0
        if len(np.unique(data.right[kept])) == 2:
            model = LogisticRegression(solver=SOLVER)
            found.append(model.fit(scaled[kept], data.right[kept], weights[kept]).coef_[0])
    return np.array(found)


PREDICTIONS = (
    Column(name="prediction", header="predicted from", kind="text"),
    Column(
        name="accuracy",
        header="accuracy",
        kind="percent",
        low="accuracy_low",
        high="accuracy_high",
        help="Share of answers whose being right or wrong is predicted rightly (probability above "
        "1/2), out of fold.",
    ),
    Column(
        name="over_majority",
        header="over majority",
        kind="percent",
        low="over_majority_low",
        high="over_majority_high",
        reason="reason",
        help="Accuracy less that of always predicting the more frequent outcome, paired.",
    ),
    Column(
        name="balanced",
        header="balanced accuracy",
        kind="percent",
        low="balanced_low",
        high="balanced_high",
        reason="reason",
        help="Mean of the accuracies among right and among wrong answers, the threshold being the "
        "share of right answers; 50 % says nothing.",
    ),
    Column(
        name="auc",
        header="AUC",
        low="auc_low",
        high="auc_high",
        reason="reason",
        help="Probability that a right answer scores above a wrong one.",
    ),
    Column(name="n", header="n", kind="count", help="Answers with a label and all features."),
    Column(name="n_wrong", header="wrong", kind="count"),
)


def _table(frame: pd.DataFrame, level: float) -> Table:
    return Table(
        name="failure_prediction",
        title="Is the answer right? Predicted from the maps",
        frame=frame,
        columns=PREDICTIONS,
        caption=f"Logistic regression, {FOLDS} folds of whole images, stratified; maps for the "
        "predicted answer. Confidence is no map feature and stands as a reference; a drop of "
        "probability is bounded by it. n counts answers. Intervals: "
        f"{100 * level:g} %, accuracies by bootstrap over images with the fits held fixed, AUC "
        "by Obuchowski's clustered variance.",
        marked="reference",
    )


def _picture(
    data: Labelled, scores: Mapping[str, np.ndarray], areas: Mapping[str, Area]
) -> Picture:
    curves = pd.concat([_curve(data, name, scores[name]) for name in DRAWN if name in scores])
    return Picture(
        name="failure_roc",
        title="Telling right answers from wrong ones",
        figure=_roc(curves, areas),
        data=curves.reset_index(drop=True),
        caption="ROC curves of the out-of-fold probabilities; a right answer is the positive "
        f"class. n = {len(data.right):,} answers, {(~data.right).sum():,} wrong.",
    )


def _curve(data: Labelled, name: str, scores: np.ndarray) -> pd.DataFrame:
    false, true, _ = roc_curve(data.right, scores)
    return pd.DataFrame({"prediction": name, "false_positives": false, "true_positives": true})


def _roc(curves: pd.DataFrame, areas: Mapping[str, Area]) -> Figure:
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, own in curves.groupby("prediction", sort=False):
        label, style = f"{name}: {areas[str(name)].value:.2f}", "--" if name == SURE else "-"
        points = (own["false_positives"], own["true_positives"])
        axes.plot(*points, style, color=DRAWN[str(name)], label=label)
    axes.plot([0, 1], [0, 1], ":", color="#999999", label="chance: 0.50")
    axes.set_xlabel("wrong answers taken for right")
    axes.set_ylabel("right answers taken for right")
    axes.set_aspect("equal")
    axes.legend(title="area under the curve", frameon=False, fontsize=7, title_fontsize=8)
    return figure


COEFFICIENTS = (
    Column(name="feature", header="feature", kind="text"),
    Column(name="definition", header="definition", kind="text"),
    Column(name="right", header="mean, right"),
    Column(name="wrong", header="mean, wrong"),
    Column(
        name="auc",
        header="AUC alone",
        low="auc_low",
        high="auc_high",
        reason="auc_reason",
        help="Of the feature itself, nothing fitted; below 1/2 it is larger for wrong answers.",
    ),
    Column(
        name="coefficient",
        header="coefficient",
        low="coefficient_low",
        high="coefficient_high",
        help="Change of the log-odds of being right for one standard deviation, the others fixed; "
        "features that go together share their weight.",
    ),
)


def _coefficients(frame: pd.DataFrame, level: float) -> Table:
    return Table(
        name="failure_features",
        title="What the map features say",
        frame=frame,
        columns=COEFFICIENTS,
        caption="One logistic regression on all examples, features standardised, L2 penalty 1. "
        f"Intervals: {100 * level:g} %, coefficients by {REFITS} fits on resampled images, AUC "
        "by Obuchowski's clustered variance.",
    )


def sentences(
    data: Labelled, frame: pd.DataFrame, areas: Mapping[str, Area], level: float
) -> list[Finding]:
    """Whether maps foresee failure, and whether they add anything to the model's confidence."""
    rows = frame.set_index("prediction")
    maps, source = rows.loc[MAPS], "failure_prediction"
    known = maps["auc_low"] > 0.5 or maps["auc"] == 1  # which has no interval
    verb = "tell right answers from wrong ones" if known else "do not tell right from wrong answers"
    better = (
        "above"
        if maps["over_majority_low"] > 0
        else "below"
        if maps["over_majority_high"] < 0
        else "not clearly different from"
    )
    low, high = maps["auc_low"], maps["auc_high"]
    interval = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
    majority = frame[frame["prediction"].str.startswith("always")].iloc[0]
    text = (
        f"The model's maps {verb}: AUC {maps['auc']:.2f}{interval}; accuracy "
        f"{maps['accuracy']:.0%} [{maps['accuracy_low']:.0%}, {maps['accuracy_high']:.0%}], "
        f"{better} the "
        f"{majority['accuracy']:.0%} of always guessing the majority (published "
        f"{FAILURE_ACCURACY:.0%}), n = {len(data.right):,}."
    )
    return [Finding(text, 0.75, source), Finding(_added(data, areas, level), 0.4, source)]


def _added(data: Labelled, areas: Mapping[str, Area], level: float) -> str:
    gain = difference(areas[BOTH], areas[SURE])
    low, high = gain.plain_interval(data.images, level)
    adds = "add to" if low > 0 else "take from" if high < 0 else "add nothing certain to"
    return (
        f"Map features {adds} what the model's confidence says about its being right: AUC "
        f"{areas[SURE].value:.2f} by confidence, {areas[BOTH].value:.2f} by both, difference "
        f"{gain.value:.3f} [{low:.3f}, {high:.3f}]."
    )
