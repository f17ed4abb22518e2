"""Sentences from the numbers, which claim no more than the tests do."""

import numpy as np
import pandas as pd

from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import Finding
from pipeline.studies.statistics.pairs import paired
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tables import number
from pipeline.studies.tang_yuan.groups import COMPARISONS, GROUPS
from pipeline.studies.tang_yuan.published import CLAIMS, FIGURE_2, MEASURES, TESTED, TESTED_METHOD
from pipeline.studies.tang_yuan.tables import ALPHA, told
from pipeline.studies.targets import PREDICTED

FLOORS = ("random", "center", "shuffled_human")


def base_method(table: pd.DataFrame) -> str | None:
    """The method, not a baseline, with the highest mean F1: the paper's base technique by its own
    criterion. ``table`` as ``figure2.means`` gives it."""
    own = table[~table["marked"] & table["ty_f1"].notna()]
    return None if own.empty else str(own["method"].iloc[0])


def ranking(
    table: pd.DataFrame, wide: pd.DataFrame, images: np.ndarray, bootstrap: Bootstrap
) -> list[Finding]:
    """Which method agrees most with people, whether that can be told, and whether it beats the
    baselines."""
    best = base_method(table)
    if best is None:
        return []
    own = table[~table["marked"] & table["ty_f1"].notna()]
    row = own.iloc[0]
    text = (
        f"Of {len(own)} methods {best} has the highest mean F1 with human attention, "
        f"{_interval(row['ty_f1'], row['ty_f1_low'], row['ty_f1_high'])} (n = {row['n']:.0f})"
    )
    if len(own) > 1:
        text += f"; {_against(wide, images, bootstrap, best, own['method'].iloc[1])}"
    floors = table[table["method"].isin(FLOORS) & table["ty_f1"].notna()]
    if len(floors):
        text += f"; {_against(wide, images, bootstrap, best, floors['method'].iloc[0])}"
    paper = max(FIGURE_2, key=lambda method: FIGURE_2[method]["ty_f1"])
    text += f". In the paper it is {paper} ({FIGURE_2[paper]['ty_f1']:.2f})."
    return [Finding(sentence=text, weight=0.6, source=f"figure_2_{PREDICTED}")]


def group_findings(frame: pd.DataFrame, base: str) -> list[Finding]:
    """One a comparison that the paper makes: the rank correlation of its method, and how many
    differences can be told over all methods and metrics."""
    methods = set(frame["method"])
    method = TESTED_METHOD if TESTED_METHOD in methods else base
    found = []
    for comparison in COMPARISONS:
        own = frame[
            (frame["comparison"] == comparison.name)
            & (frame["target"] == PREDICTED)
            & ~frame["baseline"]
        ]
        if comparison.name not in CLAIMS or own.empty:
            continue
        row = own[(own["method"] == method) & (own["metric"] == "ty_rank")].iloc[0]
        text = f"{comparison.title}: {verdict(row, comparison.first, comparison.second)}"
        if own["p"].notna().any():
            text += f" {_count(own)}"
        text += f" For comparison, {CLAIMS[comparison.name]}{_published(row)}."
        weight = 0.55 if told(own).any() else 0.4
        found.append(Finding(text, weight, f"differences_{comparison.name}"))
    return found


def verdict(row: pd.Series, first: str, second: str) -> str:
    """What one row of ``differences`` allows to say."""
    what = f"{MEASURES.get(row['metric'], TESTED[row['metric']])} of {row['method']}"
    if row["reason"] is not None:
        return f"the {what} cannot be compared ({row['reason']})."
    numbers = (
        f"{_interval(row['difference'], row['clustered_low'], row['clustered_high'], sign=True)}, "
        f"{_p('p_BH', row['p_bh'])}, n = {row['n_first']:.0f} and {row['n_second']:.0f}"
    )
    if row["p_bh"] > ALPHA:
        return f"no difference can be told in the {what} ({numbers})."
    if row["p_permutation"] > ALPHA:
        return (
            f"the t-test tells a difference in the {what} ({numbers}), exchanging whole images "
            f"does not ({_p('p', row['p_permutation'])}): it cannot be relied on."
        )
    side = "higher" if row["difference"] > 0 else "lower"
    return f"the {what} is {side} for {GROUPS[first]} than for {GROUPS[second]} ({numbers})."


def correlation_finding(frame: pd.DataFrame, base: str) -> list[Finding]:
    """The rank correlation of the base method against confidence."""
    own = frame[(frame["method"] == base) & (frame["metric"] == "ty_rank")]
    if own.empty or own["reason"].iloc[0] is not None:
        return []
    row = own.iloc[0]
    numbers = _interval(row["r"], row["clustered_low"], row["clustered_high"], sign=True)
    low, high = row["clustered_low"], row["clustered_high"]
    if row["p_bh"] <= ALPHA and (low > 0 or high < 0):
        words = f"surer predictions have {'higher' if row['r'] > 0 else 'lower'}"
        text = f"{words} rank correlation with people"
    else:
        text = "no relation of confidence and rank correlation can be told"
    sentence = (
        f"Among correct predictions, {text} for {base}: Pearson r {numbers}, "
        f"{_p('p_BH', row['p_bh'])}, n = {row['n']:.0f}. The paper calls its correlations weak and "
        "negative."
    )
    return [Finding(sentence, 0.35, "correlations")]


def _against(
    wide: pd.DataFrame, images: np.ndarray, bootstrap: Bootstrap, best: str, other: str
) -> str:
    row = paired(
        wide[best, "ty_f1"].to_numpy(), wide[other, "ty_f1"].to_numpy(), images, bootstrap
    ).iloc[0]
    name = f"the baseline {other}" if other in BASELINES else other
    if not np.isfinite(row["ci_low"]):
        return f"its distance to {name} has no interval: too few images"
    gap = _interval(row["difference"], row["ci_low"], row["ci_high"], sign=True)
    if row["ci_low"] > 0:
        return f"that is above {name} (paired difference {gap})"
    if row["ci_high"] < 0:
        return f"that is below {name} (paired difference {gap})"
    return f"it cannot be told from {name} (paired difference {gap})"


def _count(own: pd.DataFrame) -> str:
    tests, sure = int(own["p"].notna().sum()), told(own)
    above, below = (int((sure & (side * own["difference"] > 0)).sum()) for side in (1, -1))
    return (
        f"Over all methods and metrics {above + below} of {tests} differences can be told "
        f"({above} above 0, {below} below)."
    )


def _published(row: pd.Series) -> str:
    return f" (p = {row['p_published']:g})" if np.isfinite(row["p_published"]) else ""


def _interval(value: float, low: float, high: float, sign: bool = False) -> str:
    texts = [number(v, abs(value)) for v in (value, low, high)]
    if sign and value > 0:
        texts[0] = f"+{texts[0]}"
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if np.isfinite(low) else texts[0]


def _p(name: str, p: float) -> str:
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}"
