"""A trunk's code becomes a program: every spelling, exact, in as few steps as it can be."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2, SwinTransformer

from tests import nets, random_nets, sweeps
from tests.reference import incremental as reference
from workers.sweep.operations import Convolution, MaxPool, SumPool
from workers.sweep.program import BATCH, INPUT, Program
from workers.sweep.readers import READERS
from workers.sweep.trace import Untraceable, trace
from workers.sweep.windows import grid_windows
from workers.sweep.writes import functional

SIDE = 32


class Spelled(nn.Module):
    """A convolution, and a function of it and of the image."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **options: object) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1, **options), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv, x)


class Checkpointed(nn.Module):
    """Saves memory in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.conv, x, use_reentrant=False)


class Clamp(torch.autograd.Function):
    """A ReLU with a gradient of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Tokens(nn.Module):
    """A patch embedding, a transformer layer over all positions, and the map again."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        tokens = self.layer(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Swin(nn.Module):
    """Two Swin blocks, one of them shifted, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        options = {"depths": [2], "num_heads": [2], "window_size": [3, 3]}
        self.features = SwinTransformer(patch_size=[4, 4], embed_dim=8, **options).features
        self.conv = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.features(x).permute(0, 3, 1, 2))


class Turned(nn.Module):
    """Channels last throughout, as ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 4, bias=False)
        self.norm, self.scale = nn.LayerNorm(6), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return F.gelu(self.linear(x)).permute(0, 3, 1, 2) * self.scale


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def shuffle() -> nn.Module:
    """torchvision's ShuffleNet v2 without its classifier."""
    network = ShuffleNetV2([2, 1, 1], [4, 8, 16, 24, 16])
    return nn.Sequential(*list(network.children())[:-1])


def written_while_read(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    before = y + 1
    y.relu_()
    return before * y


def written_under_another_name(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    z = y.relu_()
    y.add_(x[:, :1], alpha=3)
    return z * y


def written_after_a_view(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x).sigmoid_()
    part = y[:, :2]
    y.clamp_(min=0.5)
    return torch.cat([part, y], 1)


def written_through_dropout(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    torch.dropout(y, p=0.5, train=False).relu_()
    return y + 1


def written_through_a_layout(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    y.contiguous().relu_()
    return y + 1


ALONE = {
    "written": lambda conv, x: F.hardtanh_(conv(x).relu_().mul_(2).sub_(x[:, :1])),
    "written while read": written_while_read,
    "written under another name": written_under_another_name,
    "written through dropout": written_through_dropout,
    "written through a layout": written_through_a_layout,
}
SEEN = {
    "written after a view": written_after_a_view,
}
"""Writes into tensors that are seen under one name only, and into others."""
WINDOWED: dict[str, nn.Module] = {
    "turned": Turned(),
    "checkpoint": Checkpointed(),
    "own gradient": Spelled(lambda conv, x: Clamp.apply(conv(x))),
    "weight norm": nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 4)), nn.ReLU()),
    "spectral norm": nn.Sequential(nn.utils.parametrizations.spectral_norm(conv(3, 4)), nn.ReLU()),
    "same map twice": Spelled(lambda conv, x: (lambda y: y + y)(conv(x))),
    "numbers": Spelled(lambda conv, x: 1.5 * conv(x) / 3 - 2),
    "one channel": Spelled(lambda conv, x: conv(x) * x[:, 1:2] + x[:, -1].unsqueeze(1)),
    "split": Spelled(lambda conv, x: torch.cat(conv(x).split([1, 2, 1], -3)[::-1], -3)),
    "unused": Spelled(lambda conv, x: (conv(x).relu(), conv(x))[1]),
    "product of maps": Spelled(
        lambda conv, x: conv(x) * torch.arange(32.0 * 32).view(32, 32).to(x)
    ),
    "padding by name": nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)),
        nn.Conv2d(4, 4, 3, padding="valid"),
    ),
    "one slope": nn.Sequential(conv(3, 4), nn.PReLU()),
    "a slope a channel": nn.Sequential(conv(3, 4), nn.PReLU(4)),
    "weighted sum": Spelled(lambda conv, x: torch.add(conv(x), x[:, :1], alpha=0.5)),
    "less, twice": Spelled(lambda conv, x: torch.rsub(conv(x), 1.0, alpha=2)),
    "less a map": Spelled(lambda conv, x: torch.rsub(conv(x), x[:, :1], alpha=-3)),
    "power": Spelled(lambda conv, x: 1 - conv(x) ** 2),
    "root": Spelled(lambda conv, x: (conv(x).square() + 1).sqrt().log().reciprocal()),
    "minimum": Spelled(lambda conv, x: torch.minimum(conv(x), x[:, :1])),
    "frozen statistics": nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False)),
    "dropout": nn.Sequential(conv(3, 4), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()),
    **{name: Spelled(function) for name, function in {**ALONE, **SEEN}.items()},
}
"""Trunks all of whose steps are windows."""
WHOLE: dict[str, nn.Module] = {
    "view written": Spelled(lambda conv, x: (lambda y: (y[:, :2].relu_(), y)[1])(conv(x))),
    "tokens": Tokens(),
    "swin": Swin(),
    "shuffle": shuffle(),
    "group norm": nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), nn.ReLU(), conv(4, 4)),
    "instance norm": nn.Sequential(conv(3, 4), nn.InstanceNorm2d(4), nn.ReLU(), conv(4, 4)),
    "reflected": nn.Sequential(conv(3, 4, padding_mode="reflect"), conv(4, 4)),
    "transposed": nn.Sequential(conv(3, 4), nn.ConvTranspose2d(4, 4, 2, 2), conv(4, 4)),
    "upsampled": nn.Sequential(conv(3, 4), nn.Upsample(scale_factor=2), conv(4, 4)),
    "adaptive": nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(5), conv(4, 4)),
    "with indices": Spelled(lambda conv, x: F.max_pool2d(conv(x), 2, return_indices=True)[0]),
    "gathered": Spelled(lambda conv, x: conv(x)[:, [0, 2, 1, 3]]),
    "cropped": Spelled(lambda conv, x: conv(x)[:, :, 2:-2, 2:-2]),
    "rolled": Spelled(lambda conv, x: conv(x.roll(3, 2))),
    "row weights": Spelled(lambda conv, x: conv(x) + torch.linspace(0, 1, 32).to(x)),
    "part of the batch": Spelled(lambda conv, x: conv(x[: x.shape[0]])),
    "five dimensions": Spelled(lambda conv, x: (conv(x) + torch.ones(1, 1, 1, 1, 1).to(x))[0]),
    "mean": Spelled(lambda conv, x: conv(x) + conv(x).mean((2, 3))[:, :, None, None]),
    "attention": Spelled(
        lambda conv, x: F.scaled_dot_product_attention(*[conv(x).flatten(2)] * 3).unflatten(
            2, x.shape[2:]
        )
    ),
    "fourier": Spelled(lambda conv, x: torch.fft.ifft2(torch.fft.fft2(conv(x))).real),
    "rounded": Spelled(lambda conv, x: conv(x.float().to(x.dtype))),
}
"""Trunks that need whole maps somewhere, or do what is not understood there."""


