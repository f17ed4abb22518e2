"""To which word is the combine layer most sensitive? The paper's section 5."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pipeline.studies.question_grad_cam.localisation import means
from pipeline.studies.question_grad_cam.pairs import Pairs
from pipeline.studies.summary import Bootstrap

NAMING = "the word that tells the pair apart"
LEAST = 10
"""Questions that a word must be in to have a row."""


def word_rows(tokens: Mapping[int, Sequence[str]], places: Mapping[int, int]) -> pd.DataFrame:
    """One row a word of a question: ``question_id, position, word``, and ``most``, 1 where the
    layer is most sensitive to it. Of a word that comes twice each has a row."""
    rows = [
        {"question_id": q, "position": i, "word": word, "most": float(i == place)}
        for q, place in places.items()
        for i, word in enumerate(tokens[q])
    ]
    return pd.DataFrame(rows, columns=["question_id", "position", "word", "most"])


def word_frame(
    rows: pd.DataFrame,
    tokens: Mapping[int, Sequence[str]],
    images: Mapping[int, int],
    pairs: Pairs,
    bootstrap: Bootstrap,
) -> pd.DataFrame:
    """One row a word: how often it is the most sensitive of its question, with an interval, beside
    ``chance``, one in as many as the question has words; first the words that tell pairs apart."""
    counts = rows.groupby("question_id")["position"].transform("size")
    rows = rows.assign(chance=1 / counts, image_id=rows["question_id"].map(images))
    telling = rows[[key in _telling(tokens, pairs) for key in _keys(rows)]]
    groups = [(NAMING, telling), *((str(w), own) for w, own in rows.groupby("word"))]
    parts = [
        means(own[["most"]].to_numpy(), own["image_id"].to_numpy(), bootstrap, "most").assign(
            word=word, chance=own["chance"].mean()
        )
        for word, own in groups
        if len(own) >= (1 if word == NAMING else LEAST)
    ]
    if not parts:
        return pd.DataFrame()
    frame = pd.concat(parts).assign(naming=lambda f: f["word"] == NAMING)
    return frame.sort_values(["naming", "most"], ascending=False, ignore_index=True)


def _keys(rows: pd.DataFrame) -> list[tuple[int, int]]:
    return list(zip(rows["question_id"], rows["position"], strict=True))


def _telling(tokens: Mapping[int, Sequence[str]], pairs: Pairs) -> set[tuple[int, int]]:
    """(question, position) of the words in which two questions of equal length differ."""
    found: set[tuple[int, int]] = set()
    for first, second in zip(pairs.frame["first"], pairs.frame["second"], strict=True):
        one, two = tokens[first], tokens[second]
        if len(one) == len(two):
            differ = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
            found |= {(q, i) for q in (first, second) for i in differ}
    return found
