"""The incremental pass: what each layer's windows are, and how a group of them goes through."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.sweep.gather import Gather, table_of
from workers.sweep.intervals import Intervals, Windows1d, bounded, hull, through
from workers.sweep.operations import HERE
from workers.sweep.program import BATCH, INPUT, Program, Step

Axis = dict[str, Intervals]
"""A value's changed interval along one axis, for each row (or column) of painted windows."""


def spread(program: Program, painted: Intervals, axis: int, bound: float | None = None) -> Axis:
    """Changed intervals of every map along ``axis`` (0 rows, 1 columns), cut to ``bound`` times its
    size where there is a bound."""
    changed = {INPUT: painted}
    for step in program.steps:
        if step.value in program.shapes:
            intervals = _changed(program, step, changed, axis)
            if bound is not None:
                size = program.shapes[step.value][1 + axis]
                intervals = bounded(intervals, max(1, round(bound * size)))
            changed[step.value] = intervals
    return _aligned(program, changed)


def _changed(program: Program, step: Step, changed: Axis, axis: int) -> Intervals:
    size = program.shapes[step.value][1 + axis]
    count = len(changed[INPUT].start)
    unknown = [n for n in step.operands if n not in changed and n not in program.constants]
    if step.operation.mixes or unknown:
        return Intervals.whole(count, size)
    first, *others = step.operands
    own = [through(changed[first], step.operation.supports[axis], size)]
    return hull(own + [changed[name] for name in others if name in changed])


def _aligned(program: Program, changed: Axis) -> Axis:
    """A map with one reader that reads it position by position gets that reader's intervals: a
    shortcut's convolution then yields the very windows that the sum wants."""
    changed = dict(changed)
    readers: dict[str, list[Step]] = {}
    for step in program.steps:
        for name in step.operands:
            readers.setdefault(name, []).append(step)
    for step in reversed(program.steps):
        mine = readers.get(step.value, [])
        if len(mine) == 1 and mine[0].value in changed and _reads_here(mine[0], step.value):
            changed[step.value] = changed[mine[0].value]
    return changed


def _reads_here(step: Step, name: str) -> bool:
    first, *others = step.operands
    return not step.operation.mixes and (
        step.operation.supports == HERE or (name in others and name != first)
    )


@dataclass(frozen=True, eq=False)
class Place:
    """Windows of one size in a map: ``(y, x)`` size, and each window's top and left."""

    size: tuple[int, int]
    top: np.ndarray
    left: np.ndarray

    def same(self, other: "Place") -> bool:
        return (
            self.size == other.size
            and np.array_equal(self.top, other.top)
            and np.array_equal(self.left, other.left)
        )


@dataclass(frozen=True, eq=False)
class Action:
    """One step for a group of windows: how each operand is fetched (None: as it is)."""

    step: Step
    gathers: tuple[Gather | None, ...]
    padded: bool
    dead: tuple[str, ...]
    macs: int
    """Multiply-adds a window."""
    moved: int
    """Values read and written a window."""
    live: int
    """Values held a window while the step runs."""

    @property
    def weights(self) -> int:
        """Weights read, once for all windows."""
        return self.step.operation.macs(0)

    def to(self, device: torch.device) -> "Action":
        gathers = tuple(None if g is None else g.to(device) for g in self.gathers)
        return replace(self, gathers=gathers)


