"""Before a traced trunk is trusted: it must equal the model, and it must be faster."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models.base import SplitModel
from workers.sweep import machine
from workers.sweep.cost import seconds
from workers.sweep.incremental import Group, Painter, run_group
from workers.sweep.program import Program
from workers.sweep.schedule import Schedule
from workers.sweep.windows import paint

TOLERANCE = 1e-3
"""Largest difference of a feature, in units of the largest feature, that counts as rounding; two
plain float32 passes of a deep trunk differ by 1e-4."""
WINDOWS = 8
"""Windows that are timed."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A model, its program, a schedule and its groups, on an image of noise."""

    model: SplitModel
    program: Program
    schedule: Schedule
    groups: Sequence[tuple[Group, Painter]]

    @property
    def canvas(self) -> Tensor:
        """Noise ``(3, y, x)``, the same everywhere."""
        geometry = self.model.geometry
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(3, geometry.input_height, geometry.input_width, generator=generator)
        return (255 * noise).to(self.model.device, self.model.dtype)

    @property
    def fill(self) -> Tensor:
        return self.canvas.flip(2)

    def normalised(self, image: Tensor) -> Tensor:
        pixels = self.model.normalise(image[None])
        return pixels.contiguous(memory_format=torch.channels_last)

    def features(self, group: Group, painter: Painter, chosen: slice, clean: dict) -> Tensor:
        painted = painter(chosen, self.normalised(self.canvas), self.normalised(self.fill))
        return run_group(group, chosen, painted, clean, self.program.output)

    @property
    def clean(self) -> dict[str, Tensor]:
        return self.program.run(self.normalised(self.canvas), self.schedule.sources)


def check(trial: Trial) -> str:
    """Why the traced trunk cannot be trusted, or nothing: painted windows of the first, a middle
    and the last group are compared with the model itself."""
    clean = trial.clean
    windows = trial.schedule.windows
    for group, painter in {
        id(g): g for g in trial.groups[:: max(1, len(trial.groups) // 2)]
    }.values():
        last = len(group.cells) - 1
        chosen = slice(last, last + 1)
        ours = trial.features(group, painter, chosen, clean)
        canvas = paint(trial.canvas, [windows[int(group.cells[last])]], trial.fill)
        theirs = trial.model.trunk(trial.model.normalise(canvas))
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
        if not difference <= TOLERANCE:
            return (
                f"the traced trunk differs from the model by {difference:.1e} of the largest "
                f"feature, more than rounding ({TOLERANCE})"
            )
    return ""


def time_ways(trial: Trial) -> dict[str, float]:
    """Seconds of one image's sweep each way, from a few windows; measured once a machine."""
    names = ("plain", "dense", "incremental")
    keys = [f"{trial.schedule.signature} {name}" for name in names]
    device = trial.model.device
    known = machine.recall(device)
    if not all(key in known for key in keys):
        known = dict(zip(keys, _timed(trial), strict=True))
        machine.remember(device, known)
    return {name: known[key] for name, key in zip(names, keys, strict=True)}


def _timed(trial: Trial) -> tuple[float, float, float]:
    """Plain and dense passes of a small batch; windows of the group with most work, the rest in
    proportion to its multiply-adds."""
    total, device = len(trial.schedule.windows), trial.model.device
    canvases = trial.model.normalise(trial.canvas.expand(2, -1, -1, -1))
    plain = seconds(lambda: trial.model.trunk(canvases), device, 2) / len(canvases)
    dense = seconds(lambda: trial.program(canvases), device, 2) / len(canvases)
    clean = trial.clean
    group, painter = max(trial.groups, key=lambda pair: pair[0].macs * len(pair[0].cells))
    chosen = slice(0, WINDOWS)
    spent = seconds(lambda: trial.features(group, painter, chosen, clean), device, 2)
    rate = group.macs * len(group.cells[chosen]) / spent
    return total * plain, total * dense, dense + trial.schedule.macs / rate
