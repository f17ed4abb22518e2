"""Features of painted images by the pieces of the incremental engine, for tests."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from workers.sweep.grouping import best_partition
from workers.sweep.incremental import Group, Spread, sources
from workers.sweep.intervals import Intervals
from workers.sweep.passes import Passes, painted_by
from workers.sweep.program import Program
from workers.sweep.windows import Windows


def planned(
    program: Program, windows: Windows, number: int, cells: Collection[int] | None = None
) -> list[Group]:
    """The windows in ``number`` groups an axis; only those groups that hold one of the cells."""
    spread = Spread.of(program, Intervals.of(windows.rows), Intervals.of(windows.columns))
    rows, columns = (
        best_partition(program, axis, i, number)
        for i, axis in enumerate((spread.rows, spread.columns))
    )
    wanted = range(len(windows)) if cells is None else cells
    held = {divmod(cell, len(windows.columns)) for cell in wanted}
    steps = len(program.steps)
    return [
        spread.group(r, c, steps)
        for r in rows
        for c in columns
        if any(y in r and x in c for y, x in held)
    ]


@torch.inference_mode()
def swept(
    program: Program,
    groups: Sequence[Group],
    windows: Windows,
    image: Tensor,
    fill: Tensor,
    cells: Sequence[int],
) -> Tensor:
    """Features ``(cell, channel, y, x)`` of some windows, by the groups that hold them."""
    passes = Passes(
        program, sources(groups, program.output), painted_by(groups, windows, image.device)
    )
    clean = passes.image(image[None], fill[None])
    found: dict[int, Tensor] = {}
    for number, group in enumerate(groups):
        positions = np.flatnonzero(np.isin(group.cells, cells))
        rows = torch.from_numpy(positions).to(image.device)
        if len(rows):
            outputs = passes.features(clean, number, rows)
            found.update(zip(group.cells[positions].tolist(), outputs, strict=True))
    return torch.stack([found[cell] for cell in cells])


def borders(windows: Windows) -> list[int]:
    """Cells in the corners, at the middle of each border, and in the middle."""
    height, width = windows.shape
    return [y * width + x for y in (0, height // 2, height - 1) for x in (0, width // 2, width - 1)]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest feature."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
