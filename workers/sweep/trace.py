"""A trunk's code -> a ``Program``, by ``torch.export``: any spelling, in-place or not.

Export runs the trunk once on fake tensors and yields a functional graph of a few ATen operations
with a free batch size. Each is read by one function below; an operation without a reader, or used
in a way its reader does not know, becomes ``Mixing``: exact, on whole maps.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from workers.sweep.intervals import Support
from workers.sweep.operations import (
    Affine,
    ChannelNorm,
    Channels,
    Concat,
    Convolution,
    MaxPool,
    Mixing,
    Operation,
    PerChannel,
    Pointwise,
    SumPool,
)
from workers.sweep.program import BATCH, INPUT, Program, Step, shortened

aten = torch.ops.aten
NCHW = (0, 1, 2, 3)


class Untraceable(Exception):  # noqa: N818 - a property of the trunk, not an error
    """The trunk cannot be turned into a program; the message says why."""


class _Unknown(Exception):  # noqa: N818 - caught here: the operation is taken as mixing
    """A reader meets a use it does not know."""


@dataclass(frozen=True)
class Value:
    """A step's result as the trunk sees it: dimension i is dimension ``axes[i]`` of the map
    ``(n, channel, y, x)``. Results that are no maps have no axes."""

    name: str
    axes: tuple[int, ...] = NCHW


def trace(trunk: nn.Module, pixels: Tensor) -> Program:
    """The program of ``trunk`` for inputs like ``pixels (n, 3, y, x)``, n > 1, of any n."""
    exported = _export(trunk, pixels)
    tracer = _Tracer(_given(exported))
    for node in exported.graph.nodes:
        tracer.read(node)
    program = shortened(tracer.program(exported.graph.output_node()))
    if not any(map(program.macs, program.steps)):
        raise Untraceable("it has no convolution that windows could save")
    return program


def _export(trunk: nn.Module, pixels: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                trunk, (pixels,), dynamic_shapes=({0: batch},), strict=False
            )
            return exported.run_decompositions({})
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        raise Untraceable(f"torch.export refuses it: {str(error).splitlines()[0]}") from error


def _given(exported: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Placeholder -> parameter, buffer or constant."""
    signature = exported.graph_signature
    held = {**exported.constants, **exported.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise Untraceable("it changes its own buffers or its input")
    return {placeholder: held[name].detach() for placeholder, name in names.items()}


@dataclass
class _Tracer:
    """Reads nodes in order; ``env`` maps a node's name to a Value, a Tensor (constant), a number,
    or a list of those."""

    given: dict[str, Tensor]
    env: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.env[node.name] = self._placeholder(node)
        elif node.op == "call_function":
            self.env[node.name] = self._call(node)
        elif node.op != "output":
            raise Untraceable(f"its graph holds a {node.op} node")

    def program(self, output: fx.Node) -> Program:
        (results,) = output.args
        if len(results) != 1:  # type: ignore[arg-type]
            raise Untraceable(f"it returns {len(results)} tensors")  # type: ignore[arg-type]
        value = self.env[results[0].name]  # type: ignore[index, union-attr]
        if not isinstance(value, Value) or value.axes != NCHW:
            raise Untraceable("its output is no map (n, channel, y, x)")
        return Program(tuple(self.steps), value.name, self.shapes, self.constants)

    def add(self, node: fx.Node, operation: Operation, *operands: Value) -> Value:
        """A step of one map, of the same axes as its first operand."""
        axes = operands[0].axes
        self.step(node.name, operation, *(v.name for v in operands))
        result = node.meta["val"]
        self.shapes[node.name] = _map_shape(
            result[0] if isinstance(result, tuple) else result, axes
        )
        return Value(node.name, axes)

    def step(self, name: str, operation: Operation, *operands: str) -> None:
        self.steps.append(Step(name, operation, operands))

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.given:
            return self.given[node.name]
        self.shapes[INPUT] = _map_shape(node.meta["val"], NCHW)
        return Value(INPUT)

    def _call(self, node: fx.Node) -> Any:
        args = self._arguments((node.args, node.kwargs))
        if not _values(args):
            return node.target(*args[0], **args[1])  # type: ignore[operator]
        try:
            reader = READERS.get(node.target)
            if reader is None:
                raise _Unknown
            return reader(self, node, _bound(node.target, *args))
        except _Unknown:
            return self._mixing(node, args)

    def _arguments(self, tree: Any) -> Any:
        """A nest of arguments with every node replaced by what it stands for."""
        if isinstance(tree, fx.Node):
            return self.env[tree.name]
        if isinstance(tree, (list, tuple)):
            return tuple(self._arguments(item) for item in tree)
        if isinstance(tree, dict):
            return {key: self._arguments(item) for key, item in tree.items()}
        return tree

    def _mixing(self, node: fx.Node, args: Any) -> Any:
        """The call as it stands. Sizes and constants stay, values become operands."""
        values = list(dict.fromkeys(_values(args)))
        places = {value: i for i, value in enumerate(values)}
        plain = node.target in _WANT_CONTIGUOUS

        def call(*operands: Any) -> Any:
            own = [_own_layout(x, v.axes, plain) for x, v in zip(operands, values, strict=True)]
            filled = _replaced(args, lambda value: own[places[value]])
            return _as_map(node.target(*filled[0], **filled[1]), axes)  # type: ignore[operator]

        result = node.meta.get("val")
        axes = NCHW if isinstance(result, Tensor) and result.ndim == 4 else ()
        self.step(node.name, Mixing(call), *(v.name for v in values))
        if axes:
            self.shapes[node.name] = _map_shape(result, axes)
        return Value(node.name, axes)


# --- arguments -----------------------------------------------------------------------------------


def _replaced(tree: Any, change: Callable[[Value], Any]) -> Any:
    """The same nest of tuples, lists and dicts with every Value changed."""
    if isinstance(tree, Value):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_replaced(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: _replaced(item, change) for key, item in tree.items()}
    return tree


def _values(tree: Any) -> list[Value]:
    found: list[Value] = []
    _replaced(tree, found.append)
    return found


def _bound(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the name the operation's schema gives them, defaults filled in."""
    if not hasattr(target, "_schema"):
        return {str(i): value for i, value in enumerate(args)}
    named = {}
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            named[argument.name] = args[i]
        else:
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named


def _map_shape(like: Any, axes: tuple[int, ...]) -> tuple[int, int, int]:
    if like is None or len(like.shape) != len(axes):
        raise _Unknown
    sizes = dict(zip(axes, like.shape, strict=True))
    return tuple(int(sizes[i]) if i in sizes else 1 for i in (1, 2, 3))  # type: ignore[return-value]


def _own_layout(x: Any, axes: tuple[int, ...], contiguous: bool) -> Any:
    """A map as the trunk's own tensor."""
    if not isinstance(x, Tensor):
        return x
    if len(axes) == 3:
        x, axes = x[:, 0], tuple(i - (i > 1) for i in axes)
    if axes:
        x = x.permute(axes)
    return x.contiguous() if contiguous else x


def _as_map(x: Any, axes: tuple[int, ...]) -> Any:
    if axes and isinstance(x, Tensor):
        return x.contiguous(memory_format=torch.channels_last)
    return x


_WANT_CONTIGUOUS = {aten.view.default, aten._unsafe_view.default, aten.as_strided.default}


def _map(value: Any) -> Value:
    """A map in the usual order of dimensions."""
    if not isinstance(value, Value) or value.axes != NCHW:
        raise _Unknown
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


# --- readers: an ATen call -> steps ----------------------------------------------------------

Reader = Callable[[_Tracer, fx.Node, dict[str, Any]], Any]


def _convolution(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    weight, bias = a["weight"], a["bias"]
    if a.get("transposed") or not isinstance(weight, Tensor) or isinstance(bias, Value):
        raise _Unknown
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
        raise _Unknown
    return [total // 2 for total in around]


def _linear(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """Over the channels of each position: a 1x1 convolution."""
    x, weight = a["input"], a["weight"]
    if not isinstance(x, Value) or x.axes[-1:] != (1,) or not isinstance(weight, Tensor):
        raise _Unknown
    if isinstance(a["bias"], Value):
        raise _Unknown
    point = (Support(), Support())
    return tracer.add(node, Convolution(weight[:, :, None, None], a["bias"], point), x)


def _batch_norm(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> list[Value]:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or not isinstance(mean, Tensor) or isinstance(a["weight"], Value):
        raise _Unknown
    scale = (variance + a["eps"]).rsqrt()
    scale = scale if a["weight"] is None else scale * a["weight"]
    shift = -mean * scale
    shift = shift if a["bias"] is None else shift + a["bias"]
    return [tracer.add(node, Affine(scale, shift), _map(a["input"]))]


def _max_pool(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    operation = MaxPool(_supports(a, a["kernel_size"]), a["ceil_mode"])
    return tracer.add(node, operation, _map(a["self"]))


def _average_pool(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
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
    tracer.shapes[total] = _map_shape(node.meta["val"], NCHW)
    return tracer.add(node, Pointwise(torch.mul), Value(total), Value(name))


def _unary(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    (x, *others) = a.values()
    if not isinstance(x, Value) or not x.axes or any(isinstance(o, Value | Tensor) for o in others):
        raise _Unknown
    if node.target is aten.relu.default:
        return tracer.add(node, Pointwise(torch.relu), x)
    names = list(a)[1:]
    function = partial(cast(Any, node.target), **dict(zip(names, others, strict=True)))
    return tracer.add(node, Pointwise(function), x)


def _binary(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x, y = a["self"], a["other"]
    function = _FUNCTIONS[node.target]
    if a.get("alpha", 1) != 1:
        function = partial(function, alpha=a["alpha"])
    if isinstance(x, Value) and isinstance(y, Value):
        return _of_maps(tracer, node, function, x, y)
    value, other = (x, y) if isinstance(x, Value) else (y, x)
    if not value.axes:
        raise _Unknown
    swap = value is y
    ordered = (lambda v, c: function(c, v)) if swap else function
    if not isinstance(other, Tensor):
        return tracer.add(node, Pointwise(lambda v: ordered(v, other)), value)
    return _with_constant(tracer, node, ordered, value, other)


def _of_maps(
    tracer: _Tracer, node: fx.Node, function: Callable[..., Tensor], x: Value, y: Value
) -> Value:
    """Two maps of the same positions; a map of one position meets whole maps."""
    if not x.axes or x.axes != y.axes:
        raise _Unknown
    shapes = [tracer.shapes[v.name] for v in (x, y)]
    if shapes[0][1:] != shapes[1][1:]:
        if node.meta["val"].ndim != 4:
            raise _Unknown
        operation = Pointwise(function)
        operation.mixes = True
        return tracer.add(node, operation, x, y)
    return tracer.add(node, Pointwise(function), x, y)


def _with_constant(
    tracer: _Tracer, node: fx.Node, function: Callable[..., Tensor], x: Value, constant: Tensor
) -> Value:
    """A constant a channel stays in the operation; a constant map is a value of its own."""
    if len(x.axes) != 4 or constant.ndim > 4:
        raise _Unknown
    full = constant.reshape((1,) * (4 - constant.ndim) + tuple(constant.shape))
    inverse = tuple(x.axes.index(i) for i in range(4))
    full = full.permute(inverse)
    if full.shape[0] != 1:
        raise _Unknown
    if full.shape[2:] == (1, 1):
        return tracer.add(node, PerChannel(function, full[0]), x)
    if full.shape[2:] != tracer.shapes[x.name][1:]:
        raise _Unknown
    name = f"{node.name}_constant"
    tracer.constants[name] = full
    tracer.shapes[name] = tuple(full.shape[1:])  # type: ignore[assignment]
    return tracer.add(node, Pointwise(function), x, Value(name, x.axes))


def _prelu(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """``max(x, 0) + w min(x, 0)`` with one slope, or one a channel."""
    x, weight = _map(a["self"]), a["weight"]
    if not isinstance(weight, Tensor):
        raise _Unknown
    return tracer.add(node, PerChannel(_leaky, weight.reshape(-1, 1, 1)), x)


def _leaky(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def _cat(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    parts = a["tensors"]
    if not all(isinstance(p, Value) and p.axes == parts[0].axes for p in parts):
        raise _Unknown
    axes = parts[0].axes
    if len(axes) != 4 or axes[a["dim"]] != 1:
        raise _Unknown
    return tracer.add(node, Concat(), *parts)


def _layer_norm(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x = a["input"]
    weights = (a["weight"], a["bias"])
    if not isinstance(x, Value) or len(a["normalized_shape"]) != 1 or x.axes[-1:] != (1,):
        raise _Unknown
    if len(x.axes) != 4 or any(isinstance(w, Value) for w in weights):
        raise _Unknown
    return tracer.add(node, ChannelNorm(*weights, a["eps"]), x)


def _permute(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x = a["self"]
    if len(x.axes) != 4:
        raise _Unknown
    axes = tuple(x.axes[i] for i in a["dims"])
    if axes[0] != 0:
        raise _Unknown
    return Value(x.name, axes)


def _same(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """Copies and names of what is there."""
    x = next(iter(a.values()))
    if not isinstance(x, Value):
        raise _Unknown
    return x


def _dropout(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["train"]:
        raise Untraceable("it has dropout in training mode")
    return _same(tracer, node, a)


def _select(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """One channel, its dimension gone (Inception's input transform)."""
    x = _map(a["self"])
    if a["dim"] != 1:
        raise _Unknown
    channels = tracer.shapes[x.name][0]
    start = a["index"] % channels
    tracer.step(node.name, Channels(start, start + 1), x.name)
    tracer.shapes[node.name] = (1, *tracer.shapes[x.name][1:])
    return Value(node.name, (0, 2, 3))


def _unsqueeze(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    """The channel dimension back."""
    x = a["self"]
    if x.axes != (0, 2, 3) or a["dim"] != 1:
        raise _Unknown
    return Value(x.name)


def _slice(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Value:
    x = _map(a["self"])
    if isinstance(a["start"], Value) or isinstance(a["end"], Value):
        raise _Unknown
    channels = tracer.shapes[x.name][0]
    start, stop, _ = slice(a["start"], a["end"]).indices(channels)
    if a["dim"] == 0 and start == 0 and a["start"] in (None, 0) and (a["end"] or 0) > 2**40:
        return x
    if a["dim"] != 1 or a["step"] != 1:
        raise _Unknown
    return tracer.add(node, Channels(start, stop), x)


def _split(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> list[Value]:
    x = _map(a["self"])
    if a["dim"] not in (1, -3):
        raise _Unknown
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


def _item(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Any:
    if not isinstance(a["0"], list):
        raise _Unknown
    return a["0"][a["1"]]


def _size(tracer: _Tracer, node: fx.Node, a: dict[str, Any]) -> Any:
    """The batch's size is a value, every other size is known."""
    x = a["self"]
    if not isinstance(x, Value) or a["dim"] != 0 or not x.axes:
        raise _Unknown
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
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
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
