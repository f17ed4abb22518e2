"""3x3 convolutions on the CPU in 2.25 to 4 times fewer multiplications.

Minimal filtering (Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section
4.1): a tile of m x m outputs is ``Y = A^T [(G g G^T) * (B^T d B)] A`` of the (m + 2) x (m + 2)
inputs d under it, and the sum over channels turns the elementwise products of many tiles into
(m + 2)^2 matrix products. Transforms and products are vector code emitted here: LLVM gives up on
loops over so many streams, and a matrix product from a library would pack its operands each time,
which ours are born in.
"""

import math
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from workers.sweep.intervals import Support

if TYPE_CHECKING:
    from workers.sweep.operations import Convolution

Supports = tuple[Support, Support]

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
LANES, STRIP = (16, 14) if WIDE else (8, 6)
"""Channels in a vector, and tiles multiplied at once: as many as registers hold the sums of."""
PANEL = 2
"""Vectors of output channels multiplied at once."""
BLOCK = 16
"""Strips transformed, multiplied and transformed back before the next: they stay in the cache."""
POINTS = {2: (0.0, 1.0, -1.0), 3: (0.0, 0.75, -0.75, 1.5), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
"""By tile size: where the polynomials are sampled, infinity apart. Groups (c, -c, 1/c, -1/c) err
least (Alam, Anderson, Barabasz and Gregg 2022, "Winograd Convolution for Deep Neural Networks:
Efficient Point Selection"); ours are nearly of that form, and exact in float32."""


class Transforms(NamedTuple):
    """The matrices of one tile size m."""

    outputs: np.ndarray
    """``A^T (m, m + 2)``."""
    kernel: np.ndarray
    """``G (m + 2, 3)``."""
    inputs: np.ndarray
    """``B^T (m + 2, m + 2)``."""


def cook_toom(points: Sequence[float]) -> Transforms:
    """Sampling at the points and at infinity, interpolation by Lagrange's polynomials (Barabasz,
    Anderson, Soodhalter and Gregg 2020, "Error Analysis and Improving the Accuracy of Winograd
    Convolution for Deep Neural Networks"); the denominators go into G."""
    n = len(points) + 1
    outputs, kernel, inputs = np.zeros((n - 2, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        outputs[:, j] = point ** np.arange(n - 2)
        kernel[j] = point ** np.arange(3) / np.prod([point - other for other in others])
        inputs[j, :-1] = np.poly(others)[::-1]
    outputs[-1, -1] = kernel[-1, -1] = 1
    inputs[-1] = np.poly(points)[::-1]
    return Transforms(outputs, kernel, inputs)


TRANSFORMS = {m: cook_toom(points) for m, points in POINTS.items()}


def suits(conv: "Convolution", x: Tensor, at: Supports) -> bool:
    """Whether `winograd` computes this: float32 on the CPU, 3x3, stride and dilation 1, one group,
    whole vectors and panels of channels, at least one output."""
    floats = x.device.type == "cpu" and x.dtype == conv.weight.dtype == torch.float32
    shapes = all((s.kernel, s.stride, s.dilation) == (3, 1, 1) for s in at) and conv.groups == 1
    c_out, c_in, *_ = conv.weight.shape
    whole = x.shape[1] == c_in and c_in % LANES == 0 and c_out % (PANEL * LANES) == 0
    return floats and shapes and whole and len(x) > 0 and min(_size(x, at)) > 0


def winograd(conv: "Convolution", x: Tensor, other: Tensor | None, at: Supports) -> Tensor:
    """The convolution, its bias, ``other`` and the ReLU: ``x (n, c_in, h, w)`` -> ``(n, c_out,
    h_out, w_out)``, channels-last; in one thread, without the interpreter's lock. An image's values
    do not depend on its neighbours in the batch. An infinite input makes its whole tile NaN."""
    if not suits(conv, x, at):
        raise ValueError(f"no Winograd convolution of {tuple(x.shape)} {x.dtype} under {at}")
    size = _size(x, at)
    m, (c_out, c_in, *_) = _tile(size), conv.weight.shape
    y = x.new_empty(len(x), *size, c_out)
    if other is not None and (other.shape, other.dtype) != ((len(x), c_out, *size), x.dtype):
        raise ValueError(f"{tuple(other.shape)} {other.dtype} added to {len(x), c_out, *size}")
    v, products = _ROOM(m, len(x) * _tiles(size, m), c_in, c_out)
    bias, floor, added = _ends(conv, y, other)
    rows, padding, weights = _channels_last(x), (at[0].padding, at[1].padding), _weights(conv, m)
    _convolve(m, rows, padding, weights, bias, floor, added, v, products, y.numpy())
    return y.permute(0, 3, 1, 2)


def _size(x: Tensor, at: Supports) -> tuple[int, int]:
    height, width = (length + 2 * s.padding - 2 for length, s in zip(x.shape[2:], at, strict=True))
    return height, width


def _tiles(size: tuple[int, int], m: int) -> int:
    return math.prod(-(-length // m) for length in size)


def _tile(size: tuple[int, int]) -> int:
    """The tile size of fewest multiplications; of equals the smaller, which errs less."""
    return min(POINTS, key=lambda m: _tiles(size, m) * (m + 2) ** 2)


def _channels_last(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def _ends(
    conv: "Convolution", y: Tensor, other: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bias, lower bound, second operand. One of no extent reads as zeros."""
    zeros = np.zeros(y.shape[3], np.float32)
    bias = zeros if conv.bias is None else conv.bias.detach().float().contiguous().numpy()
    floor = zeros if conv.relu else zeros - np.float32(np.inf)
    return bias, floor, y[:, :0, :0].numpy() if other is None else _channels_last(other)


class Room(threading.local):
    """A thread's memory for one block, kept: asking the system anew costs more than the
    transforms."""

    def __init__(self) -> None:
        self.floats = np.empty(0, np.float32)

    def __call__(self, m: int, tiles: int, *channels: int) -> list[np.ndarray]:
        """For each channel count ``(position, strip, vector, STRIP, LANES)``; blocks of equal
        length."""
        strips = -(-tiles // STRIP)
        strips = -(-strips // -(-strips // BLOCK))
        shapes = [((m + 2) ** 2, strips, count // LANES, STRIP, LANES) for count in channels]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if self.floats.size < ends[-1]:
            self.floats = np.empty(ends[-1], np.float32)
        parts = np.split(self.floats[: ends[-1]], ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


_ROOM = Room()

_KEPT: WeakKeyDictionary["Convolution", dict[int, np.ndarray]] = WeakKeyDictionary()


def _weights(conv: "Convolution", m: int) -> np.ndarray:
    """``G g G^T (position, panel, c_in, PANEL LANES)``, in float64 and rounded once; kept with the
    convolution."""
    kept = _KEPT.setdefault(conv, {})
    if m not in kept:
        g = torch.from_numpy(TRANSFORMS[m].kernel)
        u = torch.einsum("ik,ockl,jl->ijco", g, conv.weight.detach().double(), g)
        panels = u.flatten(0, 1).unflatten(2, (-1, PANEL * LANES)).transpose(1, 2)
        kept[m] = panels.float().contiguous().numpy()
    return kept[m]


# Vector code. A value is LANES channels at one position of one tile; addresses are integers.

Value = Any
Grid = list[list[Value]]
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
INT = ir.IntType(64)
BYTES = 4 * LANES
FUSED = ("contract",)
"""Permits one rounding for a product and a sum, nothing else of fast mathematics."""


def _constant(value: float) -> Value:
    return ir.Constant(VECTOR, [value] * LANES)


def _address(builder: ir.IRBuilder, start: Value, step: Value | int, count: Value | int) -> Value:
    step, count = (ir.Constant(INT, n) if isinstance(n, int) else n for n in (step, count))
    return builder.add(start, builder.mul(step, count))


def _load(builder: ir.IRBuilder, address: Value, kind: ir.Type = VECTOR) -> Value:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _store(builder: ir.IRBuilder, value: Value, address: Value) -> None:
    builder.store(value, builder.inttoptr(address, VECTOR.as_pointer()), align=4)


def _plus_product(builder: ir.IRBuilder, total: Value, a: Value, b: Value) -> Value:
    return builder.fadd(total, builder.fmul(a, b, flags=FUSED), flags=FUSED)


def _weighted(builder: ir.IRBuilder, weights: Sequence[float], values: Sequence[Value]) -> Value:
    """``sum_i weights_i values_i``, without the zeros and the products with one."""
    total = _constant(-0.0)  # -0 + x is x to the bit, so that LLVM drops it
    for weight, value in zip(weights, values, strict=True):
        if abs(weight) == 1:
            total = (builder.fadd if weight > 0 else builder.fsub)(total, value)
        elif weight:
            total = _plus_product(builder, total, _constant(weight), value)
    return total


def _sandwich(builder: ir.IRBuilder, matrix: np.ndarray, grid: Grid) -> list[Value]:
    """``matrix grid matrix^T``, row by row."""
    for _ in range(2):
        columns = zip(*grid, strict=True)
        grid = [[_weighted(builder, row, column) for row in matrix] for column in columns]
    return list(chain.from_iterable(grid))


def _loaded(builder: ir.IRBuilder, addresses: Sequence[Value]) -> Grid:
    """A square of values."""
    side = math.isqrt(len(addresses))
    values = [_load(builder, address) for address in addresses]
    return [values[i : i + side] for i in range(0, len(values), side)]


def _listed(builder: ir.IRBuilder, table: Value, count: int, shift: Value) -> list[Value]:
    """The first addresses of a table, each plus shift."""
    entries = (_load(builder, _address(builder, table, 8, i), INT) for i in range(count))
    return [builder.add(entry, shift) for entry in entries]


def _intrinsic(emit: Callable[..., None]) -> Any:
    """A function of one tuple, of addresses and other integers, from its instructions."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Value:
        emit(builder, *cgutils.unpack_tuple(builder, arguments[0]))
        return context.get_dummy_value()

    @intrinsic
    def function(typing, arguments):  # type: ignore[no-untyped-def]
        return types.void(types.UniTuple(types.int64, len(arguments))), generate

    return function


def _input_transform(m: int) -> Any:
    """``B^T d B``: ``table`` lists where d is, the results go ``step`` bytes apart."""
    matrix, count = TRANSFORMS[m].inputs, (m + 2) ** 2

    def emit(builder: ir.IRBuilder, table: Value, shift: Value, target: Value, step: Value) -> None:
        tile = _loaded(builder, _listed(builder, table, count, shift))
        for i, value in enumerate(_sandwich(builder, matrix, tile)):
            _store(builder, value, _address(builder, target, step, i))

    return _intrinsic(emit)


def _output_transform(m: int) -> Any:
    """``max(A^T M A + bias + other, floor)``: M lies ``step`` bytes apart, two tables list where
    the results go and the second operand is. NaN stays NaN."""
    matrix, count = TRANSFORMS[m].outputs, (m + 2) ** 2

    def emit(builder: ir.IRBuilder, source: Value, step: Value, *where: Value) -> None:
        targets, others, shift, *ends = where
        bias, floor = (_load(builder, builder.add(end, shift)) for end in ends)
        tile = _loaded(builder, [_address(builder, source, step, i) for i in range(count)])
        added = [_load(builder, other) for other in _listed(builder, others, m * m, shift)]
        places = _listed(builder, targets, m * m, shift)
        values = _sandwich(builder, matrix, tile)
        for value, other, place in zip(values, added, places, strict=True):
            total = builder.fadd(builder.fadd(value, bias), other)
            below = builder.fcmp_ordered("<", total, floor)
            _store(builder, builder.select(below, floor, total), place)

    return _intrinsic(emit)


def _emit_product(builder: ir.IRBuilder, a: Value, b: Value, c: Value, blocks: Value) -> None:
    """``c (PANEL, STRIP, LANES) = a (blocks, STRIP, LANES) b (blocks LANES, PANEL LANES)``, summed
    over blocks and lanes of a, all sums in registers."""
    zero = _constant(0.0)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(PANEL)] for _ in range(STRIP)]
    lanes = ir.Constant(INT, LANES)
    with cgutils.for_range(builder, blocks) as block, cgutils.for_range(builder, lanes) as lane:
        k = _address(builder, lane.index, block.index, LANES)
        row = _address(builder, b, k, PANEL * BYTES)
        weights = [_load(builder, _address(builder, row, BYTES, j)) for j in range(PANEL)]
        left = _address(builder, _address(builder, a, block.index, STRIP * BYTES), lane.index, 4)
        for i, totals in enumerate(sums):
            factor = _repeated(builder, _load(builder, _address(builder, left, BYTES, i), FLOAT))
            for total, weight in zip(totals, weights, strict=True):
                added = _plus_product(builder, builder.load(total), factor, weight)
                builder.store(added, total)
    for i, totals in enumerate(sums):
        for j, total in enumerate(totals):
            _store(builder, builder.load(total), _address(builder, c, BYTES, j * STRIP + i))


def _repeated(builder: ir.IRBuilder, scalar: Value) -> Value:
    first = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, first)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, one, lanes)


_input_2, _input_3, _input_4 = (_input_transform(m) for m in (2, 3, 4))
_output_2, _output_3, _output_4 = (_output_transform(m) for m in (2, 3, 4))
_product = _intrinsic(_emit_product)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _convolve(m, x, padding, weights, bias, floor, other, v, products, y):  # type: ignore[no-untyped-def]
    """``x (n, h, w, c_in)`` -> ``y (n, h_out, w_out, c_out)``, block by block in v and products."""
    rows, columns = -(-y.shape[1] // m), -(-y.shape[2] // m)
    total, block = len(x) * rows * columns, v.shape[1] * STRIP
    zeros = np.zeros(max(x.shape[3], y.shape[3]), np.float32)
    spare, tables = np.empty_like(zeros), np.empty((2, len(v)), np.int64)
    for first in range(0, total, block):
        tiles = (first, min(first + block, total), rows, columns)
        _inward(m, x, zeros, padding, tiles, tables, v)
        _multiply(v, weights, products, -(-(tiles[1] - first) // STRIP))
        _outward(m, products, bias, floor, zeros, other, spare, tiles, tables, y)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _multiply(v, weights, products, strips):  # type: ignore[no-untyped-def]
    """One matrix product a position."""
    for position in range(len(v)):
        for panel in range(weights.shape[1]):
            b = weights.ctypes.data + position * weights.strides[0] + panel * weights.strides[1]
            for strip in range(strips):
                a = v.ctypes.data + position * v.strides[0] + strip * v.strides[1]
                c = products.ctypes.data + position * products.strides[0]
                c += strip * products.strides[1] + panel * PANEL * products.strides[2]
                _product((a, b, c, v.shape[2]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _inward(m, x, zeros, padding, tiles, tables, v):  # type: ignore[no-untyped-def]
    """``B^T d B`` of a block's tiles, zeros outside x."""
    first, stop, rows, columns = tiles
    for tile in range(first, stop):
        image, row, column = tile // (rows * columns), tile // columns % rows, tile % columns
        top, left = row * m - padding[0], column * m - padding[1]
        _addresses(tables[0], m + 2, x, zeros, image, top, left)
        strip, place = (tile - first) // STRIP, (tile - first) % STRIP
        target = v.ctypes.data + strip * v.strides[1] + place * BYTES
        for block in range(v.shape[2]):
            to = target + block * v.strides[2]
            arguments = (tables.ctypes.data, block * BYTES, to, v.strides[0])
            if m == 2:
                _input_2(arguments)
            elif m == 3:
                _input_3(arguments)
            else:
                _input_4(arguments)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _outward(m, products, bias, floor, zeros, other, spare, tiles, tables, y):  # type: ignore[no-untyped-def]
    """``max(A^T M A + bias + other, floor)`` of a block's tiles; what lies outside y goes to
    ``spare``."""
    first, stop, rows, columns = tiles
    for tile in range(first, stop):
        image, row, column = tile // (rows * columns), tile // columns % rows, tile % columns
        _addresses(tables[0], m, y, spare, image, row * m, column * m)
        _addresses(tables[1], m, other, zeros, image, row * m, column * m)
        strip, place = (tile - first) // STRIP, (tile - first) % STRIP
        source = products.ctypes.data + strip * products.strides[1] + place * BYTES
        where = (tables.ctypes.data, tables.ctypes.data + tables.strides[0])
        for block in range(products.shape[2]):
            begin = (source + block * products.strides[2], products.strides[0])
            end = (block * BYTES, bias.ctypes.data, floor.ctypes.data)
            if m == 2:
                _output_2(begin + where + end)
            elif m == 3:
                _output_3(begin + where + end)
            else:
                _output_4(begin + where + end)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _addresses(table, side, array, outside, image, top, left):  # type: ignore[no-untyped-def]
    """Lists where ``array[image, top + i, left + j]`` is, ``outside`` if nowhere."""
    _, height, width, _ = array.shape
    for i in range(side):
        for j in range(side):
            y, x = top + i, left + j
            if 0 <= y < height and 0 <= x < width:
                offset = image * array.strides[0] + y * array.strides[1] + x * array.strides[2]
                table[i * side + j] = array.ctypes.data + offset
            else:
                table[i * side + j] = outside.ctypes.data
