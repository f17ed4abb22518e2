"""Winograd convolutions against PyTorch's in float64."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.sweep import winograd as module
from workers.sweep.convolve import Supports, eager
from workers.sweep.intervals import Support
from workers.sweep.operations import Convolution
from workers.sweep.tiles import SIDES, TRANSFORMS, cook_toom, points_of, tiling
from workers.sweep.vectors import LANES, PANEL, STRIP
from workers.sweep.winograd import suits, winograd

C_IN, C_OUT = LANES, PANEL * LANES
TOLERANCE = 1e-5
"""Of the largest output before the ReLU."""


def convolution(
    c_in: int = C_IN,
    c_out: int = C_OUT,
    padding: tuple[int, int] = (0, 0),
    relu: bool = False,
    seed: int = 0,
) -> Convolution:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(c_out, c_in, 3, 3, generator=draw) * (2 / 9 / c_in) ** 0.5
    supports = (Support(3, 1, padding[0]), Support(3, 1, padding[1]))
    return Convolution(weight, torch.randn(c_out, generator=draw), supports, relu=relu)


def images(*shape: int, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw).to(memory_format=torch.channels_last)


def before_relu(conv: Convolution, x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """In float64."""
    bias = None if conv.bias is None else conv.bias.double()
    padding = (at[0].padding, at[1].padding)
    y = F.conv2d(x.double(), conv.weight.double(), bias, padding=padding)
    return y if other is None else y + other.double()


def error(conv: Convolution, y: Tensor, x: Tensor, other: Tensor | None = None) -> float:
    """The largest, in parts of the largest output before the ReLU."""
    exact = before_relu(conv, x, other, conv.supports)
    scale = exact.abs().max()
    return float((y - (exact.relu() if conv.relu else exact)).abs().max() / scale)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 15), st.integers(1, 15)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 2**31),
)
def test_equals_the_convolution(
    count: int,
    size: tuple[int, int],
    padding: tuple[int, int],
    channels: tuple[int, int],
    options: tuple[bool, bool, bool],
    seed: int,
) -> None:
    biased, added, relu = options
    height, width = (max(1, n + 2 - 2 * p) for n, p in zip(size, padding, strict=True))
    conv = convolution(channels[0] * C_IN, channels[1] * C_OUT, padding, relu, seed)
    conv = conv if biased else replace(conv, bias=None)
    x = images(count, channels[0] * C_IN, height, width, seed=seed + 1)
    shape = before_relu(conv, x, None, conv.supports).shape
    other = images(*shape, seed=seed + 2) if added else None
    y = winograd(conv, x, other, conv.supports)
    assert y.shape == shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(conv, y, x, other) < TOLERANCE


SIZES = [(1, 1), (1, 9), (2, 13), (4, 4), (6, 6), (7, 11), (8, 14), (10, 17), (28, 29), (56, 57)]


@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_every_output_once(size: tuple[int, int]) -> None:
    covered = np.zeros([length + 3 for length in size], int)
    for part in tiling(size):
        height, width = np.multiply(part.tile, part.number)
        covered[part.corner[0] :, part.corner[1] :][:height, :width] += 1
    assert (covered[: size[0], : size[1]] == 1).all()
    assert covered.max() == 1


@pytest.mark.parametrize(("length", "points"), [(4, 6), (6, 10), (13, 21), (14, 22), (28, 42)])
def test_sides_are_covered_in_as_few_points_as_can_be(length: int, points: int) -> None:
    """Every combination of tiles, by hand."""
    parts = tiling((length, length))
    multiplied = sum(np.prod(p.number) * np.prod([m + 2 for m in p.tile]) for p in parts)
    assert multiplied == points**2


@pytest.mark.parametrize("m", SIDES)
def test_transforms_correlate(m: int) -> None:
    """``A^T [(G g) * (B^T d)]`` is ``sum_k g_k d_(i + k)``."""
    outputs, kernel, inputs = TRANSFORMS[m]
    g, d = np.random.default_rng(m).integers(-9, 10, 3), np.arange(m + 2) ** 2
    np.testing.assert_allclose(
        outputs @ ((kernel @ g) * (inputs @ d)), np.correlate(d, g), atol=1e-11
    )
    rounded = [matrix.astype(np.float32) for matrix in (outputs, inputs)]
    assert all((a == b).all() for a, b in zip(rounded, (outputs, inputs), strict=True))


def test_smaller_tiles_use_some_of_the_same_weights() -> None:
    large = TRANSFORMS[4].kernel
    np.testing.assert_array_equal(TRANSFORMS[3].kernel, large[points_of(3)])


def test_smallest_transforms_are_those_of_the_paper() -> None:
    """Lavin and Gray 2016, equation 7, up to the signs of rows of B^T and G."""
    outputs, kernel, inputs = cook_toom((0.0, 1.0, -1.0))
    expected = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    signs = np.diag([-1, 1, 1, -1])
    np.testing.assert_array_equal(signs @ inputs, expected)
    np.testing.assert_array_equal(outputs, [[1, 1, 1, 0], [0, 1, -1, 1]])
    np.testing.assert_array_equal(
        np.diag([-1, 1, 1, 1]) @ kernel, [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    )


def test_many_blocks_and_no_neighbours() -> None:
    """More tiles than a block holds; an image alone gives the same bits."""
    conv = convolution(padding=(1, 1), relu=True)
    parts = tiling((29, 30))
    assert len(parts) == 4
    count = 2 * module.BLOCK * STRIP // max(int(np.prod(p.number)) for p in parts) + 1
    x = images(count, C_IN, 29, 30)
    y = winograd(conv, x, None, conv.supports)
    assert error(conv, y, x) < TOLERANCE
    for i in (0, count // 2, count - 1):
        assert torch.equal(winograd(conv, x[i : i + 1], None, conv.supports), y[i : i + 1])


def test_operands_keep_their_values_and_layouts_do_not_matter() -> None:
    conv = convolution(padding=(1, 0), relu=True)
    x, other = images(2, C_IN, 9, 10), images(2, C_OUT, 9, 8)
    operands = (x, other, conv.weight, conv.bias)
    copies = [operand.clone() for operand in operands]
    y = winograd(conv, x, other, conv.supports)
    assert all(torch.equal(a, b) for a, b in zip(operands, copies, strict=True))
    turned = images(2, C_IN, 10, 9).copy_(x.mT).mT
    planes = other.clone(memory_format=torch.contiguous_format)
    assert torch.equal(winograd(conv, turned, planes, conv.supports), y)
    every = images(2, 2 * C_IN, 9, 10)
    every[:, C_IN:] = x
    assert torch.equal(winograd(conv, every[:, C_IN:], other, conv.supports), y)


def test_nan_passes_the_relu_and_stays_in_its_tiles() -> None:
    conv = convolution(padding=(1, 1), relu=True)
    x = images(2, C_IN, 12, 12)
    clean = winograd(conv, x, None, conv.supports)
    x[0, 3, 5, 5] = torch.nan
    y = winograd(conv, x, None, conv.supports)
    assert y[0, :, 4:7, 4:7].isnan().all()
    assert torch.equal(y[1], clean[1])
    assert torch.equal(y[0, :, 8:, 8:], clean[0, :, 8:, 8:])


def test_threads_do_not_share_their_memory() -> None:
    conv = convolution(4 * C_IN, 2 * C_OUT)
    batches = [images(4, 4 * C_IN, 14, 14, seed=seed) for seed in range(8)]
    expected = [winograd(conv, x, None, conv.supports) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: winograd(conv, x, None, conv.supports), batches * 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 3, strict=True))


def test_weights_are_kept_as_long_as_the_convolution() -> None:
    conv = convolution()
    assert module._weights(conv) is module._weights(conv)
    kept = len(module._KEPT)
    del conv
    gc.collect()
    assert len(module._KEPT) < kept


@pytest.mark.parametrize("size", [6, 14])
def test_errs_like_the_direct_convolution(size: int) -> None:
    """Eight layers of normal weights, each after the last's rounding."""
    convs = [convolution(64, 64, (1, 1), True, seed) for seed in range(8)]
    exact = direct = ours = images(4, 64, size, size)
    exact = exact.double()
    for conv in convs:
        exact = before_relu(conv, exact, None, conv.supports).relu()
        direct = eager(conv, direct, None, conv.supports)
        ours = winograd(conv, ours, None, conv.supports)
    assert (ours - exact).square().mean() < 9 * (direct - exact).square().mean()


