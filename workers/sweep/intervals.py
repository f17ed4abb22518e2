"""Interval arithmetic along one image axis: which positions of a layer a painted interval changes.

The algebra of Nakandala, Kumar and Papakonstantinou 2019 ("Incremental and Approximate Inference
for Faster Occlusion-based Deep CNN Explanations", SIGMOD), for any kernel, stride, padding and
dilation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Support(NamedTuple):
    """Output position ``o`` reads the inputs ``o * stride - padding + j * dilation``,
    ``0 <= j < kernel``. The default reads its own position."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def span(self) -> int:
        """Distance from the first to the last input read, plus one."""
        return (self.kernel - 1) * self.dilation + 1

    def extent(self, outputs: int) -> int:
        """Inputs under ``outputs`` adjacent output positions: ``(outputs - 1) s + span``."""
        return (outputs - 1) * self.inside.stride + self.span

    @property
    def skip(self) -> int:
        """Distance of the inputs that are gathered: a 1-wide kernel needs every s-th only."""
        return self.stride if self.span == 1 else 1

    @property
    def inside(self) -> "Support":
        """The same on a gathered window, whose border is already there."""
        stride = 1 if self.span == 1 else self.stride
        return Support(self.kernel, stride, 0, self.dilation)


class Intervals(NamedTuple):
    """Half-open intervals ``[start, stop)``, one for each painted row (or column) of windows."""

    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> "Intervals":
        return cls(*(np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True)))

    @classmethod
    def whole(cls, count: int, size: int) -> "Intervals":
        """Everything changed: ``[0, size)`` for each."""
        return cls(np.zeros(count, np.int64), np.full(count, size, np.int64))


def through(x: Intervals, support: Support, size: int) -> Intervals:
    """Outputs that read a changed input: from ``ceil((start + p - span + 1) / s)`` to
    ``floor((stop - 1 + p) / s)``, within the axis and never empty, so that every window has a
    place (a stride may step over a narrow interval)."""
    first = -((-(x.start + support.padding - support.span + 1)) // support.stride)
    last = (x.stop - 1 + support.padding) // support.stride
    start = np.clip(first, 0, size - 1)
    return Intervals(start, np.clip(np.maximum(last + 1, start + 1), 1, size))


def hull(parts: Sequence[Intervals]) -> Intervals:
    """The smallest intervals that contain those of all operands."""
    return Intervals(
        np.minimum.reduce([part.start for part in parts]),
        np.maximum.reduce([part.stop for part in parts]),
    )


def bounded(x: Intervals, longest: int) -> Intervals:
    """The middle ``longest`` positions of each interval (Nakandala et al. 2019, "projective
    field thresholding"): what lies farther out is taken as unchanged."""
    length = np.minimum(x.stop - x.start, longest)
    start = x.start + (x.stop - x.start - length) // 2
    return Intervals(start, start + length)


class Windows1d(NamedTuple):
    """Windows of one length, so that they make a batch: ``start (n,)``, all inside the axis."""

    length: int
    start: np.ndarray

    @classmethod
    def around(cls, intervals: Intervals, size: int) -> "Windows1d":
        """The longest interval's length for all; those at the end are moved inwards. What is added
        is unchanged activation, correct as it stands."""
        length = int((intervals.stop - intervals.start).max())
        return cls(length, np.minimum(intervals.start, size - length))
