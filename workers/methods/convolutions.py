"""Convolution with a cheaper gradient on the CPU.

It computes what PyTorch's own computes. What is saved: weights are constants, so that only the
gradient at the input is wanted, from weights that are prepared once, and channels-last.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from workers.sweep.intervals import Support
from workers.sweep.operations import Convolution
from workers.sweep.winograd import suits, winograd

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution without its bias; ``weight (out, in / groups, y, x)`` is channels-last."""

    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def output(self, x: Tensor, bias: Tensor | None) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return torch.conv2d(x, self.weight, bias, *geometry)

    def gradient(self, signal: Tensor, size: Pair) -> Tensor:
        """That at the output ``(n, out, y, x)`` -> that at the input ``(n, in, *size)``."""
        if self._is_pointwise:
            return (signal.movedim(1, 3) @ self.weight[:, :, 0, 0]).movedim(3, 1)
        if self._turned and suits(self._turned, signal, self._turned.supports):
            return _Winograd.apply(signal, self._turned)
        return self._sub_pixel(signal, size) if self._sub_pixel else self._transposed(signal, size)

    @property
    def _is_dense(self) -> bool:
        return (self.dilation, self.groups) == ((1, 1), 1)

    @property
    def _is_pointwise(self) -> bool:
        geometry = (*self.weight.shape[2:], *self.stride, *self.padding)
        return self._is_dense and geometry == (1, 1, 1, 1, 0, 0)

    @cached_property
    def _turned(self) -> Convolution | None:
        """Of 3x3 taps and stride 1, the convolution by the taps turned by 180 degrees."""
        taps = tuple(self.weight.shape[2:])
        if not self._is_dense or (taps, self.stride) != ((3, 3), (1, 1)) or max(self.padding) > 2:
            return None
        rows, columns = (Support(3, 1, 2 - padding) for padding in self.padding)
        return Convolution(self.weight.flip(2, 3).transpose(0, 1), None, (rows, columns))

    @cached_property
    def _sub_pixel(self) -> "SubPixel | None":
        _, inputs, taps, _ = self.weight.shape
        stride, padding = self.stride[0], self.padding[0]
        square = (taps, stride, padding) == (self.weight.shape[3], self.stride[1], self.padding[1])
        if self._is_dense and square and inputs <= 4 and padding < taps:
            return SubPixel(self.weight, stride, padding)
        return None

    def _transposed(self, signal: Tensor, size: Pair) -> Tensor:
        """By the transposed convolution, which is there for all of them."""
        axes = (size, self.weight.shape[2:], self.stride, self.padding, self.dilation)
        unread = [(n + 2 * p - d * (k - 1) - 1) % s for n, k, s, p, d in zip(*axes, strict=True)]
        geometry = (self.stride, self.padding, unread, self.groups, self.dilation)
        return F.conv_transpose2d(signal, self.weight, None, *geometry)


@dataclass(frozen=True, eq=False)
class SubPixel:
    """The gradient of a convolution of few channels, as a network's first one is.

    PyTorch's run at a fifth of their speed on so few. Here a block of pixels becomes the channels
    of one convolution's output (Shi et al. 2016, "Real-Time Single Image and Video
    Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network").
    """

    weight: Tensor
    stride: int
    padding: int

    @property
    def block(self) -> int:
        """Pixels a side, a multiple of the stride."""
        return max(self.stride, 2)

    @property
    def reach(self) -> Pair:
        """How far the signals that a block receives lie before and after its own position."""
        before = (self.weight.shape[2] - 1 - self.padding) // self.stride
        return before, (self.block - 1 + self.padding) // self.stride

    @cached_property
    def kernel(self) -> Tensor:
        """``(in * block^2, out, distance, distance)``: pixel i of a block receives the signal at
        distance d through tap ``i + padding - stride * d``, if there is one."""
        before, after = self.reach
        distances = torch.arange(-before, after + 1)
        tap = torch.arange(self.block)[:, None] + self.padding - self.stride * distances
        outputs, _, taps, _ = self.weight.shape
        tap = tap.where((tap >= 0) & (tap < taps), taps)
        with_zeros = F.pad(self.weight, (0, 1, 0, 1))
        kernel = with_zeros[:, :, tap[:, :, None, None], tap].permute(1, 2, 4, 0, 3, 5)
        kernel = kernel.reshape(-1, outputs, len(distances), len(distances))
        return kernel.contiguous(memory_format=torch.channels_last)

    def __call__(self, signal: Tensor, size: Pair) -> Tensor:
        """As ``Layer.gradient``."""
        (before, after), step = self.reach, self.block // self.stride
        rows, columns = (-(-pixels // self.block) for pixels in size)
        # The padding is alike at both ends: blocks too many in front make the last one whole.
        ends = zip((rows, columns), signal.shape[2:], strict=True)
        missing = [(blocks - 1) * step + 1 + after - length - before for blocks, length in ends]
        y, x = (max(0, -(-each // step)) for each in missing)
        padding = (before + step * y, before + step * x)
        pixels = F.conv2d(signal, self.kernel, None, step, padding)
        pixels = pixels[:, :, y : y + rows, x : x + columns]
        return F.pixel_shuffle(pixels, self.block)[:, :, : size[0], : size[1]]


_LAYERS = WeakTensorKeyDictionary()
"""By weight: the state it was prepared in, and its layers by geometry."""


def _layer(weight: nn.Parameter, *geometry: Any) -> Layer:
    """Prepared once, and anew where the weight was written to or moved (but for what is written
    through ``.data``, of which PyTorch keeps no count). Winograd's takes four times the memory."""
    state = (weight.data_ptr(), weight.dtype, weight._version)
    prepared, layers = _LAYERS.get(weight, (None, {}))
    if prepared != state:
        layers = {}
        _LAYERS[weight] = (state, layers)
    if geometry not in layers:
        constant = weight.detach().contiguous(memory_format=torch.channels_last)
        layers[geometry] = Layer(constant, *geometry)
    return layers[geometry]


class _Winograd(torch.autograd.Function):
    """Winograd's convolution, to which a batch of backward passes is a batch of images."""

    @staticmethod
    def forward(x: Tensor, layer: Convolution) -> Tensor:
        return winograd(layer, x, None, layer.supports)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, layer: Convolution) -> tuple[Tensor, int]:
        many = x.movedim(dims[0], 0)
        output = winograd(layer, many.flatten(0, 1), None, layer.supports)
        return output.unflatten(0, many.shape[:2]), 0


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, bias: Tensor | None) -> Tensor:
        ctx.layer, ctx.size = layer, (x.shape[2], x.shape[3])
        return layer.output(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer.gradient(grads[0], ctx.size), None, None


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """By parameters; None for weights that are computed, and for padding by a name."""
    if not is_plain(input) or isinstance(padding, str):
        return None
    if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter | None):
        return None
    layer = _layer(weight, _pair(stride), _pair(padding), _pair(dilation), groups)
    return _Convolve.apply(input, layer, bias)


def is_plain(x: Tensor) -> bool:
    """Whether it is differentiated, of four dimensions and as PyTorch would have it on a CPU."""
    plain = x.dim() == 4 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return plain and x.requires_grad


def _pair(value: Any) -> Pair:
    first, *rest = [value] * 2 if isinstance(value, int) else value
    return first, rest[0] if rest else first
