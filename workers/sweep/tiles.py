"""Tiles of a 3x3 convolution's output, and the transforms that make them cheap.

Minimal filtering (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section
4.1): a tile of m x n outputs is ``Y = A_m^T [(G_m g G_n^T) * (B_m^T d B_n)] A_n`` of the inputs d
under it, ``(m + 2)(n + 2)`` products in place of ``9 m n``.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where the polynomials are sampled, infinity apart; m + 1 of them for a tile of m. Groups (c, -c,
1/c, -1/c) err least (Alam, Anderson, Barabasz and Gregg 2022, "Winograd Convolution for Deep Neural
Networks: Efficient Point Selection"); ours are nearly of that form, and exact in float32."""
SIDES = (3, 4)
"""Of tiles."""
SIDE = max(SIDES) + 2
"""Points of the transformed weights along an axis, infinity among them."""
WEIGHTS = SIDE**2 / 9
"""How many numbers a weight is transformed into."""
USUAL = 32
"""Images that a tiling is chosen for, however many there are: values do not depend on it."""
READ = 8
"""Reading the weights of one position costs as much time as multiplying so many tiles by them."""


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


def of_shared_weights(m: int) -> Transforms:
    """A smaller tile's transforms for the weights of the largest: fewer points leave factors
    ``x_j - x`` of those left out in the denominators of G, which go into B^T."""
    own, rows = cook_toom(POINTS[: m + 1]), points_of(m)
    factors = [np.prod([x - left for left in POINTS[m + 1 :]]) for x in POINTS[: m + 1]]
    inputs = np.array([*factors, 1.0])[:, None] * own.inputs
    return Transforms(own.outputs, cook_toom(POINTS).kernel[rows], inputs)


def points_of(m: int) -> list[int]:
    """Which of the points a tile of m uses: the first ones, and infinity."""
    return [*range(m + 1), SIDE - 1]


TRANSFORMS = {m: of_shared_weights(m) for m in SIDES}


class Part(NamedTuple):
    """A rectangle of the output in tiles of one shape; what sticks out is dropped."""

    tile: tuple[int, int]
    corner: tuple[int, int]
    """Its first output, ``(y, x)``."""
    number: tuple[int, int]
    """Tiles down and across."""

    def cost(self) -> int:
        """In products of a tile with one position's weights."""
        positions = math.prod(m + 2 for m in self.tile)
        return positions * (USUAL * math.prod(self.number) + READ)


@cache
def tiling(size: tuple[int, int]) -> list[Part]:
    """Parts that cover the output, of the least cost: one, or up to four where both sizes of
    tiles go into a side."""
    sides = [_sides(length) for length in size]
    tilings = [
        [Part((m, n), (y, x), (i, j)) for (m, y, i), (n, x, j) in product(rows, columns)]
        for rows, columns in product(*sides)
    ]
    return min(tilings, key=lambda parts: sum(part.cost() for part in parts))


def _sides(length: int) -> list[list[tuple[int, int, int]]]:
    """Ways to cover a side with tiles ``(m, start, how many)``: of one size, or as few as possible
    and some of them smaller."""
    ways = [[(m, 0, -(-length // m))] for m in SIDES]
    small, large = SIDES
    number = -(-length // large)
    fewer = large * number - length
    if 0 < fewer < number:
        ways.append([(large, 0, number - fewer), (small, large * (number - fewer), fewer)])
    return ways


POSITIONS = {
    (m, n): np.array([SIDE * i + j for i in points_of(m) for j in points_of(n)])
    for m, n in product(SIDES, repeat=2)
}
"""Where the weights that a tile uses are among all."""