@dataclass(frozen=True, eq=False)
class Painter:
    """Makes a group's first windows: the fill inside each one's own rectangle, the clean image
    around it."""

    size: tuple[int, int]
    corners: Tensor
    """Top and left of the windows, ``(n, 2)``."""
    rectangles: Tensor
    """``(n, 4)``: top, bottom, left, right of what is painted."""
    cells: Tensor
    """Positions in the list of all windows."""

    def __call__(self, rows: Tensor, pixels: Tensor, fill: Tensor) -> Tensor:
        """``pixels`` and ``fill (1, 3, y, x)`` -> ``(n, 3, *size)``, channels-last, for these of
        the group's windows."""
        top, left = self.corners[rows].T
        own = self.rectangles[rows, :, None, None]
        steps = torch.arange(max(self.size), device=top.device)
        y = top[:, None, None] + steps[: self.size[0], None]
        x = left[:, None, None] + steps[: self.size[1]]
        inside = (own[:, 0] <= y) & (y < own[:, 1]) & (own[:, 2] <= x) & (x < own[:, 3])
        clean, painted = (image[0].permute(1, 2, 0)[y, x] for image in (pixels, fill))
        return torch.where(inside[..., None], painted, clean).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Group:
    """Windows whose places have equal sizes in every map, and what to do with them."""

    cells: np.ndarray
    """Positions in the row-major list of windows."""
    place: Place
    """Of the painted pixels."""
    actions: tuple[Action, ...]
    last: Gather | None
    """The output's windows -> whole maps."""

    def to(self, device: torch.device) -> "Group":
        """Its tables on the device."""
        last = None if self.last is None else self.last.to(device)
        return replace(self, actions=tuple(a.to(device) for a in self.actions), last=last)

    def painter(self, rectangles: np.ndarray, device: torch.device) -> Painter:
        """``rectangles (window, 4)`` of all windows, not only the group's."""
        corners = np.stack([self.place.top, self.place.left], 1)
        tables = (corners, rectangles[self.cells], self.cells)
        return Painter(self.place.size, *(torch.from_numpy(t).to(device) for t in tables))

    @property
    def macs(self) -> int:
        """Multiply-adds of one window."""
        return sum(action.macs for action in self.actions)

    @property
    def live(self) -> int:
        """Values held a window, at most."""
        return max(action.live for action in self.actions)


@dataclass(frozen=True, eq=False)
class Spread:
    """Changed intervals of all maps along both axes."""

    program: Program
    rows: Axis
    columns: Axis
    bound: float | None = None

    @classmethod
    def of(
        cls, program: Program, rows: Intervals, columns: Intervals, bound: float | None = None
    ) -> "Spread":
        down, across = (spread(program, x, i, bound) for i, x in enumerate((rows, columns)))
        return cls(program, down, across, bound)

    def group(self, rows: np.ndarray, columns: np.ndarray, dense_from: int) -> Group:
        """The windows of these painted rows and columns; whole maps from step ``dense_from`` on."""
        return _Planner(self, rows, columns, dense_from).group()


