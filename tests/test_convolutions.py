"""Convolutions, pooling and normalisation pull gradients back as PyTorch's own operations do."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.methods.relu_rules import Trace, record

CONVOLUTIONS = {
    "1x1": (6, 5, 1, {}, 9, 8),
    "1x1, stride 2": (6, 5, 1, {"stride": 2}, 9, 8),
    "1x1, padded": (6, 5, 1, {"padding": 1}, 9, 8),
    "3x3": (6, 5, 3, {"padding": 1}, 9, 8),
    "3x3, no padding": (6, 5, 3, {}, 9, 8),
    "3x3, full padding": (6, 5, 3, {"padding": 2}, 9, 8),
    "3x3, padding beyond the kernel": (6, 5, 3, {"padding": 3}, 9, 8),
    "3x3, stride 2, last row unread": (6, 5, 3, {"stride": 2}, 10, 9),
    "3x3, dilated": (6, 5, 3, {"dilation": 2, "padding": 1}, 9, 8),
    "depthwise": (6, 6, 3, {"groups": 6, "padding": 1}, 9, 8),
    "grouped": (6, 4, 3, {"groups": 2, "stride": 2}, 9, 8),
    "oblong": (6, 5, (1, 5), {"padding": (0, 2), "stride": (1, 2)}, 9, 8),
    "padding same": (6, 5, 3, {"padding": "same"}, 9, 8),
    "reflected": (6, 5, 3, {"padding": 1, "padding_mode": "reflect"}, 9, 8),
    "image, 7x7, stride 2": (3, 5, 7, {"stride": 2, "padding": 3}, 22, 19),
    "image, 7x7, stride 2, even": (3, 5, 7, {"stride": 2, "padding": 3}, 16, 16),
    "image, 11x11, stride 4": (3, 5, 11, {"stride": 4, "padding": 2}, 31, 23),
    "image, 3x3": (3, 5, 3, {"padding": 1}, 11, 8),
    "image, 3x3, stride 2": (3, 5, 3, {"stride": 2}, 10, 9),
    "image, 3x3, stride 3, last rows unread": (1, 5, 3, {"stride": 3}, 11, 10),
    "image, patches": (3, 5, 4, {"stride": 4}, 12, 8),
    "image, kernel below the stride": (2, 5, 2, {"stride": 3}, 11, 9),
    "image, padding beyond the kernel": (3, 5, 3, {"padding": 3}, 9, 8),
    "image, oblong": (3, 5, (3, 5), {"padding": (1, 2)}, 9, 8),
    "image, dilated": (3, 5, 3, {"dilation": 2}, 9, 8),
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "2x2": lambda x: F.max_pool2d(x, 2),
    "overlapping": nn.MaxPool2d(3, 2, 1),
    "partial last window": nn.MaxPool2d(3, 2, ceil_mode=True),
    "dilated": lambda x: F.max_pool2d(x, (2, 1), stride=(1, 2), dilation=2),
    "with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
}
STATISTICS = (torch.linspace(-1, 1, 6).double(), torch.linspace(0.5, 2, 6).double())
SCALE, SHIFT = torch.linspace(-2, 3, 6).double(), torch.linspace(1, 2, 6).double()
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_norm": lambda x: F.batch_norm(x, *STATISTICS, SCALE, SHIFT, eps=0.1),
    "without scale and shift": lambda x: F.batch_norm(x, *STATISTICS),
    "without shift": lambda x: F.batch_norm(
        input=x, running_mean=STATISTICS[0], running_var=STATISTICS[1], weight=SCALE
    ),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, SCALE, SHIFT, *STATISTICS, False, 0.1, 0.1, False
    ),
    "batch statistics": lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, training=True),
    "instance_norm": lambda x: F.instance_norm(x, weight=SCALE, bias=SHIFT),
    "group_norm": lambda x: F.group_norm(x, 3, SCALE, SHIFT),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
}


def error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a part of the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def wanted_gradients(net: Callable[[Tensor], Tensor], x: Tensor, signals: Tensor) -> Tensor:
    """PyTorch's own, one after the other."""
    leaf = x.clone().requires_grad_()
    output = net(leaf)
    gradients = [torch.autograd.grad(output, leaf, g, retain_graph=True)[0] for g in signals]
    return torch.stack(gradients)


