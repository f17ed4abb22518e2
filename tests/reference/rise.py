"""Petsiuk, Das and Saenko 2018, section 3: one mask, one pixel and one question at a time."""

import math

import numpy as np
import torch
from torch import Tensor

from tests.reference.grad_cam import upsample
from tests.reference.occlusion import GREY, generator, logits, softmax
from workers.models.base import Tokens, VQAModel


def rise(
    model: VQAModel,
    canvas: Tensor,
    question: Tokens,
    answer: int,
    masks: list[np.ndarray],
    keep: float,
    hidden: tuple[float, ...] = GREY,
) -> np.ndarray:
    """Equation 6: ``1 / (N p) sum_i f(I * M_i) M_i``."""
    total = np.zeros(canvas.shape[1:])
    for mask in masks:
        f = softmax(logits(model, seen(canvas, mask, hidden), question))[answer]
        total += f * mask
    return total / (len(masks) * keep)


def seen(canvas: Tensor, mask: np.ndarray, hidden: tuple[float, ...]) -> Tensor:
    result = torch.zeros_like(canvas)
    for channel, y, x in np.ndindex(*canvas.shape):
        shown, m = float(canvas[channel, y, x]), mask[y, x]
        result[channel, y, x] = m * shown + (1 - m) * hidden[channel]
    return result


def draw(canvas: Tensor, count: int, cells: int, keep: float, seed: int) -> list[np.ndarray]:
    """Section 3.2: binary grids, scaled up to ``(cells + 1)`` cells a side, cropped at random."""
    _, height, width = canvas.shape
    numbers = generator(canvas, seed)
    masks = []
    for _ in range(count):
        grid = np.array(
            [[float(numbers.random() < keep) for _ in range(cells)] for _ in range(cells)]
        )
        cell_height, cell_width = math.ceil(height / cells), math.ceil(width / cells)
        top = math.floor(numbers.random() * cell_height)
        left = math.floor(numbers.random() * cell_width)
        large = upsample(grid, (cells + 1) * cell_height, (cells + 1) * cell_width)
        masks.append(large[top : top + height, left : left + width])
    return masks
