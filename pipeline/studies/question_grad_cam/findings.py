"""The study in sentences."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.studies.base import Finding, Text
from pipeline.studies.question_grad_cam.localisation import HeldOut, Measured
from pipeline.studies.question_grad_cam.published import BEST_IN_PAPER, RANKS
from pipeline.studies.question_grad_cam.ranks import PAIR
from pipeline.studies.question_grad_cam.read import Read
from pipeline.studies.question_grad_cam.settings import METHOD, NAMES, PLAIN

Row = Mapping[Hashable, Any]
ALIKE = 0.5
"""A large correlation (Cohen 1988)."""
HOW = (
    "Two questions about one picture that have the same answer about different objects, both "
    "answered right: Grad-CAM starts from the answer, which is the same. The paper lets the "
    "gradient pass only through the n neurons of the combine layer that are most sensitive to the "
    "question, shows pictures, and leaves open which n; here the objects' masks are known, so it "
    "can be counted on which of the two objects a map's mass falls.",
    "row sum: sum_j d a_i / d q_j, the top n by value; L2 norm: that of the row; one word: the row "
    "sum over the word to which the layer is most sensitive. Not shared: of the top n those that "
    "are not in the other question's top n. Picked blindly: as many drawn at random.",
)


def reading(measured: Measured, read: Read) -> Text:
    """How the study is read, what was left out and the identity of all neurons."""
    pairs = read.pairs
    left = (
        f"Left out: {pairs.overlapping} pairs whose masks meet, {pairs.unmasked} without a mask."
        if pairs.overlapping or pairs.unmasked
        else ""
    )
    paragraphs = (*HOW, identity(measured, read), left)
    return Text("reading", "How to read it", tuple(p for p in paragraphs if p))


def identity(measured: Measured, read: Read) -> str:
    """With all neurons it is Grad-CAM: the largest difference between the maps."""
    everything = [i for i, s in enumerate(measured.settings) if np.isinf(s.n)]
    if measured.plain is None or not everything:
        return ""
    plain, whole = read.maps[measured.plain], read.maps[everything[0]]
    both = sorted(plain.keys() & whole.keys())
    gap = max((float(np.abs(plain[q] - whole[q]).max()) for q in both), default=0.0)
    return (
        f"With all neurons it is Grad-CAM: over {len(both)} maps the largest difference of a cell "
        f"is {gap:g}."
    )


def findings(
    frame: pd.DataFrame, best: HeldOut | None, ranks: pd.DataFrame, pairs: int
) -> list[Finding]:
    """What the numbers say, the right object first."""
    plain = frame[frame["variant"] == PLAIN].head(1).to_dict("records")
    fixed = frame[(frame["variant"] == NAMES["row_sum"]) & (frame["n"] == BEST_IN_PAPER)]
    found = [_localised(best, pairs)] if best else []
    if plain and np.isfinite(plain[0]["right"]):
        found += [_at_papers_n(row, plain[0]) for row in fixed.to_dict("records")]
    found += [_alike(row) for row in plain if np.isfinite(row["rho"])]
    own = ranks[(ranks["compared"] == PAIR) & ~ranks["published"].astype(bool)]
    return found + [_ranked(row) for row in own.head(1).to_dict("records")]


def _localised(best: HeldOut, pairs: int) -> Finding:
    verdict = _verdict(best.gain["right_low"], best.gain["right_high"])
    titles = list(dict.fromkeys(setting.title for setting in best.chosen))
    return Finding(
        f"Of {pairs} pairs of questions with one answer about different objects of a scene, a "
        f"map's mass falls on the right object in {_share(best.plain, 'right')} with Grad-CAM and "
        f"in {_share(best.right, 'right')} with {METHOD} ({' or '.join(titles)}, the best on the "
        f"other half of the scenes): {_points(best.gain, 'right')}, so {verdict}. A map that does "
        "not depend on the question would have 50%.",
        0.8,
        "localisation",
    )


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "letting through only what depends on the question helps"
    if high < 0:
        return "letting through only what depends on the question makes it worse"
    return "these data do not tell the two apart"


def _at_papers_n(row: Row, plain: Row) -> Finding:
    blind = (
        f" Against as many neurons picked blindly it is {_points(row, 'choice')}."
        if np.isfinite(row["choice"])
        else ""
    )
    return Finding(
        f"With n = {BEST_IN_PAPER} (row sum), which the paper's main example shows as the best, "
        f"the mass falls on the right object in {_share(row, 'right')}, with Grad-CAM in "
        f"{_share(plain, 'right')}: {_points(row, 'gain')}, so "
        f"{_verdict(row['gain_low'], row['gain_high'])}.{blind} Of a map's mass "
        f"{_share(row, 'inside')} lies on it, of Grad-CAM's {_share(plain, 'inside')}.",
        0.7,
        "localisation",
    )


def _alike(row: Row) -> Finding:
    """Whether the paper's premise holds here."""
    told = "alike, as in the paper's pictures" if row["rho_low"] > ALIKE else "not alike"
    return Finding(
        f"Grad-CAM's maps of two questions with one answer are {told}: mean rho "
        f"{_number(row, 'rho')} over {row['rho_n']} pairs; both fall on their own object in "
        f"{_share(row, 'both')} of pairs.",
        0.6,
        "localisation",
    )


def _ranked(row: Row) -> Finding:
    paper = [rank.rho for rank in RANKS]
    return Finding(
        f"The sensitivities ({row['sensitivity']}) of two questions about one picture have a "
        f"mean rank correlation of {_number(row, 'rho')} (n = {row['n']}); the paper's five "
        f"pairs have {min(paper):.2f} to {max(paper):.2f}.",
        0.5,
        "sensitivities",
    )


def _share(row: Row, name: str) -> str:
    value, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f}%" + (f" [{low:.1f}, {high:.1f}]" if np.isfinite(low) else "")


def _points(row: Row, name: str) -> str:
    value, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} points" + (f" [{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else "")


def _number(row: Row, name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else "")
