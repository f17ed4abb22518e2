"""A sweep's plan: windows in groups, and from which layer on each group is dense."""

import hashlib
from dataclasses import dataclass

import numpy as np

from workers.sweep.cost import Rates
from workers.sweep.grouping import best_partition
from workers.sweep.incremental import Group, Spread, sources
from workers.sweep.intervals import Intervals
from workers.sweep.program import Program
from workers.sweep.windows import Windows

GROUPS = (1, 2, 3, 4)
"""Numbers of groups along an axis that are compared."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """Groups of windows, together all of them, and what they cost."""

    program: Program
    windows: Windows
    groups: tuple[Group, ...]
    modelled_seconds: float
    """By the cost model; only to be compared with another schedule's."""

    @property
    def sources(self) -> set[str]:
        """Clean maps that are kept during the sweep."""
        return sources(self.groups, self.program.output)

    @property
    def signature(self) -> str:
        """Names what was timed: layers, sizes and windows."""
        layers = [
            (type(s.operation).__name__, s.operands, self.program.shapes.get(s.value))
            for s in self.program.steps
        ]
        text = repr((layers, self.windows, [(g.macs, len(g.cells)) for g in self.groups]))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def macs(self) -> int:
        """Multiply-adds of all windows."""
        return sum(group.macs * len(group.cells) for group in self.groups)

    @property
    def flop_ratio(self) -> float:
        """Multiply-adds of a whole pass for every window over those of the schedule."""
        whole = sum(self.program.macs(step) for step in self.program.steps)
        return len(self.windows) * whole / self.macs

    @property
    def clean_values(self) -> int:
        """Numbers in the clean maps that are kept."""
        shapes = self.program.shapes
        return sum(int(np.prod(shapes[name])) for name in self.sources if name in shapes)

    @property
    def live(self) -> int:
        """Numbers held for one window, at most."""
        return max(group.live for group in self.groups)


def whole_live(program: Program) -> int:
    """Numbers held for one image in a plain pass, at most."""
    side = Intervals.of([(0, 1)])
    return Spread.of(program, side, side).group(np.array([0]), np.array([0]), 0).live


def best_schedule(
    program: Program, windows: Windows, rates: Rates, itemsize: int, bound: float | None = None
) -> Schedule:
    """The schedule that the cost model finds fastest; ``bound`` limits the windows' growth."""
    rows, columns = Intervals.of(windows.rows), Intervals.of(windows.columns)
    spread = Spread.of(program, rows, columns, bound)
    tried = [_schedule(spread, windows, rates, itemsize, g) for g in _sensible(windows)]
    return min(tried, key=lambda schedule: schedule.modelled_seconds)


def _sensible(windows: Windows) -> list[int]:
    return [g for g in GROUPS if g <= max(windows.shape)]


def _schedule(
    spread: Spread, windows: Windows, rates: Rates, itemsize: int, count: int
) -> Schedule:
    rows = best_partition(spread.program, spread.rows, 0, count)
    columns = best_partition(spread.program, spread.columns, 1, count)
    chosen = [_cut(spread, r, c, rates, itemsize) for r in rows for c in columns]
    groups, modelled = zip(*chosen, strict=True)
    return Schedule(spread.program, windows, groups, sum(modelled))


def _cut(
    spread: Spread, rows: np.ndarray, columns: np.ndarray, rates: Rates, itemsize: int
) -> tuple[Group, float]:
    """One group, dense from the step on where that is cheapest: the steps before it as windows,
    the others as whole maps. Bounded windows stay windows."""
    steps = len(spread.program.steps)
    windowed = spread.group(rows, columns, steps)
    count = len(windowed.cells)
    if spread.bound is not None:
        return windowed, float(rates.seconds(windowed, count, itemsize).sum())
    dense = spread.group(rows, columns, 0)
    early = np.concatenate([[0], rates.seconds(windowed, count, itemsize).cumsum()])
    late = rates.seconds(dense, count, itemsize)
    total = early + np.concatenate([late[::-1].cumsum()[::-1], [0]])
    start = int(total.argmin())
    group = windowed if start == steps else spread.group(rows, columns, start)
    return group, float(rates.seconds(group, count, itemsize).sum())
