"""Which rows (and columns) of windows go together: groups share one window size in every map."""

from itertools import combinations, pairwise

import numpy as np

from workers.sweep.incremental import Axis
from workers.sweep.program import Program

ALL_CUTS = 40
"""With more rows than this, cuts are tried at every second, third, ... row only."""


def best_partition(program: Program, changed: Axis, axis: int, groups: int) -> list[np.ndarray]:
    """Consecutive rows in at most ``groups`` groups, so that the multiply-adds are fewest.

    A group's windows are as long as its longest. The sums of ``macs (sum_g |g| length_g / size)^2``
    over all layers are compared for every choice of cuts; the other axis is taken to be alike.
    """
    layers = [s for s in program.steps if program.macs(s) and s.value in changed]
    count = len(next(iter(changed.values())).start)
    weights = np.array([program.macs(s) for s in layers], float)
    sizes = np.array([program.shapes[s.value][1 + axis] for s in layers])
    lengths = np.stack([changed[s.value].stop - changed[s.value].start for s in layers])
    longest = _longest(lengths)
    every = -(-count // ALL_CUTS)
    choices = [
        (0, *cuts, count)
        for cuts in combinations(range(every, count, every), min(groups, count) - 1)
    ]
    best = min(choices, key=lambda edges: _cost(edges, longest, weights, sizes))
    return [np.arange(a, b) for a, b in pairwise(best)]


def _longest(lengths: np.ndarray) -> np.ndarray:
    """``(first, last, layer)``: the longest window of rows first..last."""
    layers, count = lengths.shape
    table = np.zeros((count, count, layers))
    for first in range(count):
        table[first, first:] = np.maximum.accumulate(lengths[:, first:], axis=1).T
    return table


def _cost(
    edges: tuple[int, ...], longest: np.ndarray, weights: np.ndarray, sizes: np.ndarray
) -> float:
    total = sum((b - a) * longest[a, b - 1] for a, b in pairwise(edges))
    return float((weights * (total / sizes) ** 2).sum())
