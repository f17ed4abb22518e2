"""Before a traced trunk is trusted: it must equal the model, and it must be faster."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from workers.models.base import SplitModel
from workers.sweep import machine
from workers.sweep.batches import evenly, halving
from workers.sweep.machine import seconds
from workers.sweep.passes import Image, Passes
from workers.sweep.program import Program
from workers.sweep.schedule import Schedule
from workers.sweep.windows import paint

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference of a feature, in units of the largest feature, that counts as rounding; two
plain float32 passes of a deep trunk differ by 1e-4."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A model, its program, and its passes by a schedule, on an image of noise."""

    model: SplitModel
    program: Program
    schedule: Schedule
    passes: Passes
    images: int
    """Whole images that are timed."""
    windows: int
    """Windows that are timed."""

    @cached_property
    def canvas(self) -> Tensor:
        """Noise ``(3, y, x)``, the same everywhere."""
        geometry = self.model.geometry
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(3, geometry.input_height, geometry.input_width, generator=generator)
        return (255 * noise).to(self.model.device, self.model.dtype)

    @property
    def fill(self) -> Tensor:
        return self.canvas.flip(2)

    @cached_property
    def image(self) -> Image:
        return self.passes.image(self._pixels(self.canvas), self._pixels(self.fill))

    def features(self, number: int, rows: Tensor) -> Tensor:
        """Of these windows of a group, by the program."""
        return self.passes.features(self.image, number, rows)

    def pixels(self, count: int) -> Tensor:
        """So many copies of the noise, normalised, in the model's own type."""
        return self.model.normalise(self.canvas.expand(count, -1, -1, -1))

    def _pixels(self, image: Tensor) -> Tensor:
        pixels = self.model.normalise(image[None]).to(self.program.dtype)
        return pixels.contiguous(memory_format=torch.channels_last)


def check(trial: Trial) -> str:
    """Why the traced trunk cannot be trusted, or nothing: the windows of two corners and of the
    middle are compared with the model itself."""
    for number, row in _samples(trial):
        difference = _difference(trial, number, row)
        tolerance = TOLERANCE.get(trial.model.dtype, 1e-2)
        if not difference <= tolerance:
            return (
                f"the traced trunk differs from the model by {difference:.1e} of the largest "
                f"feature, more than rounding ({tolerance})"
            )
    return ""


def _samples(trial: Trial) -> list[tuple[int, int]]:
    """The first window of the first group, the last of the last, and the middle one of the largest
    group: a window at the border is moved inwards, which hides intervals that are too short."""
    groups = [group for group, _ in trial.passes.groups]
    sizes = [len(group.cells) for group in groups]
    largest, last = sizes.index(max(sizes)), len(sizes) - 1
    y, x = np.divmod(groups[largest].cells, len(trial.schedule.windows.columns))
    middle = np.abs(y - np.median(y)) + np.abs(x - np.median(x))
    return [(0, 0), (largest, int(middle.argmin())), (last, sizes[-1] - 1)]


def _difference(trial: Trial, number: int, row: int) -> float:
    """Of one window, in units of the largest feature. The model sees it next to another image:
    features that hang on their neighbours in the batch are nobody's own."""
    ours = trial.features(number, torch.tensor([row], device=trial.model.device))
    window = trial.schedule.windows[int(trial.passes.groups[number][0].cells[row])]
    canvases = torch.cat([paint(trial.canvas, [window], trial.fill), trial.canvas[None]])
    theirs = trial.model.trunk(trial.model.normalise(canvases))[:1]
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def time_ways(trial: Trial) -> dict[str, float]:
    """Seconds of one image's sweep each way, from a few windows; measured once a machine."""
    device, total = trial.model.device, len(trial.schedule.windows)
    plan = f"{trial.schedule.signature} {trial.program.dtype}"
    plain = machine.once(f"{plan} plain", device, lambda: _plain(trial))
    dense = machine.once(f"{plan} dense", device, lambda: _dense(trial))
    windows = machine.once(f"{plan} incremental", device, lambda: _windows(trial))
    return {"plain": total * plain, "dense": total * dense, "incremental": dense + windows}


def _plain(trial: Trial) -> float:
    """Of one painted image, by the model."""
    return _each(trial, lambda count: trial.model.trunk(trial.pixels(count)), trial.images)


def _dense(trial: Trial) -> float:
    """Of one painted image, by the program."""
    dtype = trial.program.dtype
    return _each(trial, lambda count: trial.program(trial.pixels(count).to(dtype)), trial.images)


def _windows(trial: Trial) -> float:
    """Of all windows: some of the group with most work are timed, the rest is in proportion to its
    multiply-adds."""
    groups = [group for group, _ in trial.passes.groups]
    work = [group.macs * len(group.cells) for group in groups]
    number = work.index(max(work))
    rows = torch.arange(len(groups[number].cells), device=trial.model.device)
    batch = evenly(len(rows), trial.windows)
    spent = _each(trial, lambda count: trial.features(number, rows[:count]), batch)
    return spent * trial.schedule.macs / groups[number].macs


def _each(trial: Trial, run: Callable[[int], object], batch: int) -> float:
    """Seconds an item, in a batch or as much of it as the memory holds."""
    device = trial.model.device
    return halving(lambda count: seconds(lambda: run(count), device, 2) / count, batch)