class _Planner:
    """Makes one group."""

    def __init__(
        self, spread: Spread, rows: np.ndarray, columns: np.ndarray, dense_from: int
    ) -> None:
        self.spread, self.program = spread, spread.program
        self.rows, self.columns = rows, columns
        total = len(spread.columns[INPUT].start)
        self.cells = (rows[:, None] * total + columns).ravel()
        late = {s.value for s in spread.program.steps[dense_from:]}
        self.places = {
            name: self._whole(name) if name in late else self._place(name) for name in spread.rows
        }

    def _place(self, name: str) -> Place:
        _, height, width = self.program.shapes[name]
        rows = Intervals(*(side[self.rows] for side in self.spread.rows[name]))
        columns = Intervals(*(side[self.columns] for side in self.spread.columns[name]))
        y, x = Windows1d.around(rows, height), Windows1d.around(columns, width)
        top = np.repeat(y.start, len(self.columns))
        left = np.tile(x.start, len(self.rows))
        return Place((y.length, x.length), top, left)

    def _whole(self, name: str) -> Place:
        zero = np.zeros(len(self.cells), np.int64)
        return Place(self.program.shapes[name][1:], zero, zero)

    def group(self) -> Group:
        live = {INPUT: self._volume(INPUT)}
        actions = []
        for step, dead in zip(self.program.steps, self.program.last_uses, strict=True):
            live[step.value] = self._volume(step.value)
            actions.append(self._action(step, dead, sum(live.values())))
            for name in dead:
                live.pop(name, None)
        output = self.program.output
        return Group(
            self.cells,
            self.places[INPUT],
            tuple(actions),
            self._fetch(output, self._whole(output)),
        )

    def _action(self, step: Step, dead: tuple[str, ...], live: int) -> Action:
        padded = self._is_padded(step)
        gathers = tuple(self._operand(step, k, padded) for k in range(len(step.operands)))
        cut = [
            self._channels(name) * g.extent[0] * g.extent[1]
            for name, g in zip(step.operands, gathers, strict=True)
            if g is not None
        ]
        size = self._area(step.value)
        channels = self._channels(step.value)
        reads = sum(map(self._volume, step.operands))
        return Action(
            step,
            gathers,
            padded,
            dead,
            macs=step.operation.macs(channels) * size,
            moved=2 * sum(cut) + reads + channels * size,
            live=live + sum(cut),
        )

    def _is_padded(self, step: Step) -> bool:
        """Whole map from whole map: the layer adds its own border."""
        return all(
            self._is_whole(name) for name in (step.operands[0], step.value) if name in self.places
        )

    def _is_whole(self, name: str) -> bool:
        return self.places[name].size == self.program.shapes[name][1:]

    def _operand(self, step: Step, k: int, padded: bool) -> Gather | None:
        name = step.operands[k]
        if name not in self.places and name not in self.program.constants:
            return None
        if step.operation.mixes:
            return self._fetch(name, self._whole(name))
        out = self.places[step.value]
        if k > 0 or step.operation.supports == HERE:
            return self._fetch(name, out)
        return None if padded else self._under(name, out, step)

    def _under(self, name: str, out: Place, step: Step) -> Gather | None:
        """What a sliding layer reads for these outputs, border included."""
        rows, columns = step.operation.supports
        wanted = Place(
            (rows.extent(out.size[0]), columns.extent(out.size[1])),
            out.top * rows.stride - rows.padding,
            out.left * columns.stride - columns.padding,
        )
        skip = (rows.skip, columns.skip)
        return self._fetch(name, wanted, skip, step.operation.border)

    def _fetch(
        self, name: str, wanted: Place, skip: tuple[int, int] = (1, 1), border: float = 0.0
    ) -> Gather | None:
        """None where the value's own windows are what is wanted, or the whole of a constant: what
        it meets may be no map an image (attention's windows)."""
        if name in self.program.constants:
            if wanted.same(self._whole(name)):
                return None
            nowhere = np.full(len(self.cells), -1)
            return Gather(wanted.size, table_of(wanted.top, wanted.left, nowhere, nowhere), skip)
        have = self.places[name]
        if skip == (1, 1) and have.same(wanted):
            return None
        table = table_of(wanted.top, wanted.left, have.top, have.left)
        return Gather(wanted.size, table, skip, border)

    def _channels(self, name: str) -> int:
        return self.program.shapes[name][0] if name in self.program.shapes else 0

    def _area(self, name: str) -> int:
        return int(np.prod(self.places[name].size)) if name in self.places else 0

    def _volume(self, name: str) -> int:
        return self._channels(name) * self._area(name)


# --- running ------------------------------------------------------------------------------------


def run_group(
    group: Group, rows: Tensor, painted: Tensor, clean: Mapping[str, Tensor], program: Program
) -> Tensor:
    """Whole output maps of some windows of a group, from their painted pixels. The program may be
    of another precision than the one the group was planned for."""
    values: dict[str, Any] = {INPUT: painted, BATCH: len(painted)}
    for action, step in zip(group.actions, program.steps, strict=True):
        operands = list(_operands(action, rows, values, clean, program.constants))
        values[step.value] = step.operation(operands, action.padded)
        del operands
        for name in action.dead:
            values.pop(name, None)
    result = values[program.output]
    return result if group.last is None else group.last(clean[program.output], result, rows)


def _operands(
    action: Action,
    rows: Tensor,
    values: Mapping[str, Any],
    clean: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
) -> Iterator[Any]:
    for name, gather in zip(action.step.operands, action.gathers, strict=True):
        if gather is not None:
            yield gather(clean[name], values.get(name), rows)
        else:
            yield constants[name] if name in constants else values[name]


def sources(groups: Sequence[Group], output: str) -> set[str]:
    """The clean maps that windows are cut out of."""
    names = {
        name
        for group in groups
        for action in group.actions
        for name, gather in zip(action.step.operands, action.gathers, strict=True)
        if gather is not None
    }
    return names | {output}
