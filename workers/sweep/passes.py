"""The passes of an incremental sweep: an image's clean maps, then its windows group by group."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.sweep.incremental import Group, Painter, run_group
from workers.sweep.program import Program
from workers.sweep.recording import Recording, recorded
from workers.sweep.windows import Windows

Painted = Sequence[tuple[Group, Painter]]


class Image(NamedTuple):
    """``pixels`` and ``fill (1, 3, y, x)`` as the program takes them, and the clean maps."""

    pixels: Tensor
    fill: Tensor
    clean: dict[str, Tensor]


class Passes:
    """One launch after another."""

    def __init__(self, program: Program, sources: Collection[str], groups: Painted) -> None:
        self.program, self.sources, self.groups = program, sources, groups

    def image(self, pixels: Tensor, fill: Tensor) -> Image:
        """The clean pass."""
        return Image(pixels, fill, self.program.run(pixels, self.sources))

    def features(self, image: Image, number: int, rows: Tensor) -> Tensor:
        """The output's whole maps for these windows of a group, ``(n, channel, y, x)``."""
        group, painter = self.groups[number]
        painted = painter(rows, image.pixels, image.fill)
        return run_group(group, rows, painted, image.clean, self.program)


class Recorded(Passes):
    """The same on a GPU, recorded at the first image and replayed, where that can be. An image lies
    where the one before it lay: it is gone when the next one comes."""

    refused = False
    """What the trunk does cannot be recorded."""

    def __init__(self, program: Program, sources: Collection[str], groups: Painted) -> None:
        super().__init__(program, sources, groups)
        self.pool = torch.cuda.graph_pool_handle()
        self.place: Image | None = None
        self.clean: Recording[dict[str, Tensor]] | None = None
        self.windows: dict[int, tuple[Tensor, Recording[Tensor]]] = {}
        """Of each group the rows that its recording reads, and the recording."""

    def image(self, pixels: Tensor, fill: Tensor) -> Image:
        if self.clean is None and not self.refused:
            self._record_image(pixels, fill)
        if self.clean is None or self.place is None:
            return super().image(pixels, fill)
        self.place.pixels.copy_(pixels)
        self.place.fill.copy_(fill)
        self.clean()
        return self.place

    def _record_image(self, pixels: Tensor, fill: Tensor) -> None:
        place = Image(pixels.clone(), fill.clone(), {})
        self.clean = recorded(lambda: self.program.run(place.pixels, self.sources), self.pool)
        self.refused = self.clean is None
        if self.clean is not None:
            self.place = place._replace(clean=self.clean.result)

    def features(self, image: Image, number: int, rows: Tensor) -> Tensor:
        """By the group's recording, the last row repeated where it holds more; few of its windows,
        as a drill-down asks for, one launch after another."""
        size = len(self.windows[number][0]) if number in self.windows else 0
        if len(rows) > size and not self.refused:
            self._record(image, number, rows)
        if self.refused or 2 * len(rows) <= size:
            return super().features(image, number, rows)
        own, recording = self.windows[number]
        own[: len(rows)] = rows
        own[len(rows) :] = rows[-1]
        return recording()[: len(rows)].clone()

    def _record(self, image: Image, number: int, rows: Tensor) -> None:
        self.windows.pop(number, None)
        own, compute = rows.clone(), super().features
        recording = recorded(lambda: compute(image, number, own), self.pool)
        self.refused = recording is None
        if recording is not None:
            self.windows[number] = own, recording


def painted_by(groups: Sequence[Group], windows: Windows, device: torch.device) -> Painted:
    """Groups with their painters, on the device."""
    rectangles = np.array([list(window) for window in windows])
    return [(group.to(device), group.painter(rectangles, device)) for group in groups]


def passes_of(
    device: torch.device, program: Program, sources: Collection[str], groups: Painted
) -> Passes:
    """The kind that the device runs best."""
    kind = Recorded if device.type == "cuda" else Passes
    return kind(program, sources, groups)
