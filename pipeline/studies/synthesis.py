"""Does the map predict anything? Agreement, faithfulness and sanity of every method together."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, rankdata, spearmanr

from pipeline.studies.base import (
    BEST_AGREEMENT,
    Badge,
    Column,
    Evidence,
    Finding,
    Study,
    Table,
    Text,
)
from pipeline.studies.means import leads, main_target, not_computed, told, wide_means
from pipeline.studies.sanity import BAD, GOOD, cascade_names, sanity

AGREEMENT = "rank_correlation"
FLOORS = ("center", "shuffled_human")
"""What agreement is read against: looking at the middle, and another image's human map."""


class Criterion(NamedTuple):
    """A column that methods are ranked by; ``sign`` -1 where less is better."""

    name: str
    noun: str
    header: str
    sign: int
    help: str


CRITERIA = (
    Criterion("agreement", "agreement", "agreement", 1, "Rank correlation with human attention."),
    Criterion("deletion", "deletion", "deletion gain", 1, "Over random order; 0 is chance."),
    Criterion("insertion", "insertion", "insertion gain", 1, "Over random order; 0 is chance."),
    Criterion(
        "randomised", "sanity", "|rho|, random weights", -1, "All drawn anew; less is better."
    ),
)


def synthesis(evidence: Evidence) -> Study:
    """The three kinds of evidence side by side, how far they order the methods alike, and what
    follows in words."""
    frame = criteria_frame(evidence)
    present = [c for c in CRITERIA if c.name in frame and frame[c.name].notna().any()]
    missing = tuple(_missing(evidence, {c.name for c in present}))
    title, source = "Does the map predict anything?", "ours, from the studies it stands on"
    if not present:
        return Study("synthesis", title, source, missing=missing)
    frame = ranked(frame, present)
    badges = dict(sanity(evidence).badges)
    parts: list[Text | Table] = [_table(evidence, frame, present, badges)]
    concordance = concordance_table(evidence, frame, present)
    if concordance is not None:
        parts.append(concordance)
    sentences = conclusions(frame, badges)
    pairs = [] if concordance is None else _concordant(concordance.frame)
    parts.insert(0, _said(sentences, pairs))
    return Study(
        name="synthesis",
        title=title,
        source=source,
        parts=tuple(parts),
        findings=tuple(_findings(sentences)),
        missing=missing,
    )


# --- criteria --------------------------------------------------------------------------------


def criteria_values(evidence: Evidence) -> pd.DataFrame:
    """``evidence.values`` of the main target with the criteria for metrics; the human rows (they
    have no target of their own) among them."""
    values = evidence.values
    names = {AGREEMENT: "agreement", "deletion_gain": "deletion", "insertion_gain": "insertion"}
    if stages := cascade_names(values):
        names[stages[-1]] = "randomised"
    target = main_target(values)
    own = values[values["metric"].isin(list(names)) & values["target"].isin([target, "human"])]
    own = own.assign(metric=own["metric"].astype(str).map(names), target=target)
    magnitudes = own["value"].where(own["metric"] != "randomised", own["value"].abs())
    return own.assign(value=magnitudes)


def criteria_frame(evidence: Evidence) -> pd.DataFrame:
    """One row a method, the criteria as ``wide_means`` has them, and of the agreement its lead over
    each floor on the same questions: ``over_center``, ``over_center_low`` and so on."""
    values = criteria_values(evidence)
    frame = wide_means(values, [c.name for c in CRITERIA], evidence)
    agreement = values[values["metric"] == "agreement"]
    for floor in FLOORS:
        if (agreement["method"] == floor).any():
            found = leads(agreement, floor, evidence.bootstrap)
            for column, name in (("mean", ""), ("low", "_low"), ("high", "_high")):
                frame[f"over_{floor}{name}"] = frame["method"].map(found[column])
    return frame


