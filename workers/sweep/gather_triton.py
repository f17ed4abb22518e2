"""The gather of ``gather.py`` as one Triton kernel, for NVIDIA GPUs. Triton comes with PyTorch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Values an instance writes."""


@triton.jit
def _fill(  # type: ignore[no-untyped-def]
    out,
    clean,
    changed,
    table,
    height,
    width,
    channels,
    rows,
    columns,
    high,
    wide,
    skip_y,
    skip_x,
    border,
    block: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0) * block + tl.arange(0, block)
    k, position = offset % channels, offset // channels
    y = tl.load(table + 4 * n) + position // width * skip_y
    x = tl.load(table + 4 * n + 1) + position % width * skip_x
    own_y = y - tl.load(table + 4 * n + 2)
    own_x = x - tl.load(table + 4 * n + 3)
    valid = offset < height * width * channels
    inside = valid & (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    own = inside & (own_y >= 0) & (own_y < high) & (own_x >= 0) & (own_x < wide)
    old = tl.load(clean + (y * columns + x) * channels + k, mask=inside & ~own, other=border)
    new = tl.load(changed + ((n * high + own_y) * wide + own_x) * channels + k, mask=own, other=0.0)
    tl.store(out + n * height * width * channels + offset, tl.where(own, new, old), mask=valid)


def fill(
    out: Tensor, clean: Tensor, changed: Tensor, table: Tensor, skip: tuple[int, int], border: float
) -> None:
    """``out (n, h, w, channel)`` from ``clean (y, x, channel)`` and ``changed (n, high, wide,
    channel)``, all contiguous and on one GPU."""
    count, height, width, channels = out.shape
    rows, columns, _ = clean.shape
    _, high, wide, _ = changed.shape
    grid = (triton.cdiv(height * width * channels, BLOCK), count)
    with torch.cuda.device_of(out):
        _fill[grid](
            out,
            clean,
            changed,
            table,
            height,
            width,
            channels,
            rows,
            columns,
            high,
            wide,
            skip[0],
            skip[1],
            border,
            block=BLOCK,
        )
