"""Reads an exported graph node by node into the steps of a ``Program``.

A value is a map of which the trunk may see its dimensions in another order. A node without a
reader, or used in a way its reader does not know, becomes ``Mixing``: exact, on whole maps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from workers.sweep.operations import Mixing, Operation
from workers.sweep.program import INPUT, Program, Step

aten = torch.ops.aten
NCHW = (0, 1, 2, 3)


class Untraceable(Exception):  # noqa: N818 - a property of the trunk, not an error
    """The trunk cannot be turned into a program; the message says why."""


class Unknown(Exception):  # noqa: N818 - caught by the tracer: the operation is taken as mixing
    """A reader meets a use it does not know."""


@dataclass(frozen=True)
class Value:
    """A step's result as the trunk sees it: dimension i is dimension ``axes[i]`` of the map
    ``(n, channel, y, x)``. Results that are no maps have no axes."""

    name: str
    axes: tuple[int, ...] = NCHW


@dataclass
class Tracer:
    """Reads nodes in order, each by its reader; ``env`` maps a node's name to a Value, a Tensor
    (constant), a number, or a list of those."""

    given: dict[str, Tensor]
    readers: "Mapping[Any, Reader]"
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
        self.shapes[node.name] = map_shape(result[0] if isinstance(result, tuple) else result, axes)
        return Value(node.name, axes)

    def step(self, name: str, operation: Operation, *operands: str) -> None:
        self.steps.append(Step(name, operation, operands))

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.given:
            return self.given[node.name]
        self.shapes[INPUT] = map_shape(node.meta["val"], NCHW)
        return Value(INPUT)

    def _call(self, node: fx.Node) -> Any:
        args = self._arguments((node.args, node.kwargs))
        if not _values(args):
            return node.target(*args[0], **args[1])  # type: ignore[operator]
        try:
            reader = self.readers.get(node.target)
            if reader is None:
                raise Unknown
            return reader(self, node, bound(node.target, *args))
        except Unknown:
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
            self.shapes[node.name] = map_shape(result, axes)
        return Value(node.name, axes)


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


def bound(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
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


def map_shape(like: Any, axes: tuple[int, ...]) -> tuple[int, int, int]:
    if like is None or len(like.shape) != len(axes):
        raise Unknown
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


Reader = Callable[[Tracer, fx.Node, dict[str, Any]], Any]
"""A node and its arguments by name -> the value or values it stands for, their steps added."""