def ranked(frame: pd.DataFrame, present: Sequence[Criterion]) -> pd.DataFrame:
    """With ``rank_<criterion>`` among methods that are no baselines, mean ranks for ties, and
    ``mean_rank`` over the criteria a method has; best first, baselines last."""
    frame = frame.copy()
    for criterion in present:
        own = ~frame["baseline"] & frame[criterion.name].notna()
        ranks = rankdata(-criterion.sign * frame.loc[own, criterion.name])
        frame[f"rank_{criterion.name}"] = pd.Series(ranks, index=frame.index[own])
    frame["mean_rank"] = frame[[f"rank_{c.name}" for c in present]].mean(axis=1)
    order = ["baseline", "mean_rank", "method"]
    return frame.sort_values(order, ignore_index=True)


def _table(
    evidence: Evidence,
    frame: pd.DataFrame,
    present: Sequence[Criterion],
    badges: dict[str, Badge],
) -> Table:
    shown = [
        Column(
            name=c.name,
            header=c.header,
            low=f"{c.name}_low",
            high=f"{c.name}_high",
            reason=f"{c.name}_reason",
            help=c.help,
        )
        for c in present
    ]
    words = [badges[m].word if m in badges else "" for m in frame["method"]]
    return Table(
        name="synthesis",
        title="Agreement, faithfulness and sanity together",
        frame=frame.assign(verdict=words),
        columns=(
            Column(name="method", header="method", kind="text"),
            *shown,
            Column(name="mean_rank", header="mean rank", help="Over the criteria; 1 is best."),
            Column(name="verdict", header="weights", kind="text"),
        ),
        caption=f"Target: {main_target(evidence.values)}. Means over questions with bootstrap "
        f"intervals at {evidence.bootstrap.level:.0%}, clustered by image; n differs, because "
        f"checks look at samples: {_counts(frame, present)}. Baselines are not ranked.",
        marked="baseline",
        badged=True,
    )


def _counts(frame: pd.DataFrame, present: Sequence[Criterion]) -> str:
    return ", ".join(f"{c.header} up to {frame[f'{c.name}_n'].max()}" for c in present)


# --- concordance -----------------------------------------------------------------------------


def concordance_table(
    evidence: Evidence, frame: pd.DataFrame, present: Sequence[Criterion]
) -> Table | None:
    """Kendall's tau and Spearman's rho between the criteria over methods; None below three methods.

    The interval is tau over bootstrap resamples of images, the methods held fixed: it says how
    sure the order of *these* methods is, not what other methods would do. p is Kendall's test of
    independent orders.
    """
    methods = frame.loc[~frame["baseline"], "method"].tolist()
    rows = [
        row
        for first, second in combinations(present, 2)
        if (row := _pair(evidence, frame, methods, first, second)) is not None
    ]
    if not rows:
        return None
    return Table(
        name="concordance",
        title="Do the criteria order the methods alike?",
        frame=pd.DataFrame(rows),
        columns=(
            Column(name="first", header="criterion", kind="text"),
            Column(name="second", header="and", kind="text"),
            Column(name="tau", header="Kendall's tau", low="tau_low", high="tau_high"),
            Column(name="rho", header="Spearman's rho"),
            Column(name="p", header="p", kind="p_value", help="Kendall's test, n methods."),
            Column(name="n", header="methods", kind="count"),
        ),
        caption="Over methods that are no baselines, each criterion turned so that more is better. "
        "Intervals: images resampled, methods fixed. With few methods tau is coarse: read n.",
    )


def _pair(
    evidence: Evidence,
    frame: pd.DataFrame,
    methods: Sequence[str],
    first: Criterion,
    second: Criterion,
) -> dict[str, object] | None:
    table = frame.set_index("method").loc[list(methods), [first.name, second.name]].dropna()
    if len(table) < 3:
        return None
    a, b = first.sign * table[first.name], second.sign * table[second.name]
    tau = kendalltau(a, b) if a.nunique() > 1 and b.nunique() > 1 else None
    if tau is None:
        return None
    low, high = _tau_interval(evidence, table.index.tolist(), first, second)
    return {
        "first": first.noun,
        "second": second.noun,
        "tau": tau.statistic,
        "tau_low": low,
        "tau_high": high,
        "rho": spearmanr(a, b).statistic,
        "p": tau.pvalue,
        "n": len(table),
    }


