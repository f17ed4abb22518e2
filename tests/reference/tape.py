"""Reverse-mode differentiation by hand: each operation states its own backward rule in numpy.

It knows nothing of PyTorch's autograd, so that methods that use autograd can be held against it.
Values are float64; images are ``(channel, y, x)``, without a batch axis.
"""

from collections.abc import Callable
from itertools import product
from typing import Literal

import numpy as np

Rule = Literal["saliency", "guided", "deconvnet"]


class Node:
    """A value, the nodes it was made from, and how a gradient goes back to each of them."""

    def __init__(self, value: np.ndarray, *parents: tuple["Node", Callable]) -> None:
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = parents


def gradient(output: Node, seed: np.ndarray, wanted: Node) -> np.ndarray:
    """The gradient at ``wanted`` when ``seed`` arrives at ``output``."""
    arrived = {output: np.asarray(seed, dtype=np.float64)}
    for node in reversed(_ordered(output)):
        for parent, backward in node.parents:
            if node in arrived:
                arrived[parent] = arrived.get(parent, 0) + backward(arrived[node])
    return arrived.get(wanted, np.zeros_like(wanted.value))


def _ordered(output: Node) -> list[Node]:
    """Every node below ``output``, parents first."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in order:
            for parent, _ in node.parents:
                visit(parent)
            order[node] = None

    visit(output)
    return list(order)


def relu(x: Node, rule: Rule) -> Node:
    """Springenberg et al. 2015, figure 1c, line by line."""

    def backward(g: np.ndarray) -> np.ndarray:
        if rule == "saliency":
            return (x.value > 0) * g
        if rule == "deconvnet":
            return (g > 0) * g
        return (x.value > 0) * (g > 0) * g

    return Node(np.maximum(x.value, 0), (x, backward))


def minimum(x: Node, ceiling: float) -> Node:
    return Node(np.minimum(x.value, ceiling), (x, lambda g: (x.value <= ceiling) * g))


def add(a: Node, b: Node) -> Node:
    return Node(a.value + b.value, (a, lambda g: g), (b, lambda g: g))


def multiply(a: Node, b: Node) -> Node:
    return Node(a.value * b.value, (a, lambda g: g * b.value), (b, lambda g: g * a.value))


def scale(x: Node, factor: float) -> Node:
    return Node(x.value * factor, (x, lambda g: g * factor))


def tanh(x: Node) -> Node:
    y = np.tanh(x.value)
    return Node(y, (x, lambda g: g * (1 - y**2)))


def sigmoid(x: Node) -> Node:
    y = 1 / (1 + np.exp(-x.value))
    return Node(y, (x, lambda g: g * y * (1 - y)))


def matmul(a: Node, b: Node) -> Node:
    return Node(
        a.value @ b.value,
        (a, lambda g: g @ np.moveaxis(b.value, -1, -2)),
        (b, lambda g: np.moveaxis(a.value, -1, -2) @ g),
    )


def linear(x: Node, weight: np.ndarray, bias: np.ndarray) -> Node:
    return Node(weight @ x.value + bias, (x, lambda g: weight.T @ g))


def reshape(x: Node, *shape: int) -> Node:
    return Node(x.value.reshape(shape), (x, lambda g: g.reshape(x.value.shape)))


def transpose(x: Node) -> Node:
    return Node(x.value.T, (x, lambda g: g.T))


def mean_over_places(x: Node) -> Node:
    places = x.value.shape[1] * x.value.shape[2]
    spread = np.ones_like(x.value) / places
    return Node(x.value.mean((1, 2)), (x, lambda g: spread * g[:, None, None]))


def at_every_place(x: Node, height: int, width: int) -> Node:
    tiled = np.tile(x.value[:, None, None], (1, height, width))
    return Node(tiled, (x, lambda g: g.sum((1, 2))))


def softmax(x: Node) -> Node:
    """Over the last axis."""
    e = np.exp(x.value - x.value.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return Node(y, (x, lambda g: y * (g - (g * y).sum(-1, keepdims=True))))


def take(x: Node, part: slice) -> Node:
    """A part of the first axis."""

    def backward(g: np.ndarray) -> np.ndarray:
        full = np.zeros_like(x.value)
        full[part] = g
        return full

    return Node(x.value[part], (x, backward))


def concatenate(*parts: Node) -> Node:
    """Along the first axis."""
    ends = np.cumsum([len(part.value) for part in parts])
    parents = [
        (part, lambda g, stop=stop, part=part: g[stop - len(part.value) : stop])
        for part, stop in zip(parts, ends, strict=True)
    ]
    return Node(np.concatenate([part.value for part in parts]), *parents)


def affine(x: Node, factor: np.ndarray, offset: np.ndarray) -> Node:
    """A batch normalisation at inference: one factor and one offset a channel."""
    factor = factor[:, None, None]
    return Node(x.value * factor + offset[:, None, None], (x, lambda g: g * factor))


def convolve(x: Node, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> Node:
    """``weight (output, input, y, x)``: a sum over kernel positions, and its transpose."""
    padded = np.pad(x.value, ((0, 0), (padding, padding), (padding, padding)))
    kernel = weight.shape[2:]
    height, width = ((n - k) // stride + 1 for n, k in zip(padded.shape[1:], kernel, strict=True))
    spots = [
        (weight[:, :, i, j], _every(i, height, stride), _every(j, width, stride))
        for i, j in product(*map(range, kernel))
    ]
    output = sum(np.einsum("oc,cyx->oyx", w, padded[:, ys, xs]) for w, ys, xs in spots)

    def backward(g: np.ndarray) -> np.ndarray:
        full = np.zeros_like(padded)
        for w, ys, xs in spots:
            full[:, ys, xs] += np.einsum("oc,oyx->cyx", w, g)
        return _unpad(full, padding)

    return Node(output + bias[:, None, None], (x, backward))


def max_pool(x: Node, size: int, stride: int, padding: int) -> Node:
    """The gradient goes to the first of a window's largest values, in row-major order."""
    sides = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x.value, sides, constant_values=-np.inf)
    channels = len(padded)
    height, width = ((n - size) // stride + 1 for n in padded.shape[1:])
    chosen = np.zeros((channels, height, width, 2), dtype=int)
    for c, i, j in product(range(channels), range(height), range(width)):
        window = padded[c, i * stride : i * stride + size, j * stride : j * stride + size]
        offset = np.unravel_index(window.argmax(), window.shape)
        chosen[c, i, j] = np.add((i * stride, j * stride), offset)
    channel = np.arange(channels)[:, None, None]
    places = (channel, chosen[..., 0], chosen[..., 1])

    def backward(g: np.ndarray) -> np.ndarray:
        full = np.zeros_like(padded)
        np.add.at(full, places, g)
        return _unpad(full, padding)

    return Node(padded[places], (x, backward))


def average_pool(x: Node, size: int) -> Node:
    """Windows that do not overlap; a remainder at the border is dropped."""
    channels, height, width = x.value.shape
    rows, columns = height // size, width // size
    inner = x.value[:, : rows * size, : columns * size]
    pooled = inner.reshape(channels, rows, size, columns, size).mean((2, 4))

    def backward(g: np.ndarray) -> np.ndarray:
        full = np.zeros_like(x.value)
        spread = np.repeat(np.repeat(g, size, 1), size, 2) / size**2
        full[:, : rows * size, : columns * size] = spread
        return full

    return Node(pooled, (x, backward))


def _every(start: int, count: int, stride: int) -> slice:
    return slice(start, start + count * stride, stride)


def _unpad(full: np.ndarray, padding: int) -> np.ndarray:
    return full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]
