"""What a layer costs as windows and as a whole map, from three rates measured on the device.

``seconds = calls * call + 2 macs / flops + (moved + 2 weights) bytes / bandwidth``. The model
compares plans; which engine runs is decided by timing it (docs/decisions/0006-sweep-engine.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from workers.sweep import machine
from workers.sweep.gather import Gather
from workers.sweep.incremental import Group
from workers.sweep.intervals import Support
from workers.sweep.machine import seconds
from workers.sweep.operations import Convolution
from workers.sweep.recording import recorded

DEEP = 256
"""Channels of a typical layer."""
RECORDED = 16
"""Calls of a recording that is timed."""


@dataclass(frozen=True)
class Rates:
    """``flops`` a second of a 3x3 convolution, ``bandwidth`` in bytes a second of a gather, and
    seconds a ``call`` takes that has next to nothing to do."""

    flops: float
    bandwidth: float
    call: float

    def seconds(self, group: Group, windows: int, itemsize: int) -> np.ndarray:
        """Of each step, for so many windows of a group at once."""
        counts = [
            (
                1 + sum(g is not None for g in a.gathers),
                a.macs * windows,
                a.moved * windows + 2 * a.weights,
            )
            for a in group.actions
        ]
        calls, macs, moved = np.array(counts, float).T
        return calls * self.call + 2 * macs / self.flops + moved * itemsize / self.bandwidth


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured once a machine, about a tenth of a second."""
    measured: list[float] = []

    def measure(position: int) -> float:
        if not measured:
            measured.extend(_measure(device, dtype))
        return measured[position]

    names = [f"rate {what} {dtype}" for what in ("flops", "bandwidth", "call")]
    return Rates(*(machine.once(name, device, partial(measure, i)) for i, name in enumerate(names)))


@torch.inference_mode()
def _measure(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float]:
    channels, side, windows = 64, 28, 8 if device.type == "cpu" else 256
    x = torch.ones(windows, channels, side, side, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    at = (Support(3, 1, 1), Support(3, 1, 1))
    conv = Convolution(x.new_ones(channels, channels, 3, 3), None, at).to(device, dtype)
    table = torch.zeros(windows, 4, dtype=torch.int32, device=device)
    rows = torch.arange(windows, device=device)
    cut = Gather((side, side), table)
    macs = windows * side**2 * channels**2 * 9
    convolving = _one(lambda: conv([x], True), device)
    gathering = _one(lambda: cut(x[:1], x, rows), device)
    bandwidth = 2 * x.numel() * x.element_size() / gathering
    return 2 * macs / convolving, bandwidth, _calling(device, dtype)


def _calling(device: torch.device, dtype: torch.dtype) -> float:
    """Of a gather, and of a convolution, that leave the device idle. Python's part is most of it on
    a CPU; on a GPU, which has recorded it, the sums over channels, which wait for one another."""
    table, rows = (torch.zeros(1, 4, dtype=torch.int32), torch.arange(1))
    speck = Gather((14, 14) if device.type == "cuda" else (1, 1), table).to(device)
    x = torch.ones(1, DEEP, 14, 14, device=device, dtype=dtype)
    x, rows = x.contiguous(memory_format=torch.channels_last), rows.to(device)
    gathering = _one(lambda: speck(x, x, rows), device)
    if device.type == "cpu":
        return gathering
    at = (Support(3, 1, 1), Support(3, 1, 1))
    conv = Convolution(x.new_ones(DEEP, DEEP, 3, 3), None, at).to(device, dtype)
    return (gathering + _one(lambda: conv([x], True), device)) / 2


def _one(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call among many: as in a sweep on a GPU, recorded."""
    if device.type == "cpu":
        return seconds(call, device)
    together = recorded(lambda: [call() for _ in range(RECORDED)])
    assert together is not None
    return seconds(together, device) / RECORDED