def test_preconditions() -> None:
    conv, x = convolution(), images(1, C_IN, 5, 5)
    at = conv.supports
    assert suits(conv, x, at)
    narrow, odd = convolution(c_in=3), convolution(c_out=LANES * (PANEL + 1))
    other = Support(3, 1, 0, 2), Support(3, 2), Support(1), Support(5)
    refused = [
        (narrow, images(1, 3, 5, 5), at),
        (conv, images(1, 2 * C_IN, 5, 5), at),
        (odd, x, at),
        (conv, x.double(), at),
        (conv, x.bfloat16(), at),
        (conv.to(torch.device("cpu"), torch.float64), x, at),
        (replace(conv, groups=2), x, at),
        (conv, x[:, :, :2], at),
        (conv, x[:0], at),
        *((conv, x, (support, at[1])) for support in other),
        *((conv, x, (at[0], support)) for support in other),
    ]
    for convolved, tensor, supports in refused:
        assert not suits(convolved, tensor, supports)
        with pytest.raises(ValueError, match="no Winograd convolution"):
            winograd(convolved, tensor, None, supports)


def test_second_operand_of_another_shape_or_type_is_refused() -> None:
    conv, x = convolution(), images(1, C_IN, 5, 5)
    for other in (images(1, C_OUT, 3, 2), images(1, C_OUT, 3, 3).double()):
        with pytest.raises(ValueError, match="added to"):
            winograd(conv, x, other, conv.supports)