def traced(trunk: nn.Module, side: int = SIDE) -> tuple[nn.Module, Program]:
    trunk = trunk.double().eval()
    for parameter in trunk.parameters():
        parameter.requires_grad_(False)
    program = trace(trunk, torch.zeros(2, 3, side, side, dtype=torch.float64))
    return trunk, program.to(torch.device("cpu"), torch.float64)


def mixing(program: Program) -> list[str]:
    return [step.value for step in program.steps if step.operation.mixes]


@pytest.mark.parametrize("name", [*WINDOWED, *WHOLE])
def test_any_spelling_gives_the_features_of_the_painted_image(name: str) -> None:
    torch.manual_seed(0)
    trunk, program = traced({**WINDOWED, **WHOLE}[name])
    assert bool(mixing(program)) == (name in WHOLE)
    windows = grid_windows(SIDE, SIDE, 4)
    image, fill = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    cells = list(range(16))
    found = sweeps.swept(program, sweeps.planned(program, windows, 2), windows, image, fill, cells)
    wanted = reference.features(trunk, image, fill, list(windows))
    assert sweeps.relative(found, wanted) < 1e-12
    assert sweeps.relative(trunk(image[None]).expand_as(wanted), wanted) > 1e-3


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", nets.TRUNKS)
def test_program_is_the_trunk_for_any_batch(name: str, batch: int) -> None:
    trunk, program = traced(nets.build(name).trunk_net, 24)
    pixels = torch.randn(batch, 3, 24, 24, dtype=torch.float64)
    before = pixels.clone()
    assert sweeps.relative(program(pixels), trunk(pixels)) < 1e-13
    assert torch.equal(pixels, before)


def test_program_keeps_what_it_is_asked_for_and_nothing_else() -> None:
    _, program = traced(nets.build("resnet").trunk_net, 24)
    pixels = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    assert set(program.run(pixels)) == {program.output}
    names = {INPUT, program.steps[1].value}
    kept = program.run(pixels, names)
    assert set(kept) == {*names, program.output}
    for name, value in kept.items():
        assert tuple(value.shape[1:]) == program.shapes[name]


def test_values_die_after_their_last_reader() -> None:
    _, program = traced(nets.build("dense").trunk_net, 24)
    dead = [name for names in program.last_uses for name in names]
    assert len(dead) == len(set(dead))
    read = {name for step in program.steps for name in step.operands}
    assert set(dead) == read - {program.output}
    for i, names in enumerate(program.last_uses):
        later = {name for step in program.steps[i + 1 :] for name in step.operands}
        assert not later & set(names)


