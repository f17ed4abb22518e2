"""Columns of values, their moments, and why a number about one cannot be given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd


def as_columns(values: np.ndarray) -> np.ndarray:
    """``(n,)`` or ``(n, k)`` as float64 ``(n, k)``."""
    values = np.asarray(values, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


@dataclass(frozen=True)
class Moments:
    """Of k columns, NaN left out; all ``(k,)``."""

    n: np.ndarray
    mean: np.ndarray
    """NaN without values."""
    sd: np.ndarray
    """With n - 1 in the denominator; NaN below two values, 0 exactly where all are equal."""
    constant: np.ndarray
    """All values are equal (also where there are none)."""

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of ``values (n, k)``."""
        used = ~np.isnan(values)
        n = used.sum(axis=0)
        mean = _divide(np.where(used, values, 0).sum(axis=0), n)
        squares = (np.where(used, values - mean, 0) ** 2).sum(axis=0)
        top = np.where(used, values, -np.inf).max(axis=0, initial=-np.inf)
        bottom = np.where(used, values, np.inf).min(axis=0, initial=np.inf)
        constant = top <= bottom
        sd = np.sqrt(_divide(np.where(constant, 0.0, squares), n - 1))
        return cls(n, mean, sd, constant)

    @property
    def se(self) -> np.ndarray:
        """Standard error of the mean."""
        return _divide(self.sd, np.sqrt(self.n))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where ``below`` is not positive."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


Fault = tuple[np.ndarray, str | Sequence[str]]
"""Where it holds ``(k,)``, and what to say: one text, or one a column."""


def reasons(columns: int, *faults: Fault) -> np.ndarray:
    """Texts or None ``(k,)``; the first fault named wins."""
    found = np.full(columns, None, dtype=object)
    for mask, text in reversed(faults):
        found = np.where(mask, np.array(text, dtype=object), found)
    return found


def too_few(n: np.ndarray, least: int, what: str, unit: str = "example") -> Fault:
    """``n (k,)`` below ``least``: "group has 1 example; a t-test needs 2"."""
    texts = [
        f"group has {count} {unit}{'' if count == 1 else 's'}; {what} needs {least}" for count in n
    ]
    return n < least, texts


def explained(frame: pd.DataFrame, reason: np.ndarray, given: Sequence[str] = ()) -> pd.DataFrame:
    """``frame`` with its reasons; where there is one, all columns but ``given`` are NaN."""
    blank = [column for column in frame if column not in given]
    texts = pd.Series(reason, index=frame.index, dtype=object)
    frame[blank] = frame[blank].where(texts.isna())
    return frame.assign(reason=texts)
