"""Spearman's rank correlation: a map is ranked once (ties averaged), a pair is a dot product."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.metrics.base import DEGENERATE_HUMAN, DEGENERATE_MODEL


@dataclass(frozen=True)
class Ranked:
    """A map's ``ranks (cell,)``, centred and scaled to length 1; zeros where it is constant."""

    ranks: np.ndarray
    constant: bool
    """One value everywhere: there is nothing to rank."""


def rank(values: np.ndarray) -> list[Ranked]:
    """Maps as rows of float32 ``(n, cell)`` >= 0, ranked each by itself."""
    ranks = average_ranks(values) - (values.shape[1] + 1) / 2
    length = np.sqrt(np.einsum("nc,nc->n", ranks, ranks))
    return [Ranked(r / (n or 1), n == 0) for r, n in zip(ranks, length.tolist(), strict=True)]


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 within each row of float32 ``(n, cell)`` >= 0; tied values share their mean.

    The same as ``scipy.stats.rankdata(values, axis=1)`` in about two thirds of its time at
    448 x 448: the bits of a non-negative float order as it does, so value and position are sorted
    as one integer.
    """
    n, cells = values.shape
    high = np.uint64(32)
    keys = values.view(np.uint32).astype(np.uint64) << high | np.arange(cells, dtype=np.uint64)
    keys.sort(axis=1)
    last = np.ones((n, cells), bool)
    last[:, :-1] = (keys[:, 1:] ^ keys[:, :-1]) >> high
    ends = np.flatnonzero(last)
    ties = np.diff(ends, prepend=-1)
    shared = np.repeat(ends % cells + 1 - (ties - 1) / 2, ties).reshape(n, cells)
    ranks = np.empty((n, cells))
    np.put_along_axis(ranks, keys.astype(np.uint32).astype(np.intp), shared, axis=1)
    return ranks


def spearman(compared: Sequence[tuple[Ranked, Ranked]]) -> np.ndarray:
    """Spearman's rho of (model, human) pairs -> ``(n,)``."""
    return np.array([m.ranks @ h.ranks for m, h in compared]).clip(-1, 1)


def degenerate(compared: Sequence[tuple[Ranked, Ranked]]) -> dict[str, np.ndarray]:
    """Which of the pairs ``(n,)`` hold a constant map, by status."""
    return {
        DEGENERATE_MODEL: np.array([m.constant for m, _ in compared], bool),
        DEGENERATE_HUMAN: np.array([h.constant for _, h in compared], bool),
    }
