"""Features of an example's maps: how large its drops are, how spread, how often the answer turns.

None of them is the model's confidence, though a drop of probability cannot exceed it.
"""

import numpy as np
import pandas as pd

from pipeline.dataset import Run
from pipeline.studies.base import Evidence
from pipeline.studies.stacks import stacks

TARGET = "predicted"
CHANGED = "cells_changed"
"""The paper's feature."""
FEATURES = {
    CHANGED: "share of painted cells that change the predicted answer",
    "cells_answers": "different answers given under painted cells",
    "drop_max": "largest drop of a cell",
    "drop_mean": "mean drop",
    "drop_spread": "standard deviation of the drops",
    "drop_entropy": "entropy of |drop| over the cells, 1 where all cells count alike",
    "drop_negative": "share of cells whose painting raises the answer's score",
    "words_changed": "share of dropped words that change the predicted answer",
    "word_drop_max": "largest drop of a word",
    "word_drop_mean": "mean drop of a word",
}
"""Name -> definition, of maps for the predicted answer alone."""


def map_features(evidence: Evidence) -> pd.DataFrame:
    """One row an answered example with all features the run allows, by ``question_id``.

    Of several occlusions, or word occlusions, the first label counts. Examples of which one is
    missing are left out; without any such method there are no columns.
    """
    run = evidence.run
    cells, words = first_label(run, "occlusion"), first_label(run, "word_occlusion")
    frames = []
    if cells is not None:
        frames.append(cell_features(run, cells, evidence.examples))
    if words is not None:
        frames.append(word_features(_rows(run.words, words), evidence.examples))
    if not frames:
        return pd.DataFrame(index=pd.Index([], name="question_id"))
    return pd.concat(frames, axis=1, join="inner").dropna()


def first_label(run: Run, name: str) -> str | None:
    """The label of a method that comes first by name, its plain one if there is one."""
    labels = [label for label, d in run.definitions.items() if d.name == name]
    return min(labels, key=lambda label: (label != name, label), default=None)


def _rows(table: pd.DataFrame, label: str) -> pd.DataFrame:
    own = (table["method"] == label) & (table["target"] == TARGET) & (table["status"] != "failed")
    return table[own]


def cell_features(run: Run, label: str, examples: pd.DataFrame) -> pd.DataFrame:
    """Features of an occlusion method's arrays, one row a question."""
    rows = _rows(run.maps, label)
    drops = [_flat(values) for _, values in stacks(run, rows, "drop")]
    tops, parts = [], []
    for part, values in stacks(run, rows, "top_answer"):
        parts.append(part["question_id"])
        tops.append(_flat(values))
    if not parts:
        return pd.DataFrame(columns=[f for f in FEATURES if f.startswith(("cells", "drop"))])
    questions = pd.Index(pd.concat(parts), name="question_id")
    own = examples.set_index("question_id").reindex(questions)
    drop, top = np.concatenate(drops), np.concatenate(tops)
    predicted = own["prediction_index"].to_numpy()
    return pd.DataFrame({**answer_features(top, predicted), **drop_features(drop)}, questions)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def answer_features(tops: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """``tops (n, cell)`` answers under painted cells, ``predicted (n,)`` the clean ones, NaN where
    a run does not tell."""
    ordered = np.sort(tops, axis=1)
    changed = (tops != predicted[:, None]).mean(axis=1)
    return {
        CHANGED: np.where(np.isnan(predicted.astype(float)), np.nan, changed),
        "cells_answers": 1.0 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1),
    }


def drop_features(drops: np.ndarray) -> dict[str, np.ndarray]:
    """``drops (n, cell)``."""
    drops = drops.astype(np.float64)
    return {
        "drop_max": drops.max(axis=1),
        "drop_mean": drops.mean(axis=1),
        "drop_spread": drops.std(axis=1),
        "drop_entropy": entropy(np.abs(drops)),
        "drop_negative": (drops < 0).mean(axis=1),
    }


def entropy(weights: np.ndarray) -> np.ndarray:
    """Shannon entropy of each row of ``weights (n, cell) >= 0`` scaled to sum 1, over its largest
    possible value, log(cell). A row of zeros prefers no cell: 1."""
    total = weights.sum(axis=1, keepdims=True)
    share = np.divide(weights, total, out=np.ones_like(weights), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    largest = np.log(weights.shape[1]) or 1.0
    return np.where(total[:, 0] > 0, -(share * logs).sum(axis=1) / largest, 1.0)


def word_features(words: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """``words`` has one row a question, with ``importances`` and ``top_answers``; a question
    without words has no features."""
    words = words[words["importances"].map(len) > 0].set_index("question_id")
    predictions = examples.set_index("question_id")["prediction"].reindex(words.index)
    changed = [
        float(np.mean(np.asarray(tops, object) != answer))
        for tops, answer in zip(words["top_answers"], predictions, strict=True)
    ]
    return pd.DataFrame(
        {
            "words_changed": changed,
            "word_drop_max": [float(np.max(v)) for v in words["importances"]],
            "word_drop_mean": [float(np.mean(v)) for v in words["importances"]],
        },
        index=words.index,
    )
