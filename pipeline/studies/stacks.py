"""Maps of a whole run as stacks, read many at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from pipeline.dataset import Run

BLOCK = 64 * 2**20
"""Bytes of maps in memory at once."""
GAP = 4
"""Places apart that are still neighbours."""


def stacks(
    run: Run, rows: pd.DataFrame, array: str | None = None
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Rows of one method's maps and the maps themselves, ``(n, ...)``, some at a time.

    As ``run.fetch`` in one go, hundreds of times as fast: float32, scaled, or integers as they are.
    Rows come in the order of their ordinals; failed maps must have been left out.
    """
    if not len(rows):
        return
    primary = rows["array"].iloc[0]
    path = primary if array is None else f"{rows['method'].iloc[0]}/{array}"
    stored: Any = run.store.arrays()[path]
    per_target = "target" in (stored.metadata.dimension_names or ())
    rows = rows.sort_values(["ordinal", "target_index"], kind="stable")
    size = max(1, BLOCK // (stored.dtype.itemsize * int(np.prod(stored.shape[1:]))))
    for _, part in rows.groupby(rows["ordinal"] // size):
        values = _places(stored, part["ordinal"].to_numpy())
        if per_target:
            values = values[np.arange(len(part)), part["target_index"].to_numpy()]
        yield part, _scaled(values, part["scale"].to_numpy() if path == primary else None)


def _places(stored: Any, ordinals: np.ndarray) -> np.ndarray:
    """``stored[ordinals]``, each run of neighbours as one slice: to find a place of its own takes
    as long as to read some of its neighbours."""
    places, back = np.unique(ordinals, return_inverse=True)
    runs = np.split(places, np.flatnonzero(np.diff(places) > GAP) + 1)
    read = [np.asarray(stored[run[0] : run[-1] + 1])[run - run[0]] for run in runs]
    return np.concatenate(read)[back]


def _scaled(values: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    if values.dtype.kind == "i":
        return values
    values = values.astype(np.float32)
    if scales is None or (scales == 1).all():
        return values
    return values * scales.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
