"""PyTorch's operations with cheaper gradients on the CPU: what stands for each in a trace.

They compute what PyTorch's own compute, values in channels-last memory where those have channels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.methods.convolutions import conv2d, is_plain


class _MaxPool(torch.autograd.Function):
    """It keeps where each maximum was, counted through the channels-last input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        output, pixel = F.max_pool2d(x, *window, return_indices=True)
        ctx.shape = x.shape
        channel = torch.arange(x.shape[1])
        ctx.save_for_backward((pixel.movedim(1, 3) * x.shape[1] + channel).flatten(1))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        n, channels, height, width = ctx.shape
        gradient = grads[0].movedim(1, 3).flatten(1)
        pixels = gradient.new_zeros(n, height * width * channels).scatter_add(1, where, gradient)
        return pixels.unflatten(1, (height, width, channels)).movedim(3, 1), None


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """Without the indices."""
    if not is_plain(input) or return_indices:
        return None
    return _MaxPool.apply(input, (kernel_size, stride, padding, dilation, ceil_mode))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """By running statistics, or PyTorch's own by those of the batch."""
    if not is_plain(input) or training or running_mean is None or running_var is None:
        own = (running_mean, running_var, weight, bias, training, momentum, eps)
        return _with_contiguous_gradient(F.batch_norm)(input, *own)
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return torch.addcmul(shift[:, None, None], input, scale[:, None, None])


def _with_contiguous_gradient(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Because PyTorch's normalisations by a batch's statistics (torch 2.15, CPU) misread a
    channels-last gradient of a single image."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        output = function(*args, **kwargs)
        if output.requires_grad:
            output.register_hook(Tensor.contiguous)
        return output

    return call


REPLACED: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.conv2d: conv2d,
    F.max_pool2d: max_pool2d,
    F.batch_norm: batch_norm,
    torch.batch_norm: _with_contiguous_gradient(torch.batch_norm),
    torch.instance_norm: _with_contiguous_gradient(torch.instance_norm),
    F.instance_norm: _with_contiguous_gradient(F.instance_norm),
}
"""PyTorch's call, and what stands for it; that gives None where PyTorch's own is to be called."""
