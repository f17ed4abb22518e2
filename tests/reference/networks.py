"""The nets of ``tests/nets.py`` written again, operation by operation, on the hand-made tape."""

from collections.abc import Sequence
from functools import partial, singledispatch

import numpy as np
from torch import Tensor, nn
from torchvision.models.densenet import _DenseLayer, _Transition
from torchvision.models.resnet import Bottleneck

from tests import nets
from tests.reference import tape
from tests.reference.tape import Node, Rule


def values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


@singledispatch
def trunk(net: nn.Module, x: Node, rule: Rule) -> Node:
    raise TypeError(f"no replica of {type(net).__name__}")


@trunk.register
def _(net: nn.Sequential, x: Node, rule: Rule) -> Node:
    for layer in net:
        x = trunk(layer, x, rule)
    return x


@trunk.register
def _(net: nn.Conv2d, x: Node, rule: Rule) -> Node:
    bias = np.zeros(net.out_channels) if net.bias is None else values(net.bias)
    return tape.convolve(x, values(net.weight), bias, net.stride[0], net.padding[0])


@trunk.register
def _(net: nn.BatchNorm2d, x: Node, rule: Rule) -> Node:
    factor = values(net.weight) / np.sqrt(values(net.running_var) + net.eps)
    return tape.affine(x, factor, values(net.bias) - values(net.running_mean) * factor)


@trunk.register
def _(net: nn.ReLU, x: Node, rule: Rule) -> Node:
    return tape.relu(x, rule)


@trunk.register
def _(net: nn.MaxPool2d, x: Node, rule: Rule) -> Node:
    return tape.max_pool(x, net.kernel_size, net.stride, net.padding)


@trunk.register
def _(net: nn.AvgPool2d, x: Node, rule: Rule) -> Node:
    return tape.average_pool(x, net.kernel_size)


@trunk.register
def _(net: nets.InPlace, x: Node, rule: Rule) -> Node:
    x = tape.relu(trunk(net.conv1, x, rule), rule)
    return tape.relu(tape.add(trunk(net.bn, trunk(net.conv2, x, rule), rule), x), rule)


@trunk.register(nets.Functional)
@trunk.register(nets.Reused)
def _(net: nets.Functional | nets.Reused, x: Node, rule: Rule) -> Node:
    for layer in net.convs:
        x = tape.relu(trunk(layer, x, rule), rule)
    return x


@trunk.register
def _(net: nets.Parallel, x: Node, rule: Rule) -> Node:
    x = tape.relu(trunk(net.convs[0], x, rule), rule)
    a, b, c = (tape.relu(trunk(layer, x, rule), rule) for layer in net.convs[1:])
    return tape.concatenate(tape.add(a, b), c)


@trunk.register
def _(net: nets.PreActivation, x: Node, rule: Rule) -> Node:
    x = trunk(net.bn, trunk(net.conv1, x, rule), rule)
    x = tape.add(x, trunk(net.conv2, tape.relu(x, rule), rule))
    return tape.add(x, trunk(net.conv3, tape.relu(x, rule), rule))


@trunk.register
def _(net: nets.Aliased, x: Node, rule: Rule) -> Node:
    x = tape.relu(trunk(net.conv1, x, rule), rule)
    y = tape.add(trunk(net.conv2, x, rule), x)
    y = tape.concatenate(
        tape.take(y, slice(0, 3)), tape.add(tape.take(y, slice(3, 6)), tape.take(x, slice(0, 3)))
    )
    y = tape.concatenate(tape.relu(tape.take(y, slice(0, 2)), rule), tape.take(y, slice(2, 6)))
    y = tape.relu(trunk(net.conv3, tape.relu(y, rule), rule), rule)
    return tape.add(y, x)


@trunk.register
def _(net: nets.Clipped, x: Node, rule: Rule) -> Node:
    steps = zip(net.convs, (1, 40, 10, 1), (0.5, 6, 5, np.inf), strict=True)
    for layer, factor, ceiling in steps:
        x = tape.scale(trunk(layer, x, rule), factor)
        x = tape.minimum(tape.relu(x, rule), ceiling)
    return x


