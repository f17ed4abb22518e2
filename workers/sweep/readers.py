"""One short function for each ATen operation whose windows can be followed: its call -> steps."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from workers.sweep.intervals import Support
from workers.sweep.operations import (
    Affine,
    ChannelNorm,
    Channels,
    Concat,
    Convolution,
    MaxPool,
    PerChannel,
    Pointwise,
    SumPool,
)
from workers.sweep.program import BATCH
from workers.sweep.tracer import NCHW, Reader, Tracer, Unknown, Untraceable, Value, aten, map_shape


def _map(value: Any) -> Value:
    """A map in the usual order of dimensions."""
    if not isinstance(value, Value) or value.axes != NCHW:
        raise Unknown
    return value


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


def _supports(a: dict[str, Any], kernel: Any) -> tuple[Support, Support]:
    sizes = _pair(kernel)
    stride = _pair(a["stride"]) if a["stride"] else sizes
    padding, dilation = _pair(a["padding"]), _pair(a.get("dilation", 1))
    rows, columns = (Support(*x) for x in zip(sizes, stride, padding, dilation, strict=True))
    return rows, columns


def _convolution(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    weight, bias = a["weight"], a["bias"]
    if a.get("transposed") or not isinstance(weight, Tensor) or isinstance(bias, Value):
        raise Unknown
    if isinstance(a["padding"], str):
        a = {**a, "padding": _padding_by_name(a, weight.shape[2:])}
    supports = _supports(a, weight.shape[2:])
    operation = Convolution(weight, bias, supports, a["groups"])
    return tracer.add(node, operation, _map(a["input"]))


def _padding_by_name(a: dict[str, Any], kernel: torch.Size) -> list[int]:
    """``same``: ``d (k - 1) / 2`` on either side; an odd number has a longer side, which is not
    read here."""
    if a["padding"] == "valid":
        return [0, 0]
    around = [d * (k - 1) for d, k in zip(_pair(a["dilation"]), kernel, strict=True)]
    if any(total % 2 for total in around):
        raise Unknown
    return [total // 2 for total in around]


def _linear(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """Over the channels of each position: a 1x1 convolution."""
    x, weight = a["input"], a["weight"]
    if not isinstance(x, Value) or x.axes[-1:] != (1,) or not isinstance(weight, Tensor):
        raise Unknown
    if isinstance(a["bias"], Value):
        raise Unknown
    point = (Support(), Support())
    return tracer.add(node, Convolution(weight[:, :, None, None], a["bias"], point), x)


def _batch_norm(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training"):
        raise Untraceable("it has batch normalisation in training mode")
    if not isinstance(mean, Tensor) or isinstance(a["weight"], Value):
        raise Unknown
    scale = (variance + a["eps"]).rsqrt()
    scale = scale if a["weight"] is None else scale * a["weight"]
    shift = -mean * scale
    shift = shift if a["bias"] is None else shift + a["bias"]
    return tracer.add(node, Affine(scale, shift), _map(a["input"]))


def _batch_norm_outputs(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> list[Value]:
    return [_batch_norm(tracer, node, a)]


def _max_pool(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    operation = MaxPool(_supports(a, a["kernel_size"]), a["ceil_mode"])
    return tracer.add(node, operation, _map(a["self"]))


def _average_pool(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """A sum, then one divisor, or a map of them where border windows count fewer positions."""
    x = _map(a["self"])
    _, height, width = tracer.shapes[x.name]
    ones = torch.ones(1, 1, height, width, dtype=torch.float64)
    shape = (a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"])
    mean = aten.avg_pool2d(ones, *shape, a["count_include_pad"], a["divisor_override"])
    inverse = mean / aten.avg_pool2d(ones, *shape, True, 1)
    supports = _supports(a, a["kernel_size"])
    if inverse.min() == inverse.max():
        factor = float(inverse.flatten()[0])
        return tracer.add(node, SumPool(supports, a["ceil_mode"], factor), x)
    name, total = f"{node.name}_divisors", f"{node.name}_sum"
    tracer.constants[name] = inverse
    tracer.shapes[name] = (1, *inverse.shape[2:])
    tracer.step(total, SumPool(supports, a["ceil_mode"]), x.name)
    tracer.shapes[total] = map_shape(node.meta["val"], NCHW)
    return tracer.add(node, Pointwise(torch.mul), Value(total), Value(name))


def _unary(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    (x, *others) = a.values()
    if not isinstance(x, Value) or not x.axes or any(isinstance(o, Value | Tensor) for o in others):
        raise Unknown
    if node.target is aten.relu.default:
        return tracer.add(node, Pointwise(torch.relu), x)
    names = list(a)[1:]
    function = partial(cast(Any, node.target), **dict(zip(names, others, strict=True)))
    return tracer.add(node, Pointwise(function), x)


def _binary(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x, y = a["self"], a["other"]
    function = _FUNCTIONS[node.target]
    if a.get("alpha", 1) != 1:
        function = partial(function, alpha=a["alpha"])
    if isinstance(x, Value) and isinstance(y, Value):
        return _of_maps(tracer, node, function, x, y)
    value, other = (x, y) if isinstance(x, Value) else (y, x)
    if not value.axes:
        raise Unknown
    swap = value is y
    ordered = (lambda v, c: function(c, v)) if swap else function
    if not isinstance(other, Tensor):
        return tracer.add(node, Pointwise(lambda v: ordered(v, other)), value)
    return _with_constant(tracer, node, ordered, value, other)


def _of_maps(
    tracer: Tracer, node: fx.Node, function: Callable[..., Tensor], x: Value, y: Value
) -> Value:
    """Two maps of the same positions; a map of one position meets whole maps."""
    if not x.axes or x.axes != y.axes:
        raise Unknown
    shapes = [tracer.shapes[v.name] for v in (x, y)]
    if shapes[0][1:] != shapes[1][1:]:
        if node.meta["val"].ndim != 4:
            raise Unknown
        operation = Pointwise(function)
        operation.mixes = True
        return tracer.add(node, operation, x, y)
    return tracer.add(node, Pointwise(function), x, y)


def _with_constant(
    tracer: Tracer, node: fx.Node, function: Callable[..., Tensor], x: Value, constant: Tensor
) -> Value:
    """A constant a channel stays in the operation; a constant map is a value of its own."""
    if len(x.axes) != 4 or constant.ndim > 4:
        raise Unknown
    full = constant.reshape((1,) * (4 - constant.ndim) + tuple(constant.shape))
    inverse = tuple(x.axes.index(i) for i in range(4))
    full = full.permute(inverse)
    if full.shape[0] != 1:
        raise Unknown
    if full.shape[2:] == (1, 1):
        return tracer.add(node, PerChannel(function, full[0]), x)
    if full.shape[2:] != tracer.shapes[x.name][1:]:
        raise Unknown
    name = f"{node.name}_constant"
    tracer.constants[name] = full
    tracer.shapes[name] = tuple(full.shape[1:])  # type: ignore[assignment]
    return tracer.add(node, Pointwise(function), x, Value(name, x.axes))


def _prelu(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """``max(x, 0) + w min(x, 0)`` with one slope, or one a channel."""
    x, weight = _map(a["self"]), a["weight"]
    if not isinstance(weight, Tensor):
        raise Unknown
    return tracer.add(node, PerChannel(_leaky, weight.reshape(-1, 1, 1)), x)


def _leaky(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def _cat(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    parts = a["tensors"]
    if not all(isinstance(p, Value) and p.axes == parts[0].axes for p in parts):
        raise Unknown
    axes = parts[0].axes
    if len(axes) != 4 or axes[a["dim"]] != 1:
        raise Unknown
    return tracer.add(node, Concat(), *parts)


def _layer_norm(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x = a["input"]
    weights = (a["weight"], a["bias"])
    if not isinstance(x, Value) or len(a["normalized_shape"]) != 1 or x.axes[-1:] != (1,):
        raise Unknown
    if len(x.axes) != 4 or any(isinstance(w, Value) for w in weights):
        raise Unknown
    return tracer.add(node, ChannelNorm(*weights, a["eps"]), x)


def _permute(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x = a["self"]
    if len(x.axes) != 4:
        raise Unknown
    axes = tuple(x.axes[i] for i in a["dims"])
    if axes[0] != 0:
        raise Unknown
    return Value(x.name, axes)


def _same(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """Copies and names of what is there."""
    x = next(iter(a.values()))
    if not isinstance(x, Value):
        raise Unknown
    return x


def _dropout(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["train"]:
        raise Untraceable("it has dropout in training mode")
    return _same(tracer, node, a)


def _select(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """One channel, its dimension gone (Inception's input transform)."""
    x = _map(a["self"])
    if a["dim"] != 1:
        raise Unknown
    channels = tracer.shapes[x.name][0]
    start = a["index"] % channels
    tracer.step(node.name, Channels(start, start + 1), x.name)
    tracer.shapes[node.name] = (1, *tracer.shapes[x.name][1:])
    return Value(node.name, (0, 2, 3))


def _unsqueeze(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """The channel dimension back."""
    x = a["self"]
    if x.axes != (0, 2, 3) or a["dim"] != 1:
        raise Unknown
    return Value(x.name)


def _slice(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x = _map(a["self"])
    if isinstance(a["start"], Value) or isinstance(a["end"], Value):
        raise Unknown
    channels = tracer.shapes[x.name][0]
    start, stop, _ = slice(a["start"], a["end"]).indices(channels)
    if a["dim"] == 0 and start == 0 and a["start"] in (None, 0) and (a["end"] or 0) > 2**40:
        return x
    if a["dim"] != 1 or a["step"] != 1:
        raise Unknown
    return tracer.add(node, Channels(start, stop), x)


def _split(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> list[Value]:
    x = _map(a["self"])
    if a["dim"] not in (1, -3):
        raise Unknown
    channels = tracer.shapes[x.name][0]
    sizes: Any = a.get("split_size", a.get("split_sizes"))
    if isinstance(sizes, int):
        sizes = [min(sizes, channels - i) for i in range(0, channels, sizes)]
    parts, start = [], 0
    for i, size in enumerate(sizes):
        name = f"{node.name}_{i}"
        tracer.step(name, Channels(start, start + size), x.name)
        tracer.shapes[name] = (size, *tracer.shapes[x.name][1:])
        parts.append(Value(name))
        start += size
    return parts


def _item(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Any:
    if not isinstance(a["0"], list):
        raise Unknown
    return a["0"][a["1"]]


def _size(tracer: Tracer, node: fx.Node, a: dict[str, Any]) -> Any:
    """The batch's size is a value, every other size is known."""
    x = a["self"]
    if not isinstance(x, Value) or a["dim"] != 0 or not x.axes:
        raise Unknown
    return Value(BATCH, ())


_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.maximum.default: torch.maximum,
    aten.minimum.default: torch.minimum,
    aten.rsub.Tensor: torch.rsub,
    aten.rsub.Scalar: torch.rsub,
}
_UNARY = (
    aten.relu,
    aten.hardtanh,
    aten.hardswish,
    aten.hardsigmoid,
    aten.sigmoid,
    aten.silu,
    aten.gelu,
    aten.tanh,
    aten.elu,
    aten.leaky_relu,
    aten.softplus,
    aten.mish,
    aten.clamp,
    aten.clamp_min,
    aten.clamp_max,
    aten.exp,
    aten.abs,
    aten.neg,
    aten.relu6,
    aten.sqrt,
    aten.rsqrt,
    aten.log,
    aten.square,
    aten.reciprocal,
    aten.sign,
)
READERS: dict[Any, Reader] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.convolution.default: _convolution,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_outputs,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.prelu.default: _prelu,
    aten.pow.Tensor_Scalar: _unary,
    aten.cat.default: _cat,
    aten.layer_norm.default: _layer_norm,
    aten.permute.default: _permute,
    aten.dropout.default: _dropout,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.contiguous.default: _same,
    aten.select.int: _select,
    aten.unsqueeze.default: _unsqueeze,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.sym_size.int: _size,
    operator.getitem: _item,
    **dict.fromkeys(_FUNCTIONS, _binary),
    **{packet.default: _unary for packet in _UNARY},
}
"""Every operation whose windows can be followed. Another one is exact too, on whole maps."""
