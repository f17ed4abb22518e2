"""Pairs of questions that have one answer and different objects of one scene, with the objects'
masks from the dataset."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from pipeline.studies.base import Evidence
from pipeline.studies.targets import is_correct
from schemas.example import Example
from schemas.rows import ExampleRow
from workers import catalog
from workers.datasets.base import Dataset
from workers.evaluate import frame_of
from workers.metrics.frame import cut
from workers.metrics.resampling import axis_weights, separable

INSIDE = 0.5
"""Share of a human map's maximum from which on a pixel belongs to the object."""
Masks = Mapping[int, np.ndarray]
"""Question -> the pixels of its object, bool ``(y, x)``, of what the model saw."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a run."""

    frame: pd.DataFrame
    """One row a pair: ``image_id, first, second`` (questions), ``answer``."""
    masks: Masks
    overlapping: int
    """Pairs left out because their masks meet."""
    unmasked: int
    """Pairs left out because a mask is missing or empty."""
    shares: dict[tuple[int, ...], dict[int, np.ndarray]] = field(default_factory=dict)
    """What ``cells`` has computed, by grid."""

    def cells(self, shape: tuple[int, ...]) -> Mapping[int, np.ndarray]:
        """Question -> the share of each cell of a grid that lies in its object; once a grid."""
        if shape not in self.shares:
            self.shares[shape] = {q: cells(mask, shape) for q, mask in self.masks.items()}
        return self.shares[shape]

    @property
    def sides(self) -> pd.DataFrame:
        """Two rows a pair, one for each map: ``pair, image_id, question_id, partner``."""
        both = [
            self.frame.assign(question_id=self.frame[own], partner=self.frame[other])
            for own, other in (("first", "second"), ("second", "first"))
        ]
        sides = pd.concat(both).rename_axis("pair").reset_index()
        columns = ["pair", "image_id", "question_id", "partner"]
        return sides[columns].sort_values(["pair", "question_id"], ignore_index=True)


def cells(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The share of each cell of a map's grid that lies in a mask."""
    rows, columns = (axis_weights(size, side) for size, side in zip(mask.shape, shape, strict=True))
    return separable(mask, rows, columns)


def find_pairs(evidence: Evidence) -> Pairs:
    """The run's pairs; ``UserError`` or ``OSError`` where the dataset cannot be read."""
    examples = evidence.examples
    candidates = same_answer(examples)
    if candidates.empty:
        return Pairs(candidates, {}, 0, 0)
    wanted = set(candidates["first"]) | set(candidates["second"])
    own = ds.field("question_id").isin(list(wanted))
    rows = evidence.run.table("examples").to_table(filter=own).to_pylist()
    answered = {row["question_id"]: ExampleRow(**row) for row in rows}
    dataset = catalog.dataset(evidence.config.dataset)
    found = (example for example in dataset.examples() if example.question_id in wanted)
    return disjoint(candidates, object_masks(dataset, found, answered))


def same_answer(examples: pd.DataFrame) -> pd.DataFrame:
    """Every two questions of one image and one type with the same answer, both answered right."""
    right = examples[is_correct(examples)].sort_values("question_id")
    kind = right["question_type"].fillna("")
    groups = right.groupby([right["image_id"], kind, right["prediction"]], sort=True)
    rows = [
        {"image_id": image, "first": first, "second": second, "answer": answer}
        for (image, _, answer), own in groups["question_id"]
        for first, second in combinations(own.tolist(), 2)
    ]
    return pd.DataFrame(rows, columns=["image_id", "first", "second", "answer"])


def object_masks(
    dataset: Dataset, examples: Iterable[Example], answered: Mapping[int, ExampleRow]
) -> dict[int, np.ndarray]:
    """Where the mean human map is at least half its maximum; an exact mask stays what it is."""
    masks = {}
    for example in examples:
        frame = frame_of(answered[example.question_id])
        given = [cut(human, frame) for human in dataset.human_maps(example)]
        if given and all(human.shape == given[0].shape for human in given):
            mean = np.mean(given, axis=0)
            masks[example.question_id] = (mean >= INSIDE * mean.max()) & (mean > 0)
    return masks


def disjoint(candidates: pd.DataFrame, masks: Masks) -> Pairs:
    """The candidates whose two masks are there and do not meet."""
    verdicts = [
        _verdict(masks.get(int(first)), masks.get(int(second)))
        for first, second in zip(candidates["first"], candidates["second"], strict=True)
    ]
    kept = candidates[[verdict == "kept" for verdict in verdicts]].reset_index(drop=True)
    return Pairs(kept, masks, verdicts.count("overlapping"), verdicts.count("unmasked"))


def _verdict(first: np.ndarray | None, second: np.ndarray | None) -> str:
    if first is None or second is None or not first.any() or not second.any():
        return "unmasked"
    return "overlapping" if (first & second).any() else "kept"