@trunk.register
def _(net: Bottleneck, x: Node, rule: Rule) -> Node:
    y = tape.relu(trunk(net.bn1, trunk(net.conv1, x, rule), rule), rule)
    y = tape.relu(trunk(net.bn2, trunk(net.conv2, y, rule), rule), rule)
    y = trunk(net.bn3, trunk(net.conv3, y, rule), rule)
    skip = x if net.downsample is None else trunk(net.downsample, x, rule)
    return tape.relu(tape.add(y, skip), rule)


@trunk.register
def _(net: nets.Dense, x: Node, rule: Rule) -> Node:
    for name, layer in net.features.named_children():
        x = dense_block(layer, x, rule) if "denseblock" in name else trunk(layer, x, rule)
    return tape.relu(x, rule)


@trunk.register
def _(net: _Transition, x: Node, rule: Rule) -> Node:
    x = tape.relu(trunk(net.norm, x, rule), rule)
    return trunk(net.pool, trunk(net.conv, x, rule), rule)


def dense_block(layers: nn.ModuleDict, x: Node, rule: Rule) -> Node:
    for layer in layers.values():
        x = tape.concatenate(x, dense_layer(layer, x, rule))
    return x


def dense_layer(layer: _DenseLayer, x: Node, rule: Rule) -> Node:
    y = trunk(layer.conv1, tape.relu(trunk(layer.norm1, x, rule), rule), rule)
    return trunk(layer.conv2, tape.relu(trunk(layer.norm2, y, rule), rule), rule)


def linear(layer: nn.Linear, x: Node) -> Node:
    return tape.linear(x, values(layer.weight), values(layer.bias))


def head(net: nn.Module, features: Node, state: Node, rule: Rule) -> Node:
    """Logits."""
    replica = attention_head if isinstance(net, nets.AttentionHead) else pooled_head
    return replica(net, features, state, rule)


def attention_head(net: nets.AttentionHead, features: Node, state: Node, rule: Rule) -> Node:
    channels, height, width = features.value.shape
    question = tape.at_every_place(linear(net.question, state), height, width)
    fused = tape.relu(tape.add(trunk(net.image, features, rule), question), rule)
    logits = tape.reshape(trunk(net.glimpses, fused, rule), 2, height * width)
    cells = tape.transpose(tape.reshape(features, channels, height * width))
    seen = tape.reshape(tape.matmul(tape.softmax(logits), cells), 2 * channels)
    hidden = tape.relu(linear(net.hidden, tape.concatenate(seen, state)), rule)
    return linear(net.answer, hidden)


def pooled_head(net: nets.PooledHead, features: Node, state: Node, rule: Rule) -> Node:
    pooled = tape.mean_over_places(tape.scale(features, 0.5))
    fused = tape.multiply(pooled, tape.relu(linear(net.question, state), rule))
    return linear(net.answer, tape.relu(linear(net.hidden, fused), rule))


def encode(model: nets.TinyVQA, embeddings: Sequence[Node]) -> Node:
    """An LSTM (Hochreiter and Schmidhuber 1997, with a forget gate) over tanh embeddings."""
    size = model.lstm.hidden_size
    gates = partial(lstm_gates, model.lstm)
    hidden, cell = Node(np.zeros(size)), Node(np.zeros(size))
    for embedding in embeddings:
        i, f, g, o = gates(tape.tanh(embedding), hidden)
        kept = tape.multiply(tape.sigmoid(f), cell)
        cell = tape.add(kept, tape.multiply(tape.sigmoid(i), tape.tanh(g)))
        hidden = tape.multiply(tape.sigmoid(o), tape.tanh(cell))
    return hidden


def lstm_gates(lstm: nn.LSTM, x: Node, hidden: Node) -> list[Node]:
    """Before their non-linearities: input, forget, candidate and output, PyTorch's order."""
    stacked = tape.add(
        tape.linear(x, values(lstm.weight_ih_l0), values(lstm.bias_ih_l0)),
        tape.linear(hidden, values(lstm.weight_hh_l0), values(lstm.bias_hh_l0)),
    )
    size = lstm.hidden_size
    return [tape.take(stacked, slice(i * size, (i + 1) * size)) for i in range(4)]
