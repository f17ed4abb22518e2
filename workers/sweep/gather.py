"""Windows of painted activations, cut out of the clean map with what has changed pasted over it.

``gathered[n, :, r, c]`` is the position ``y = top[n] + r skip_y``, ``x = left[n] + c skip_x`` of
window n's painted image: from the changed window where it covers (y, x), from the clean map
elsewhere, ``border`` outside the map. One pass over memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gather:
    """Where to cut: ``extent`` positions, ``skip`` apart, and for each window a row of ``table``:
    its top and left, then the top and left of the changed window."""

    extent: tuple[int, int]
    table: Tensor
    """``(n, 4)``, int32."""
    skip: tuple[int, int] = (1, 1)
    border: float = 0.0

    def to(self, device: torch.device) -> "Gather":
        return replace(self, table=self.table.to(device))

    def __call__(self, clean: Tensor, changed: Tensor | None, rows: Tensor) -> Tensor:
        """``clean (1, channel, y, x)``, ``changed (n, channel, h, w)`` or None -> ``(n, channel,
        *extent)`` for n rows of the table; channels-last."""
        table = self.table[rows]
        _, channels, *_ = clean.shape
        shape = (len(table), *self.extent, channels)
        out = torch.empty(shape, dtype=clean.dtype, device=clean.device)
        if changed is None:
            changed = clean.new_empty(len(table), channels, 0, 0)
        if changed.shape[:2] != (len(table), channels):  # read without a look at the bounds
            raise ValueError(
                f"{len(changed)} windows of {changed.shape[1]} channels for {len(table)} rows over "
                f"{channels} clean channels"
            )
        last = (_channels_last(clean)[0], _channels_last(changed))
        FILL[clean.device.type](out, *last, table, self.skip, self.border)
        return out.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).contiguous()


def _fill_cpu(
    out: Tensor, clean: Tensor, changed: Tensor, table: Tensor, skip: tuple[int, int], border: float
) -> None:
    edge = torch.tensor(border, dtype=out.dtype)
    if out.dtype in (torch.bfloat16, torch.float16):  # numpy has no such type; bits are bits
        out, clean, changed, edge = (t.view(torch.int16) for t in (out, clean, changed, edge))
    own, from_clean, from_changed, rows = (t.numpy() for t in (out, clean, changed, table))
    _fill(own, from_clean, from_changed, rows, skip[0], skip[1], edge.numpy()[()])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill(out, clean, changed, table, skip_y, skip_x, border):  # type: ignore[no-untyped-def]
    count, height, width, channels = out.shape
    rows, columns, _ = clean.shape
    _, high, wide, _ = changed.shape
    for n in range(count):
        top, left, changed_top, changed_left = table[n]
        for r in range(height):
            y = top + r * skip_y
            inside = 0 <= y < rows
            own = changed_top <= y < changed_top + high
            for c in range(width):
                x = left + c * skip_x
                if not inside or x < 0 or x >= columns:
                    for k in range(channels):
                        out[n, r, c, k] = border
                elif own and changed_left <= x < changed_left + wide:
                    for k in range(channels):
                        out[n, r, c, k] = changed[n, y - changed_top, x - changed_left, k]
                else:
                    for k in range(channels):
                        out[n, r, c, k] = clean[y, x, k]


def _fill_cuda(
    out: Tensor, clean: Tensor, changed: Tensor, table: Tensor, skip: tuple[int, int], border: float
) -> None:
    from workers.sweep import gather_triton  # Triton is there where GPUs are

    gather_triton.fill(out, clean, changed, table, skip, border)


Fill = Callable[[Tensor, Tensor, Tensor, Tensor, tuple[int, int], float], None]
FILL: dict[str, Fill] = {"cpu": _fill_cpu, "cuda": _fill_cuda}
"""By device type."""


def table_of(*columns: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(columns, 1).astype(np.int32))
