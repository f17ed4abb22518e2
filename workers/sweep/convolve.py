"""Convolutions on the CPU and elsewhere: several ways to the same sums, the fastest measured.

oneDNN's speed depends on shape, layout and weight format in ways that no rule foretells (a
pre-packed 1x1 convolution can take half or twice the time of a plain one), and so does cuDNN's:
each shape's first call tries all of them, on the CPU on a few windows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.sweep import machine
from workers.sweep.intervals import Support
from workers.sweep.tiles import WEIGHTS
from workers.sweep.winograd import suits, winograd

if TYPE_CHECKING:
    from workers.sweep.operations import Convolution

Supports = tuple[Support, Support]
Kernel = Callable[["Convolution", Tensor, Tensor | None, Supports], Tensor]
TRIAL, POSITIONS = 8, 4096
"""Windows a trial runs on, fewer where they are large: one has so many positions, or all together
have at most so many."""
SIDE = 14
"""Output size that pre-packed weights are ordered for."""


def eager(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """PyTorch's convolution, then the sum and the ReLU in place."""
    _, stride, padding, dilation = zip(*at, strict=True)
    y = F.conv2d(x, conv.weight, conv.bias, stride, padding, dilation, conv.groups)
    return _finish(conv, y, other)


def matmul(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """A 1x1 convolution as one matrix product over all positions."""
    rows = x.permute(0, 2, 3, 1)
    y = F.linear(rows, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)
    return _finish(conv, y, other)


def fused(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """oneDNN's convolution with the sum and the ReLU inside."""
    return _pointwise(conv, conv.weight, x, other, at)


def packed(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """The same with weights in oneDNN's own order, which spares their reordering in each call."""
    return _pointwise(conv, conv.kernels.in_own_order(at), x, other, at)


def _pointwise(
    conv: "Convolution", weight: Tensor, x: Tensor, other: Tensor | None, at: Supports
) -> Tensor:
    _, stride, padding, dilation = zip(*at, strict=True)
    shape = (padding, stride, dilation, conv.groups)
    if other is None:
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, conv.bias, *shape, "relu" if conv.relu else "none", [], ""
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x,
        other,
        weight,
        conv.bias,
        *shape,
        "add",
        1.0,
        "relu" if conv.relu else None,
        [],
        "",
    )


def cudnn(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """cuDNN's convolution with the sum and the ReLU inside."""
    _, stride, padding, dilation = zip(*at, strict=True)
    shape = (stride, padding, dilation, conv.groups)
    if other is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *shape)
    return torch.cudnn_convolution_add_relu(x, conv.weight, other, 1.0, conv.bias, *shape)


def planar(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """PyTorch's convolution of maps that lie channel by channel, for which cuDNN has other
    algorithms."""
    _, stride, padding, dilation = zip(*at, strict=True)
    weight = conv.weight.contiguous()
    y = F.conv2d(x.contiguous(), weight, conv.bias, stride, padding, dilation, conv.groups)
    return _finish(conv, y.contiguous(memory_format=torch.channels_last), other)


def _finish(conv: "Convolution", y: Tensor, other: Tensor | None) -> Tensor:
    if other is not None:
        y = y.add_(other)
    return y.relu_() if conv.relu else y


def onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether its kernels can be called; bfloat16 needs instructions that not every CPU has."""
    if dtype is torch.bfloat16:
        return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cpu" and dtype is torch.float32


def _sample(x: Tensor, images: int | None = None) -> Tensor:
    """As many images as a trial runs on, however many there are: a batch of one says little about
    the batches of a sweep, which read the weights once for all their windows."""
    images = images or max(1, min(TRIAL, POSITIONS // math.prod(x.shape[2:])))
    return torch.cat([x[:images]] * -(-images // len(x)))[:images]


def copies(conv: "Convolution", device: torch.device) -> float:
    """How many times a convolution's weights are held, at most: folded; in oneDNN's order with and
    without padding, or transformed."""
    if not onednn(device, conv.weight.dtype):
        return 1
    transformed = conv.weight.new_empty(1, conv.weight.shape[1], 3, 3)
    if suits(conv, transformed, conv.acting(False)):
        return 1 + WEIGHTS
    return 3


class Kernels:
    """One convolution's kernels, the fastest of each shape remembered."""

    def __init__(self, conv: "Convolution") -> None:
        self.conv = conv
        self.chosen: dict[tuple[object, ...], Kernel] = {}
        self.own_order: dict[Supports, Tensor] = {}

    def __call__(self, x: Tensor, other: Tensor | None, padded: bool) -> Tensor:
        at = self.conv.acting(padded)
        images = 0 if x.device.type == "cpu" else len(x)
        key = (images, x.shape[1:], padded, other is None)
        kernel = self.chosen.get(key)
        if kernel is None:
            kernel = self.chosen[key] = self._fastest(x, other, at)
        return kernel(self.conv, x, other, at)

    def in_own_order(self, at: Supports) -> Tensor:
        """The weights as oneDNN wants them for inputs of one size, always the same: a shape whose
        best order is another finds this kernel slow."""
        if at not in self.own_order:
            _, stride, padding, dilation = zip(*at, strict=True)
            size = [TRIAL, self.conv.weight.shape[1], *(s.extent(SIDE) for s in at)]
            self.own_order[at] = torch.ops.mkldnn._reorder_convolution_weight(
                self.conv.weight, padding, stride, dilation, 1, size
            )
        return self.own_order[at]

    def _fastest(self, x: Tensor, other: Tensor | None, at: Supports) -> Kernel:
        """Of the kernels that can; measured once a machine."""
        candidates = self._candidates(x, at)
        if len(candidates) == 1:
            return candidates[0]
        weight = tuple(self.conv.weight.shape)
        shape = tuple(x.shape[1:] if x.device.type == "cpu" else x.shape)
        fused_in = (other is not None, self.conv.relu)
        names = [kernel.__name__ for kernel in candidates]
        key = f"{x.dtype} {weight} {self.conv.groups} {at} {shape} {fused_in} {names}"
        chosen = machine.once(key, x.device, lambda: self._trial(candidates, x, other, at))
        return candidates[int(chosen)]

    def _trial(
        self, candidates: list[Kernel], x: Tensor, other: Tensor | None, at: Supports
    ) -> float:
        """The position of the fastest."""
        if x.device.type == "cpu":
            x = _sample(x)
            other = None if other is None else _sample(other, len(x))
        runs = [partial(kernel, self.conv, x, other, at) for kernel in candidates]
        seconds = [machine.seconds(run, x.device, 2) for run in runs]
        return float(seconds.index(min(seconds)))

    def _candidates(self, x: Tensor, at: Supports) -> list[Kernel]:
        if x.device.type == "cuda" and x.dtype is not torch.float64:
            return self._of_gpu(at)
        if not onednn(x.device, x.dtype):
            return [eager]
        kernels: list[Kernel] = [eager, fused]
        if suits(self.conv, x, at):
            kernels.append(winograd)
        elif self.conv.groups == 1:
            kernels.append(packed)
        return kernels + self._products(at)

    def _of_gpu(self, at: Supports) -> list[Kernel]:
        kernels: list[Kernel] = [eager, planar]
        if self.conv.relu:
            kernels.append(cudnn)
        return kernels + self._products(at)

    def _products(self, at: Supports) -> list[Kernel]:
        """One matrix product, where the convolution is one."""
        return [matmul] if at == (Support(), Support()) and self.conv.groups == 1 else []
