"""Small random networks, drawn layer by layer with hypothesis, of everything trunks are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Channels, height and width."""


class Residual(nn.Module):
    """``f(x) + x``, the sum and a ReLU possibly in place."""

    def __init__(self, body: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.body, self.in_place = body, in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.in_place:
            y = y + 0
            y += x
            return y.relu_()
        return x + y


class Branches(nn.Module):
    """Several paths from one map, joined along the channels or summed."""

    def __init__(self, paths: list[nn.Module], join: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.paths, self.join = nn.ModuleList(paths), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join([path(x) for path in self.paths])


class Gate(nn.Module):
    """Squeeze and excitation: a gate a channel, from the whole map's mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(F.adaptive_avg_pool2d(x, 1)).sigmoid()


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels, and a linear layer, with channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels + 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Slices(nn.Module):
    """Some channels twice, some swapped, one scaled by itself."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.at], x[:, self.at :]
        one = torch.unsqueeze(x[:, -1], 1) * 1.5 - 0.25
        return torch.cat([rest, first.relu(), x.chunk(2, 1)[0], one], 1)


class PerChannel(nn.Module):
    """``a * (x - b) / c`` with one of each a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.constants = nn.Parameter(0.5 + torch.rand(3, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.constants
        return a * (x - b) / c


class Positions(nn.Module):
    """A learned map is added, another one multiplies."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.randn(1, *shape))
        self.factor = nn.Parameter(0.5 + torch.rand(1, 1, *shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.added) * self.factor


class Overwritten(nn.Module):
    """Writes through a view into what another name still holds."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        alias, top = y, y[:, :1]
        F.relu_(y)
        top.mul_(0.5)
        return torch.maximum(alias, 0.25 * x) - y / 4


class Writes(nn.Module):
    """Tensors and other names of them, written to in a random order, all of them in the result.
    A step is what to do, with which tensor, and with which other one."""

    def __init__(self, steps: list[tuple[Callable[[Tensor, Tensor], Tensor], int, int]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        seen = [x * 1.0]
        for act, i, j in self.steps:
            seen.append(act(seen[i % len(seen)], seen[j % len(seen)].clone()))
        return sum(y * (i + 1) for i, y in enumerate(seen))


NAMES = (
    lambda x, y: x,
    lambda x, y: x[:],
    lambda x, y: x.detach(),
    lambda x, y: x.contiguous(),
    lambda x, y: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    lambda x, y: x.flatten(2).unflatten(2, x.shape[2:]),
    lambda x, y: x.to(x.dtype),
    lambda x, y: F.dropout(x, training=False),
    lambda x, y: F.dropout2d(x, training=False),
)
"""Another name of a tensor's memory."""
WRITES = (
    lambda x, y: x.relu_(),
    lambda x, y: x.mul_(0.5),
    lambda x, y: x.add_(y),
    lambda x, y: x.sub_(y, alpha=2),
    lambda x, y: x.copy_(y),
    lambda x, y: x.clamp_(min=-0.25),
    lambda x, y: F.silu(x, inplace=True),
    lambda x, y: F.relu6(x, inplace=True),
    lambda x, y: x[:, :1].sigmoid_() + x,
)


def writes() -> st.SearchStrategy[Writes]:
    """One or two other names and two to five writes."""
    number = st.integers(0, 9)

    def steps(acts: st.SearchStrategy, low: int, high: int) -> st.SearchStrategy:
        return st.lists(st.tuples(acts, number, number), min_size=low, max_size=high)

    named, written = steps(st.sampled_from(NAMES), 0, 2), steps(st.sampled_from(WRITES), 2, 5)
    both = st.tuples(named, written).flatmap(lambda pair: st.permutations(pair[0] + pair[1]))
    return both.map(Writes)


Draw = Callable[[st.SearchStrategy], int]


def _pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


def _convolution(draw: Draw, shape: Shape) -> nn.Module:
    dilation, kernel = _pair(draw, 1, 3), _pair(draw, 1, 7)
    kernel = tuple(
        k if d * (k - 1) < side else 1
        for k, d, side in zip(kernel, dilation, shape[1:], strict=True)
    )
    padding = tuple(
        draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)
    )
    groups = draw(st.sampled_from([g for g in range(1, 5) if shape[0] % g == 0]))
    channels = groups * draw(st.integers(1, 4))
    stride, bias = _pair(draw, 1, 3), draw(st.booleans())
    return nn.Conv2d(shape[0], channels, kernel, stride, padding, dilation, groups, bias)


def _max_pool(draw: Draw, shape: Shape) -> nn.Module:
    kernel, dilation = _kernel(draw, shape), draw(st.integers(1, 2))
    dilation = dilation if dilation * (max(kernel) - 1) < min(shape[1:]) else 1
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    ceil = draw(st.booleans())
    return nn.MaxPool2d(kernel, _pair(draw, 1, 3), padding, dilation, ceil_mode=ceil)


def _average_pool(draw: Draw, shape: Shape) -> nn.Module:
    kernel = _kernel(draw, shape)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    flags = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([None, 3]))
    return nn.AvgPool2d(kernel, _pair(draw, 1, 3), padding, *flags)


def _kernel(draw: Draw, shape: Shape) -> tuple[int, ...]:
    sizes = zip(_pair(draw, 1, 4), shape[1:], strict=True)
    return tuple(min(size, side) for size, side in sizes)


def _pointwise(draw: Draw, shape: Shape) -> nn.Module:
    makers = (
        lambda: nn.ReLU(inplace=draw(st.booleans())),
        lambda: nn.Sequential(nn.BatchNorm2d(shape[0]), nn.ReLU(inplace=draw(st.booleans()))),
        lambda: nn.BatchNorm2d(shape[0], affine=draw(st.booleans())),
        lambda: nn.Hardswish(inplace=draw(st.booleans())),
        lambda: nn.ReLU6(inplace=draw(st.booleans())),
        nn.SiLU,
        nn.Sigmoid,
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.Hardtanh(-0.5, 0.75),
        nn.Dropout,
        lambda: PerChannel(shape[0]),
        lambda: Positions(shape),
    )
    return draw(st.sampled_from(makers))()


def _residual(draw: Draw, shape: Shape) -> nn.Module:
    channels, kernel = shape[0], draw(st.sampled_from([1, 3, 5]))
    body = nn.Sequential(
        nn.Conv2d(channels, channels, kernel, 1, kernel // 2),
        nn.BatchNorm2d(channels) if draw(st.booleans()) else nn.Identity(),
    )
    return Residual(body, draw(st.booleans()))


def _branches(draw: Draw, shape: Shape) -> nn.Module:
    """Paths that end in the same places, by their stride and padding."""
    channels, stride = shape[0], draw(st.integers(1, 2))
    makers = (
        lambda: nn.Conv2d(channels, channels, 1, stride),
        lambda: nn.Conv2d(channels, channels, 3, stride, 1),
        lambda: nn.Conv2d(channels, channels, (5, 1), stride, (2, 0)),
        lambda: nn.Conv2d(channels, channels, 3, stride, 2, dilation=2, groups=channels),
        lambda: nn.MaxPool2d(3, stride, 1),
        lambda: nn.AvgPool2d(3, stride, 1, count_include_pad=draw(st.booleans())),
        lambda: nn.AvgPool2d(1, stride),
    )
    paths = draw(st.lists(st.sampled_from(makers), min_size=2, max_size=3))
    return Branches([make() for make in paths], draw(st.sampled_from([joined, summed])))


def joined(maps: list[Tensor]) -> Tensor:
    return torch.cat(maps, 1)


def summed(maps: list[Tensor]) -> Tensor:
    return sum(maps[1:], maps[0])


def _channels(draw: Draw, shape: Shape) -> nn.Module:
    if shape[0] > 1 and draw(st.booleans()):
        return Slices(draw(st.integers(1, shape[0] - 1)))
    return ChannelNorm(shape[0])


WINDOWED = (_convolution,) * 4 + (_max_pool, _average_pool, _branches, _residual, _channels)
WINDOWED += (_pointwise,) * 4
WHOLE = (lambda draw, shape: Gate(shape[0]), lambda draw, shape: Overwritten())
"""Layers that need whole maps, or are not understood."""


@dataclass(frozen=True)
class Net:
    """A float64 trunk and the size of its image."""

    trunk: nn.Module
    height: int
    width: int


@st.composite
def nets(draw: Draw, whole: bool = False) -> Net:
    """Networks of a normalisation, a convolution and one to seven layers of any kind; ``whole``
    allows those that need whole maps."""
    torch.manual_seed(draw(st.integers(0, 9999)))
    height, width = _pair(draw, 9, 40)
    x = torch.randn(1, 3, height, width)
    layers: list[nn.Module] = [PerChannel(3)]
    makers = st.sampled_from((*WINDOWED, *(WHOLE if whole else ())))
    kinds = draw(st.lists(makers, min_size=1, max_size=7))
    kinds.insert(draw(st.integers(0, len(kinds))), _convolution)
    for make in kinds:
        layers.append(_randomised(make(draw, tuple(x.shape[1:]))))
        with torch.no_grad():
            x = layers[-1](x.clone())
    return Net(nn.Sequential(*layers).double().eval().requires_grad_(False), height, width)


@torch.no_grad()
def _randomised(layer: nn.Module) -> nn.Module:
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return layer.eval()
