"""How alike are the sensitivities of two questions? The paper's tables 1 to 6."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.studies.question_grad_cam.localisation import means, spearman
from pipeline.studies.question_grad_cam.published import (
    RANKS,
    SAME_QUESTION,
    TOP,
    TWO_QUESTIONS,
)
from pipeline.studies.summary import Bootstrap

Vectors = Mapping[int, np.ndarray]
"""Question -> its sensitivity, a number a neuron."""
NOT_PRINTED = "the paper does not print it"
COLUMNS = [
    *("compared", "sensitivity", "published", "rho", "rho_low", "rho_high", "smallest", "largest"),
    *("common", "common_low", "common_high", "n"),
]
PAIR, SAME = "the two questions of a pair", "one question on two images"


def compared(vectors: Vectors, couples: pd.DataFrame) -> pd.DataFrame:
    """``couples`` (questions ``first, second``) that have vectors, with ``rho`` between them and
    ``common``, how many of the ten largest they share."""
    there = couples["first"].isin(list(vectors)) & couples["second"].isin(list(vectors))
    kept = couples[there].reset_index(drop=True)
    if kept.empty:
        return kept.assign(rho=np.nan, common=np.nan)
    one, two = (np.stack([vectors[q] for q in kept[side]]) for side in ("first", "second"))
    shared = [common(a, b) for a, b in zip(one, two, strict=True)]
    return kept.assign(rho=spearman(one, two), common=np.array(shared, dtype=float))


def common(first: np.ndarray, second: np.ndarray) -> int:
    """Neurons that are among the ten largest of both; of equal ones the lower index."""
    one, two = (set(np.argsort(-side, kind="stable")[:TOP].tolist()) for side in (first, second))
    return len(one & two)


def repeated(examples: pd.DataFrame) -> pd.DataFrame:
    """Each question with the next image on which it is asked in the same words: ``image_id`` of
    the first, ``first, second``."""
    ordered = examples.sort_values("question_id").drop_duplicates(["question", "image_id"])
    later = ordered.groupby("question")["question_id"].shift(-1)
    pairs = ordered.assign(first=ordered["question_id"], second=later).dropna(subset=["second"])
    return pairs[["image_id", "first", "second"]].astype({"second": "int64"})


def rank_frame(found: Mapping[tuple[str, str], pd.DataFrame], bootstrap: Bootstrap) -> pd.DataFrame:
    """Published rows, then ours: ``found`` is ``compared`` by (what is compared, sensitivity)."""
    rows = _published()
    for (what, sensitivity), frame in found.items():
        if len(frame):
            rows.append(_row(what, sensitivity, frame, bootstrap))
    return pd.DataFrame(rows, columns=COLUMNS).assign(
        rho_reason=NOT_PRINTED, common_reason=NOT_PRINTED
    )


def _row(what: str, sensitivity: str, frame: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    images = frame["image_id"].to_numpy()
    row: dict[str, Any] = {"compared": what, "sensitivity": sensitivity, "published": False}
    for name in ("rho", "common"):
        row |= means(frame[[name]].to_numpy(), images, bootstrap, name).iloc[0].to_dict()
    return {**row, "smallest": frame["rho"].min(), "largest": frame["rho"].max(), "n": len(frame)}


def _published() -> list[dict[str, Any]]:
    paper = {"sensitivity": "in the paper", "published": True}
    rho = [r.rho for r in RANKS]
    return [
        *({**paper, "compared": f"{r.first} {r.second}", "rho": r.rho, "n": 1} for r in RANKS),
        {
            **paper,
            "compared": PAIR,
            "rho": float(np.mean(rho)),
            "smallest": min(rho),
            "largest": max(rho),
            "n": len(rho),
        },
        *_common(PAIR, TWO_QUESTIONS),
        *_common(SAME, SAME_QUESTION),
    ]


def _common(what: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    told = {
        "compared": f"{what}, tables 1 to 4",
        "sensitivity": "in the paper",
        "published": True,
        "reason": NOT_PRINTED,
    }
    return [{**told, "common": float(np.mean(counts)), "n": len(counts)}]