def test_normalisation_sum_and_relu_become_part_of_the_convolution() -> None:
    """A bottleneck is four convolutions and no more steps, its shortcut's sum inside the last."""
    _, program = traced(nets.build("resnet").trunk_net, 24)
    kinds = [type(step.operation) for step in program.steps]
    assert kinds == [Convolution, MaxPool] + [Convolution] * 7
    relus = [getattr(step.operation, "relu", None) for step in program.steps]
    assert relus == [True, None, True, True, False, True, True, True, True]
    assert [len(step.operands) for step in program.steps].count(2) == 2


@pytest.mark.parametrize("name", [*ALONE, *SEEN])
def test_write_into_a_tensor_without_views_is_another_name(name: str) -> None:
    trunk = Spelled({**ALONE, **SEEN}[name]).requires_grad_(False)
    exported = torch.export.export(trunk, (torch.zeros(2, 3, SIDE, SIDE),), strict=False)
    assert functional(exported.graph, READERS) == (name in ALONE)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layer=random_nets.writes())
def test_writes_in_any_order_are_seen_by_all_who_read_later(layer: random_nets.Writes) -> None:
    torch.manual_seed(0)
    trunk, program = traced(nn.Sequential(conv(3, 4), layer), 8)
    pixels = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(program(pixels), trunk(pixels), rtol=1e-12, atol=1e-13)


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.conv(x)


def test_trunk_that_changes_itself_is_refused() -> None:
    with pytest.raises(Untraceable, match="it changes its own buffers or its input"):
        traced(Counting())


def test_normalisation_by_the_batch_is_refused() -> None:
    with pytest.raises(Untraceable, match="it has batch normalisation in training mode"):
        traced(Spelled(lambda conv, x: F.batch_norm(conv(x), None, None, training=True)))


class Watched(nn.Module):
    """What stands between a convolution and its normalisation, sum and ReLU has other readers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), conv(4, 4)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.norm1(a)
        c = b + a
        d = torch.relu(c)
        return torch.cat([a, b, c, d, self.norm2(self.second(d)) + x[:, :1]], 1)


def test_what_others_read_is_not_merged_away() -> None:
    torch.manual_seed(0)
    trunk = Watched()
    for norm in (trunk.norm1, trunk.norm2):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    trunk, program = traced(trunk)
    pixels = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    assert sweeps.relative(program(pixels), trunk(pixels)) < 1e-13
    assert len(program.steps) == 8
    assert sum(isinstance(step.operation, Convolution) for step in program.steps) == 2


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("divisor", [None, 3])
def test_average_pooling_is_a_sum_and_its_divisors(
    ceil: bool, include: bool, divisor: int | None
) -> None:
    pool = nn.AvgPool2d(3, 2, 1, ceil, include, divisor)
    trunk, program = traced(nn.Sequential(conv(3, 4), pool), 30)
    pixels = torch.randn(2, 3, 30, 30, dtype=torch.float64)
    assert sweeps.relative(program(pixels), trunk(pixels)) < 1e-13
    (pooling,) = (s.operation for s in program.steps if isinstance(s.operation, SumPool))
    equal = divisor is not None or (include and not ceil)
    assert (pooling.factor == 1, len(program.constants)) == ((False, 0) if equal else (True, 1))


def test_multiply_adds_are_those_of_the_convolutions() -> None:
    _, program = traced(nn.Sequential(conv(3, 6, stride=2), nn.ReLU(), conv(6, 4, groups=2)))
    assert [program.macs(step) for step in program.steps] == [16 * 16 * 6 * 27, 16 * 16 * 4 * 27]


def test_batch_size_is_a_value_where_the_trunk_asks_for_it() -> None:
    trunk = Spelled(lambda conv, x: conv(x).reshape(x.shape[0], 2, 2, 32, 32).flatten(1, 2))
    trunk, program = traced(trunk)
    assert any(BATCH in step.operands for step in program.steps)
    pixels = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    assert sweeps.relative(program(pixels), trunk(pixels)) < 1e-13


class Placed(nn.Module):
    """A 3x3 convolution wide enough for every kernel, and a learned map added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 64), conv(64, 64)
        self.positions = nn.Parameter(torch.randn(1, 64, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) + self.positions).relu()


def test_constant_map_is_added_to_every_image_of_a_batch() -> None:
    """A convolution's kernel adds a map an image; a constant is one for all."""
    torch.manual_seed(0)
    trunk = Placed().eval().requires_grad_(False)
    pixels = torch.randn(3, 3, 12, 12)
    program = trace(trunk, pixels)
    assert sweeps.relative(program(pixels), trunk(pixels)) < 1e-5


class Pair(nn.Module):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


def test_trunk_of_two_outputs_is_refused() -> None:
    with pytest.raises(Untraceable, match="it returns 2 tensors"):
        traced(Pair())


def test_trunk_whose_output_is_no_map_is_refused() -> None:
    with pytest.raises(Untraceable, match="its output is no map"):
        traced(nn.Sequential(conv(3, 4), nn.Flatten()))
