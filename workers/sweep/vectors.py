"""Winograd's convolution as vector code, emitted here.

LLVM gives up on loops over so many streams, and a matrix product from a library would pack its
operands each time, which ours are born in. A value is LANES channels at one position of one tile;
addresses are integers.
"""

from collections.abc import Callable, Sequence
from itertools import chain, product
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from workers.sweep.tiles import SIDES, TRANSFORMS

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
LANES, STRIP = (16, 14) if WIDE else (8, 6)
"""Channels in a vector, and tiles multiplied at once: as many as registers hold the sums of."""
PANEL = 2
"""Vectors of output channels multiplied at once."""

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


def _sandwich(
    builder: ir.IRBuilder, left: np.ndarray, right: np.ndarray, grid: Grid
) -> list[Value]:
    """``left grid right^T``, row by row."""
    for matrix in (left, right):
        columns = zip(*grid, strict=True)
        grid = [[_weighted(builder, row, column) for row in matrix] for column in columns]
    return list(chain.from_iterable(grid))


def _in_rows(values: Sequence[Value], length: int) -> Grid:
    return [list(values[i : i + length]) for i in range(0, len(values), length)]


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


def _input_transform(m: int, n: int) -> Any:
    """``B_m^T d B_n``: ``table`` lists where d is, the results go ``step`` bytes apart."""
    left, right = TRANSFORMS[m].inputs, TRANSFORMS[n].inputs

    def emit(builder: ir.IRBuilder, table: Value, shift: Value, target: Value, step: Value) -> None:
        places = _listed(builder, table, (m + 2) * (n + 2), shift)
        tile = _in_rows([_load(builder, place) for place in places], n + 2)
        for i, value in enumerate(_sandwich(builder, left, right, tile)):
            _store(builder, value, _address(builder, target, step, i))

    return _intrinsic(emit)


def _output_transform(m: int, n: int) -> Any:
    """``max(A_m^T M A_n + bias + other, floor)``: M lies ``step`` bytes apart, two tables list
    where the results go and the second operand is. NaN stays NaN."""
    left, right = TRANSFORMS[m].outputs, TRANSFORMS[n].outputs

    def emit(builder: ir.IRBuilder, source: Value, step: Value, *where: Value) -> None:
        targets, others, shift, *ends = where
        bias, floor = (_load(builder, builder.add(end, shift)) for end in ends)
        points = [_address(builder, source, step, i) for i in range((m + 2) * (n + 2))]
        tile = _in_rows([_load(builder, point) for point in points], n + 2)
        added = [_load(builder, other) for other in _listed(builder, others, m * n, shift)]
        places = _listed(builder, targets, m * n, shift)
        values = _sandwich(builder, left, right, tile)
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


_input_33, _input_34, _input_43, _input_44 = (
    _input_transform(*tile) for tile in product(SIDES, repeat=2)
)
_output_33, _output_34, _output_43, _output_44 = (
    _output_transform(*tile) for tile in product(SIDES, repeat=2)
)
_product = _intrinsic(_emit_product)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def convolve(part, positions, x, padding, weights, ends, v, products, y):  # type: ignore[no-untyped-def]
    """A part's share of ``x (n, h, w, c_in)`` -> ``y (n, h_out, w_out, c_out)``, block by block in
    v and products; ``ends`` are bias, lower bound and second operand."""
    rows, columns = part.number
    total, block = len(x) * rows * columns, v.shape[1] * STRIP
    zeros = np.zeros(max(x.shape[3], y.shape[3]), np.float32)
    spare, tables = np.empty_like(zeros), np.empty((2, len(v)), np.int64)
    begin = (part.corner[0] - padding[0], part.corner[1] - padding[1])
    for first in range(0, total, block):
        tiles = (first, min(first + block, total), rows, columns)
        _inward(part.tile, begin, x, zeros, tiles, tables, v)
        _multiply(v, positions, weights, products, -(-(tiles[1] - first) // STRIP))
        _outward(part.tile, part.corner, products, ends, zeros, spare, tiles, tables, y)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _multiply(v, positions, weights, products, strips):  # type: ignore[no-untyped-def]
    """One matrix product a position."""
    for position in range(len(v)):
        for panel in range(weights.shape[1]):
            b = weights.ctypes.data + positions[position] * weights.strides[0]
            b += panel * weights.strides[1]
            for strip in range(strips):
                a = v.ctypes.data + position * v.strides[0] + strip * v.strides[1]
                c = products.ctypes.data + position * products.strides[0]
                c += strip * products.strides[1] + panel * PANEL * products.strides[2]
                _product((a, b, c, v.shape[2]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _inward(tile, begin, x, zeros, tiles, tables, v):  # type: ignore[no-untyped-def]
    """``B^T d B`` of a block's tiles, zeros outside x."""
    first, stop, rows, columns = tiles
    for number in range(first, stop):
        image, row, column = _place(number, rows, columns)
        top, left = begin[0] + row * tile[0], begin[1] + column * tile[1]
        _addresses(tables[0], tile[0] + 2, tile[1] + 2, x, zeros, image, top, left)
        strip, place = (number - first) // STRIP, (number - first) % STRIP
        target = v.ctypes.data + strip * v.strides[1] + place * BYTES
        for block in range(v.shape[2]):
            to = target + block * v.strides[2]
            arguments = (tables.ctypes.data, block * BYTES, to, v.strides[0])
            if tile == (4, 4):
                _input_44(arguments)
            elif tile == (4, 3):
                _input_43(arguments)
            elif tile == (3, 4):
                _input_34(arguments)
            else:
                _input_33(arguments)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _outward(tile, corner, products, ends, zeros, spare, tiles, tables, y):  # type: ignore[no-untyped-def]
    """``max(A^T M A + bias + other, floor)`` of a block's tiles; what lies outside y goes to
    ``spare``."""
    first, stop, rows, columns = tiles
    bias, floor, other = ends
    for number in range(first, stop):
        image, row, column = _place(number, rows, columns)
        top, left = corner[0] + row * tile[0], corner[1] + column * tile[1]
        _addresses(tables[0], tile[0], tile[1], y, spare, image, top, left)
        _addresses(tables[1], tile[0], tile[1], other, zeros, image, top, left)
        strip, place = (number - first) // STRIP, (number - first) % STRIP
        source = products.ctypes.data + strip * products.strides[1] + place * BYTES
        where = (tables.ctypes.data, tables.ctypes.data + tables.strides[0])
        for block in range(products.shape[2]):
            start = (source + block * products.strides[2], products.strides[0])
            end = (block * BYTES, bias.ctypes.data, floor.ctypes.data)
            if tile == (4, 4):
                _output_44(start + where + end)
            elif tile == (4, 3):
                _output_43(start + where + end)
            elif tile == (3, 4):
                _output_34(start + where + end)
            else:
                _output_33(start + where + end)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _place(number, rows, columns):  # type: ignore[no-untyped-def]
    """Image, row and column of a tile."""
    return number // (rows * columns), number // columns % rows, number % columns


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _addresses(table, high, wide, array, outside, image, top, left):  # type: ignore[no-untyped-def]
    """Lists where ``array[image, top + i, left + j]`` is, ``outside`` if nowhere."""
    _, height, width, _ = array.shape
    for i in range(high):
        for j in range(wide):
            y, x = top + i, left + j
            if 0 <= y < height and 0 <= x < width:
                offset = image * array.strides[0] + y * array.strides[1] + x * array.strides[2]
                table[i * wide + j] = array.ctypes.data + offset
            else:
                table[i * wide + j] = outside.ctypes.data
