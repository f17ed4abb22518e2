"""On which object does a map's mass fall?"""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from pipeline.dataset import Run
from pipeline.studies.question_grad_cam.pairs import Pairs
from pipeline.studies.stacks import stacks

UNIFORM = "uniform map"
"""The row of a map that is the same everywhere: what knowing nothing gives."""


GRID = 14
"""Its cells along a side."""
COLUMNS = ["question_id", "method", "array", "ordinal", "target_index", "scale"]


def maps_of(
    run: Run, label: str, questions: Collection[int], target: str, array: str | None = None
) -> dict[int, np.ndarray]:
    """Question -> a method's map, float32 ``(y, x)``, or another of its arrays."""
    own = (ds.field("method") == label) & (ds.field("target") == target)
    where = own & (ds.field("status") != "failed") & ds.field("question_id").isin(list(questions))
    rows = run.table("maps").to_table(columns=COLUMNS, filter=where).to_pandas()
    return {
        int(question): value
        for part, values in stacks(run, rows, array)
        for question, value in zip(part["question_id"], values, strict=True)
    }


def located(maps: Mapping[int, np.ndarray], pairs: Pairs) -> pd.DataFrame:
    """One row a map of a pair, in the order of ``pairs.sides``.

    ``own`` and ``other``: shares of the map's mass (magnitudes) on its own question's object and on
    its partner's; each cell counts by the part of it that is inside. ``right``: 1 where its own
    has more, 0 where the partner's has, a half where they are equal, as where there is no mass:
    then the shares are NaN and ``empty`` is true. All NaN where the map is missing.
    """
    sides = pairs.sides
    found = [
        _shares(maps.get(own), pairs, own, other)
        for own, other in zip(sides["question_id"], sides["partner"], strict=True)
    ]
    own, other = np.array(found, dtype=float).reshape(-1, 2).T
    there = np.array([question in maps for question in sides["question_id"]], dtype=bool)
    empty = there & np.isnan(own)
    right = np.where(empty, 0.5, (1 + np.sign(own - other)) / 2)
    right[~there] = np.nan
    return sides.assign(own=own, other=other, right=right, empty=empty)


def _shares(values: np.ndarray | None, pairs: Pairs, own: int, other: int) -> tuple[float, float]:
    if values is None or not values.any():
        return np.nan, np.nan
    mass, inside = np.abs(values).astype(np.float64), pairs.cells(values.shape)
    total = mass.sum()
    return float((mass * inside[own]).sum() / total), float((mass * inside[other]).sum() / total)


def uniform(pairs: Pairs) -> dict[int, np.ndarray]:
    """A map that is one everywhere for each question."""
    return {question: np.ones((GRID, GRID), np.float32) for question in pairs.masks}
