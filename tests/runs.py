"""Comparing two runs: the same rows, and the same maps to rounding. Interrupting one."""

import signal
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.dataset import Run

PLACES = ["shard", "ordinal", "round", "seconds", "device", "checksum", "image"]
"""Where, of what folder and how fast a map was made may differ, and its last bits; else nothing."""


def assert_same_run(first: Path, second: Path | str, tolerance: float = 1e-5) -> None:
    """The same rows in every table and the same maps to ``tolerance`` of their scale."""
    a, b = Run(first), Run(second)
    _same_rows(a.examples, b.examples, ["question_id"])
    key = ["question_id", "method", "target"]
    maps = _same_rows(a.maps, b.maps, key)
    for mine, other in zip(a.fetch(maps[0]), b.fetch(maps[1]), strict=True):
        scale = max(np.abs(mine).max(), 1e-12)
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * scale)
    _same_rows(a.words, b.words, key)


def _same_rows(
    a: pd.DataFrame, b: pd.DataFrame, key: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    assert len(a) > 0
    assert not a.duplicated(key).any()
    assert not b.duplicated(key).any()
    a, b = (frame.sort_values(key, ignore_index=True) for frame in (a, b))
    columns = [c for c in a.columns if c not in PLACES]
    exact = [c for c in columns if a[c].dtype.kind not in "fO"]
    pd.testing.assert_frame_equal(a[exact], b[exact])
    floats = [c for c in columns if a[c].dtype.kind == "f"]
    pd.testing.assert_frame_equal(a[floats], b[floats], rtol=1e-3, atol=1e-5)
    for column in (c for c in columns if a[c].dtype.kind == "O"):
        for mine, other in zip(a[column], b[column], strict=True):
            _same_value(mine, other)
    return a, b


def _same_value(mine: object, other: object) -> None:
    if isinstance(mine, np.ndarray) and mine.dtype.kind == "f":
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    elif isinstance(mine, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert mine.tolist() == other.tolist()
    else:
        assert mine == other or (pd.isna(mine) and pd.isna(other))


def hear_interrupts() -> None:
    """For a process to be started: a shell's background jobs, and their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