def check(net: Callable[[Tensor], Tensor], x: Tensor, bound: float = 1e-13) -> None:
    """Values, gradients one by one and as a batch, in either order of memory."""
    trace = record(net, x)
    assert error(trace.output.detach(), net(x).detach()) < bound
    signals = torch.randn(3, *trace.output.shape, dtype=x.dtype)
    wanted = wanted_gradients(net, x, signals)
    last = signals.movedim(2, -1).contiguous().movedim(-1, 2)
    for each in (signals, last):
        assert error(trace.pull_back_many(each, "saliency")[0], wanted) < bound
        assert error(trace.pull_back(each[1], "saliency")[0], wanted[1]) < bound


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_of_any_geometry_equals_autograd(name: str, batch: int) -> None:
    inputs, outputs, kernel, options, height, width = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, kernel, **options).double().requires_grad_(False)
    check(layer, torch.randn(batch, inputs, height, width, dtype=torch.float64))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_max_pooling_equals_autograd(pool: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    check(pool, torch.randn(2, 4, 10, 9, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_normalisation_between_convolutions_equals_autograd(
    norm: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    first, last = (nn.Conv2d(6, 6, k).double().requires_grad_(False) for k in (3, 1))
    check(lambda x: last(norm(first(x))), torch.randn(1, 6, 8, 7, dtype=torch.float64))


@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize("size", [(4, 5), (7, 7), (15, 18)])
def test_wide_convolutions_in_float32_equal_float64(size: tuple[int, int], padding: object) -> None:
    """Those that Winograd's algorithm computes."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3, padding=padding).requires_grad_(False)
    x = torch.randn(1, 64, *size)
    trace = record(layer, x)
    signals = torch.randn(3, *trace.output.shape)
    wanted = wanted_gradients(layer.double(), x.double(), signals.double())
    assert error(trace.pull_back_many(signals, "saliency")[0], wanted) < 1e-5


def gradient(trace: Trace) -> Tensor:
    return trace.pull_back(torch.ones_like(trace.output), "saliency")[0]


@pytest.mark.parametrize("kernel", [1, 3])
def test_written_weights_are_prepared_anew(kernel: int) -> None:
    x = torch.ones(1, 32, 6, 6)
    layer = nn.Conv2d(32, 32, kernel).requires_grad_(False)
    before = gradient(record(layer, x))
    layer.weight.mul_(2)
    torch.testing.assert_close(gradient(record(layer, x)), 2 * before)
    layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()})
    torch.testing.assert_close(gradient(record(layer, x)), 6 * before)
    layer.weight.data = layer.weight / 6
    torch.testing.assert_close(gradient(record(layer, x)), before)
    assert gradient(record(layer.double(), x.double())).dtype is torch.float64


def test_one_weight_in_two_geometries() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.float64))
    check(
        lambda x: F.conv2d(F.conv2d(x, weight, padding=1), weight, stride=2),
        torch.randn(1, 4, 9, 9, dtype=torch.float64),
    )


def test_gradient_passes_through_weights_that_are_computed() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    check(lambda x: F.conv2d(x, x[:, :, :3, :3].tanh()), x)


def test_prepared_weights_go_with_the_model() -> None:
    layer = nn.Conv2d(32, 32, 3).requires_grad_(False)
    trace = record(layer, torch.randn(1, 32, 6, 6))
    gradient(trace)
    weight = weakref.ref(layer.weight)
    del layer, trace
    gc.collect()
    assert weight() is None


def test_autocast_keeps_its_types() -> None:
    layer = nn.Conv2d(8, 8, 3).requires_grad_(False)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    trace = record(forward, torch.randn(1, 8, 6, 6))
    assert trace.output.dtype is torch.bfloat16
    assert gradient(trace).dtype is torch.float32
