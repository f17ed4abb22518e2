"""Literal replicas of faithfulness and sanity: one painted image, one pixel, one cell at a time."""

import copy
import math

import numpy as np
import torch
from torch import Tensor

from tests.reference import metrics
from tests.reference.occlusion import cells, logits, painted, softmax
from workers.models.base import Tokens, VQAModel


def curve(
    model: VQAModel,
    canvas: Tensor,
    question: Tokens,
    answer: int,
    order: list[tuple[int, int]],
    grid: int,
    steps: int,
    fill: Tensor,
    deleting: bool,
) -> list[float]:
    """Petsiuk et al. 2018, algorithm 1: the probability after each step along the order."""
    rows, columns = (cells(side, grid) for side in canvas.shape[1:])
    points = []
    for k in range(steps + 1):
        count = round(k * len(order) / steps)
        hidden = order[:count] if deleting else order[count:]
        image = canvas.clone()
        for i, j in hidden:
            image = painted(image, rows[i], columns[j], fill)
        points.append(float(softmax(logits(model, image, question))[answer]))
    return points


def order_of(values: np.ndarray, grid: int, ties: list[int]) -> list[tuple[int, int]]:
    """Cells by falling value; of equal ones the one that comes first in ``ties``."""
    small = signed_resize(values, grid)
    left = [(i, j) for i in range(grid) for j in range(grid)]
    return sorted(left, key=lambda c: (-small[c], ties.index(c[0] * grid + c[1])))


def signed_resize(values: np.ndarray, side: int) -> np.ndarray:
    values = np.asarray(values, np.float64)
    for _ in range(2):
        rule = metrics.area_resize if values.shape[0] > side else metrics.bilinear_resize
        values = rule(values, side, values.shape[1]).T
    return values.astype(np.float32)


def area(points: list[float], count: int) -> float:
    """The trapezoid rule over the fraction of ``count`` cells that each step has reached."""
    total = 0.0
    for k in range(1, len(points)):
        reached, before = (round(i * count / (len(points) - 1)) / count for i in (k, k - 1))
        total += (reached - before) * (points[k] + points[k - 1]) / 2
    return total


def gini(values: list[float]) -> float:
    """Mean absolute difference over twice the mean: what the sorted formula is short for."""
    n = len(values)
    differences = sum(abs(a - b) for a in values for b in values)
    return differences / (2 * n * math.fsum(values))


def pointing_game(values: np.ndarray, human: np.ndarray, inside: float) -> float:
    """Of every cell that holds the maximum: is the human map's pixel under its centre inside?"""
    hits = []
    for i, j in np.ndindex(*values.shape):
        if abs(values[i, j]) == np.abs(values).max():
            y = math.floor((i + 0.5) / values.shape[0] * human.shape[0])
            x = math.floor((j + 0.5) / values.shape[1] * human.shape[1])
            hits.append(human[y, x] >= inside * human.max())
    return sum(hits) / len(hits)


def energy_inside(values: np.ndarray, human: np.ndarray, inside: float) -> float:
    """Each cell's magnitude times the part of it that is inside; the human map is finer."""
    height, width = values.shape
    mask = (human >= inside * human.max()).astype(float)
    shares = metrics.area_resize(mask, height, width)
    total = within = 0.0
    for i, j in np.ndindex(height, width):
        total += abs(values[i, j])
        within += abs(values[i, j]) * shares[i, j]
    return within / total


def max_sensitivity(own: np.ndarray, others: list[np.ndarray]) -> float:
    """Yeh et al. 2019, definition 3, relative to the map's norm."""
    norm = math.sqrt(math.fsum(v * v for v in own.ravel()))
    moved = [math.sqrt(math.fsum(v * v for v in (other - own).ravel())) for other in others]
    return max(moved) / norm


def randomised(model: VQAModel, drawn: list[str], all_parts: list[str], seed: int) -> VQAModel:
    """A copy in which the parts ``drawn`` have the weights that they get when all are drawn."""
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in all_parts:
            for layer in fresh.get_submodule(part).modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
    mixed = copy.deepcopy(model)
    for part in drawn:
        mixed.get_submodule(part).load_state_dict(fresh.get_submodule(part).state_dict())
    return mixed
