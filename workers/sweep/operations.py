"""The operations a trunk is made of: what each computes, and how far a position sees.

Values are ``(n, channel, y, x)`` in channels-last memory. ``padded`` says whether an operation adds
its own border: on whole maps it does; windows are gathered with their border already around them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.sweep import convolve
from workers.sweep.intervals import Support

HERE = (Support(), Support())


class Operation(ABC):
    """One layer. ``supports`` (rows, columns) holds for the first operand, the others are read
    where the output is; ``border`` is what lies outside the map."""

    supports: tuple[Support, Support] = HERE
    border: float = 0.0
    mixes: bool = False
    """Every output depends on every position: from here on maps are whole."""

    @abstractmethod
    def __call__(self, operands: Sequence[Any], padded: bool) -> Tensor:
        """The layer's output."""

    def acting(self, padded: bool) -> tuple[Support, Support]:
        """Its supports on whole maps or on gathered windows."""
        rows, columns = self.supports
        return self.supports if padded else (rows.inside, columns.inside)

    def macs(self, channels: int) -> int:
        """Multiply-adds of one output position."""
        return 0

    def copied_weights(self, device: torch.device) -> int:
        """Numbers held for it beside the model's own weights, at most."""
        return 0

    def to(self, device: torch.device, dtype: torch.dtype) -> "Operation":
        """Its weights elsewhere."""
        return self


@dataclass(eq=False)
class Convolution(Operation):
    """``y_o = b + sum_ij w_ij x_(o s - p + i d)``, then a second operand added and a ReLU, where
    the trunk has them next to it."""

    weight: Tensor
    bias: Tensor | None
    supports: tuple[Support, Support]
    groups: int = 1
    relu: bool = False

    def __post_init__(self) -> None:
        self.kernels = convolve.Kernels(self)

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        x, *other = operands
        return self.kernels(x, other[0] if other else None, padded)

    def macs(self, channels: int) -> int:
        return self.weight.numel()

    def to(self, device: torch.device, dtype: torch.dtype) -> "Convolution":
        bias = None if self.bias is None else self.bias.to(device, dtype)
        weight = self.weight.to(device, dtype, memory_format=torch.channels_last)
        return replace(self, weight=weight, bias=bias)

    def copied_weights(self, device: torch.device) -> int:
        return round(self.weight.numel() * convolve.copies(self, device))

    def scaled(self, affine: "Affine") -> "Convolution":
        """This convolution followed by a per-channel affine map, as one: ``w' = a w``,
        ``b' = a b + c``."""
        weight = self.weight * affine.scale[:, None, None, None]
        bias = affine.shift if self.bias is None else self.bias * affine.scale + affine.shift
        return replace(self, weight=weight, bias=bias)


@dataclass(eq=False)
class MaxPool(Operation):
    """``y_o = max_ij x_(o s - p + i d)``; outside the map lies minus infinity."""

    supports: tuple[Support, Support]
    ceil: bool = False
    border: float = -torch.inf

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        kernel, stride, padding, dilation = zip(*self.acting(padded), strict=True)
        return F.max_pool2d(
            operands[0], kernel, stride, padding, dilation, ceil_mode=self.ceil and padded
        )


@dataclass(eq=False)
class SumPool(Operation):
    """``y_o = factor sum_ij x_(o s - p + i)``: average pooling where every divisor is the same;
    where they differ, ``factor`` is 1 and a product with their map follows."""

    supports: tuple[Support, Support]
    ceil: bool = False
    factor: float = 1.0

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        kernel, stride, padding, _ = zip(*self.acting(padded), strict=True)
        total = F.avg_pool2d(
            operands[0],
            kernel,
            stride,
            padding,
            ceil_mode=self.ceil and padded,
            divisor_override=1,
        )
        return total if self.factor == 1 else total.mul_(self.factor)


@dataclass(eq=False)
class Pointwise(Operation):
    """``y = f(x, ...)`` position by position; scalars and per-channel constants are inside ``f``,
    operands of one position each come as arguments."""

    function: Callable[..., Tensor]

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        return self.function(*operands)


@dataclass(eq=False)
class Affine(Operation):
    """``y = scale x + shift``, one pair a channel: batch normalisation in eval mode."""

    scale: Tensor
    shift: Tensor
    relu: bool = False

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        scale, shift = self.scale[:, None, None], self.shift[:, None, None]
        y = torch.addcmul(shift, operands[0], scale)
        return y.relu_() if self.relu else y

    def to(self, device: torch.device, dtype: torch.dtype) -> "Affine":
        return replace(self, scale=self.scale.to(device, dtype), shift=self.shift.to(device, dtype))


@dataclass(eq=False)
class PerChannel(Operation):
    """``y = f(x, constant)`` with one constant a channel: a bias, a layer scale, a mean."""

    function: Callable[[Tensor, Tensor], Tensor]
    constant: Tensor
    """``(channel, 1, 1)``."""

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        return self.function(operands[0], self.constant)

    def to(self, device: torch.device, dtype: torch.dtype) -> "PerChannel":
        return replace(self, constant=self.constant.to(device, dtype))


@dataclass(eq=False)
class ChannelNorm(Operation):
    """Layer normalisation over the channels of each position (ConvNeXt's)."""

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        last = operands[0].permute(0, 2, 3, 1)
        normed = F.layer_norm(last, last.shape[3:], self.weight, self.bias, self.epsilon)
        return normed.permute(0, 3, 1, 2)

    def to(self, device: torch.device, dtype: torch.dtype) -> "ChannelNorm":
        weight, bias = (
            None if t is None else t.to(device, dtype) for t in (self.weight, self.bias)
        )
        return replace(self, weight=weight, bias=bias)


@dataclass(eq=False)
class Concat(Operation):
    """Channels of all operands, one after another."""

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        return torch.cat(list(operands), 1)


@dataclass(eq=False)
class Channels(Operation):
    """Some channels: ``start <= c < stop``."""

    start: int
    stop: int

    def __call__(self, operands: Sequence[Tensor], padded: bool) -> Tensor:
        return operands[0][:, self.start : self.stop]


@dataclass(eq=False)
class Mixing(Operation):
    """Anything else, called as the trunk calls it, on whole maps: global pooling, attention,
    normalisation over space, reshaping. ``call`` gets the operands in the trunk's own layout."""

    call: Callable[..., Any]
    mixes: bool = True

    def __call__(self, operands: Sequence[Any], padded: bool) -> Any:
        return self.call(*operands)
