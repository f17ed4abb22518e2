"""3x3 convolutions on the CPU in up to 4 times fewer multiplications.

Winograd's minimal filtering: the sum over channels turns the elementwise products of many tiles
(``tiles.py``) into one matrix product a position, in vector code of our own (``vectors.py``).
A side that 4 does not divide takes some tiles of 3, so that next to nothing is computed in vain:
windows are small. Tiles of both sizes use the same transformed weights.
"""

import math
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from workers.sweep.intervals import Support
from workers.sweep.tiles import POINTS, POSITIONS, Part, cook_toom, tiling
from workers.sweep.vectors import LANES, PANEL, STRIP, convolve

if TYPE_CHECKING:
    from workers.sweep.operations import Convolution

Supports = tuple[Support, Support]
BLOCK = 16
"""Strips transformed, multiplied and transformed back before the next: they stay in the cache."""


def suits(conv: "Convolution", x: Tensor, at: Supports) -> bool:
    """Whether `winograd` computes this: float32 on the CPU, 3x3, stride and dilation 1, one group,
    whole vectors and panels of channels, at least one output."""
    floats = x.device.type == "cpu" and x.dtype == conv.weight.dtype == torch.float32
    shapes = all((s.kernel, s.stride, s.dilation) == (3, 1, 1) for s in at) and conv.groups == 1
    c_out, c_in, *_ = conv.weight.shape
    whole = x.shape[1] == c_in and c_in % LANES == 0 and c_out % (PANEL * LANES) == 0
    return floats and shapes and whole and len(x) > 0 and min(_size(x, at)) > 0


def winograd(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """The convolution, its bias, ``other`` and the ReLU: ``x (n, c_in, h, w)`` -> ``(n, c_out,
    h_out, w_out)``, channels-last; in one thread, without the interpreter's lock. An image's values
    do not depend on its neighbours in the batch. An infinite input makes its whole tile NaN."""
    if not suits(conv, x, at):
        raise ValueError(f"no Winograd convolution of {tuple(x.shape)} {x.dtype} under {at}")
    size = _size(x, at)
    c_out, c_in, *_ = conv.weight.shape
    y = x.new_empty(len(x), *size, c_out)
    if other is not None and (other.shape, other.dtype) != ((len(x), c_out, *size), x.dtype):
        raise ValueError(f"{tuple(other.shape)} {other.dtype} added to {len(x), c_out, *size}")
    rows, padding, weights = _channels_last(x), (at[0].padding, at[1].padding), _weights(conv)
    ends = _ends(conv, y, other)
    for part in tiling(size):
        v, products = _ROOM(part, len(x), c_in, c_out)
        used = POSITIONS[part.tile]
        convolve(part, used, rows, padding, weights, ends, v, products, y.numpy())
    return y.permute(0, 3, 1, 2)


def _size(x: Tensor, at: Supports) -> tuple[int, int]:
    height, width = (length + 2 * s.padding - 2 for length, s in zip(x.shape[2:], at, strict=True))
    return height, width


def _channels_last(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def _ends(
    conv: "Convolution", y: Tensor, other: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bias, lower bound, second operand. One of no extent reads as zeros."""
    zeros = np.zeros(y.shape[3], np.float32)
    bias = zeros if conv.bias is None else conv.bias.detach().float().contiguous().numpy()
    floor = zeros if conv.relu else zeros - np.float32(np.inf)
    return bias, floor, y[:, :0, :0].numpy() if other is None else _channels_last(other)


class Room(threading.local):
    """A thread's memory for one block, kept: asking the system anew costs more than the
    transforms."""

    def __init__(self) -> None:
        self.floats = np.empty(0, np.float32)

    def __call__(self, part: Part, images: int, *channels: int) -> list[np.ndarray]:
        """For each channel count ``(position, strip, vector, STRIP, LANES)``; blocks of equal
        length."""
        strips = -(-images * math.prod(part.number) // STRIP)
        strips = -(-strips // -(-strips // BLOCK))
        positions = math.prod(m + 2 for m in part.tile)
        shapes = [(positions, strips, count // LANES, STRIP, LANES) for count in channels]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if self.floats.size < ends[-1]:
            self.floats = np.empty(ends[-1], np.float32)
        parts = np.split(self.floats[: ends[-1]], ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


_ROOM = Room()

_KEPT: WeakKeyDictionary["Convolution", np.ndarray] = WeakKeyDictionary()


def _weights(conv: "Convolution") -> np.ndarray:
    """``G g G^T (position, panel, c_in, PANEL LANES)``, in float64 and rounded once; kept with the
    convolution."""
    if conv not in _KEPT:
        g = torch.from_numpy(cook_toom(POINTS).kernel)
        u = torch.einsum("ik,ockl,jl->ijco", g, conv.weight.detach().double(), g)
        panels = u.flatten(0, 1).unflatten(2, (-1, PANEL * LANES)).transpose(1, 2)
        _KEPT[conv] = panels.float().contiguous().numpy()
    return _KEPT[conv]