def _tau_interval(
    evidence: Evidence, methods: Sequence[str], first: Criterion, second: Criterion
) -> tuple[float, float]:
    values = criteria_values(evidence)
    columns = [(c.name, method) for c in (first, second) for method in methods]
    own = values[values["metric"].isin([first.name, second.name])]
    wide = own.pivot(
        index=["image_id", "question_id"], columns=["metric", "method"], values="value"
    )
    clusters = wide.index.get_level_values("image_id").to_numpy()
    means = evidence.bootstrap.resampled(wide[columns].to_numpy(float), clusters)
    a, b = first.sign * means[:, : len(methods)], second.sign * means[:, len(methods) :]
    taus = kendall_rows(a, b)
    low, high = evidence.bootstrap.bounds(taus[:, None])[:, 0]
    return float(low), float(high)


def kendall_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row of ``a`` and ``b (row, n)``; NaN where either does not vary or
    holds a NaN."""
    i, j = np.triu_indices(a.shape[1], 1)
    x, y = np.sign(a[:, i] - a[:, j]), np.sign(b[:, i] - b[:, j])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


# --- words -----------------------------------------------------------------------------------


class Said(NamedTuple):
    """A sentence, and whether it tells what the data show or what they do not."""

    sentence: str
    shown: bool
    weight: float


def conclusions(frame: pd.DataFrame, badges: dict[str, Badge]) -> list[Said]:
    """What the numbers say of the method that agrees best, then of each method."""
    own = frame[~frame["baseline"]]
    said = [_agrees_best(own, badges)] if own["agreement"].notna().any() else []
    return said + [s for row in own.to_dict("records") for s in _of_method(row, badges)]


def _agrees_best(own: pd.DataFrame, badges: dict[str, Badge]) -> Said:
    best = own.sort_values(["agreement", "method"], ascending=[False, True]).iloc[0]
    rho = told(best["agreement"], best["agreement_low"], best["agreement_high"])
    end, shown = _worth(best, badges.get(str(best["method"])))
    return Said(f"{best['method']} agrees with people best (rank correlation {rho}){end}", shown, 1)


def _worth(best: pd.Series, badge: Badge | None) -> tuple[str, bool]:
    """What the agreement of a method is worth, as the end of a sentence."""
    if badge is not None and badge.word == BAD:
        return (
            ", but its maps hardly change when the weights are randomised (mean |rho| "
            f"{best['randomised']:.2f}): its agreement says nothing about this model."
        ), True
    if "over_center" in best and not _above(best, "over_center"):
        return ", but that it finds more than a blob in the centre is not shown.", False
    if badge is None or badge.word != GOOD:
        return "; that its maps depend on the weights is not shown.", False
    if not (_above(best, "deletion") or _above(best, "insertion")):
        return (
            " and its maps depend on the weights; that the answers hang on what it marks is not "
            "shown: painting it over moves them no more than random order."
        ), False
    return ", its maps depend on the weights, and the answers hang on what it marks.", True


def _of_method(row: dict, badges: dict[str, Badge]) -> list[Said]:
    return [*_against_centre(row), *_faithful(row), *_dependent(row, badges.get(row["method"]))]


def _against_centre(row: dict) -> list[Said]:
    if not np.isfinite(row.get("over_center_low", np.nan)):
        return []
    lead = told(row["over_center"], row["over_center_low"], row["over_center_high"])
    if row["over_center_low"] > 0:
        sentence = f"{row['method']} agrees with people better than a blob in the centre"
        return [Said(f"{sentence} (difference {lead}).", True, 0.3)]
    sentence = f"That {row['method']} agrees better than a blob in the centre is not shown"
    return [Said(f"{sentence} (difference {lead}).", False, 0.3)]


def _faithful(row: dict) -> list[Said]:
    ways = [w for w in ("deletion", "insertion") if np.isfinite(row[f"{w}_low"])]
    if not ways:
        return []
    gains = [f"{w} gain {told(row[w], row[f'{w}_low'], row[f'{w}_high'])}" for w in ways]
    numbers, above = f"({', '.join(gains)})", [w for w in ways if row[f"{w}_low"] > 0]
    if above == ways:
        return [Said(f"The answers hang on what {row['method']} marks {numbers}.", True, 0.3)]
    if above:
        sentence = f"{row['method']} beats random order by {above[0]} only {numbers}."
        return [Said(sentence, True, 0.3)]
    sentence = f"That the answers hang on what {row['method']} marks is not shown {numbers}."
    return [Said(sentence, False, 0.3)]


def _dependent(row: dict, badge: Badge | None) -> list[Said]:
    if badge is None or badge.good is None:
        sentence = f"Whether the maps of {row['method']} depend on the weights is not shown"
        return [Said(f"{sentence}{'' if badge is None else f' ({badge.why[:-1]})'}.", False, 0.3)]
    number = f"(mean |rho| without the trained weights {row['randomised']:.2f})"
    if badge.good:
        return [Said(f"The maps of {row['method']} depend on the weights {number}.", True, 0.3)]
    return [Said(f"The maps of {row['method']} are there without this model {number}.", True, 0.3)]


def _above(row: pd.Series, name: str) -> bool:
    return bool(row.get(f"{name}_low", np.nan) > 0)


def _concordant(frame: pd.DataFrame) -> list[Said]:
    """A sentence a pair of criteria."""
    said = []
    for row in frame.to_dict("records"):
        tau = told(row["tau"], row["tau_low"], row["tau_high"])
        both = f"{row['first']} and {row['second']}"
        capital = both[0].upper() + both[1:]
        numbers = f"(tau {tau}, {row['n']} methods)"
        if row["tau_low"] > 0:
            said.append(Said(f"{capital} order these methods alike {numbers}.", True, 0.4))
        elif row["tau_high"] < 0:
            sentence = f"{capital} order these methods the opposite way {numbers}: one cannot"
            said.append(Said(f"{sentence} stand in for the other.", True, 0.5))
        else:
            sentence = f"That {both} order methods alike is not shown {numbers}."
            said.append(Said(sentence, False, 0.4))
    return said


def _said(sentences: Sequence[Said], pairs: Sequence[Said]) -> Text:
    every = [*sentences, *pairs]
    yes = [s.sentence for s in every if s.shown]
    no = [s.sentence for s in every if not s.shown]
    nothing = ["Nothing, by these criteria."]
    return Text(
        name="conclusions",
        title="What these data show, and what they do not",
        paragraphs=("Shown:", *(yes or nothing), "Not shown:", *(no or nothing)),
    )


def _findings(sentences: Sequence[Said]) -> list[Finding]:
    return [
        Finding(s.sentence, s.weight, "synthesis", BEST_AGREEMENT)
        for s in sentences
        if s.weight > 0.8
    ]


def _missing(evidence: Evidence, present: set[str]) -> list[str]:
    found = []
    if "agreement" not in present:
        found.append(
            f"Agreement with people is left out: no {AGREEMENT} has been computed. It needs "
            "human maps in the dataset and the metric in the recipe."
        )
    if not {"deletion", "insertion"} & present:
        found.append(not_computed(evidence, "Faithfulness", "deletion_insertion"))
    if "randomised" not in present:
        found.append(not_computed(evidence, "Sanity", "sanity", "{sample: 0.1}"))
    return found
