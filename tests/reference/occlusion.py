"""Goyal et al. 2016, section 3.2, one painted image, one question and one answer at a time."""

import numpy as np
import torch
from torch import Tensor

from workers.models.base import Tokens, VQAModel

GREY = (123.68, 116.779, 103.939)


def probabilities(model: VQAModel, canvas: Tensor, question: Tokens) -> np.ndarray:
    return softmax(logits(model, canvas, question))


def logits(model: VQAModel, canvas: Tensor, question: Tokens) -> np.ndarray:
    with torch.no_grad():
        return model.logits(canvas[None].clone(), [question])[0].numpy().astype(np.float64)


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


def painted(canvas: Tensor, grid: int, i: int, j: int) -> Tensor:
    """Cell (i, j) holds the pixels whose row is in [floor(i H / grid), floor((i + 1) H / grid))."""
    copy = canvas.clone()
    _, height, width = canvas.shape
    for y in range(height):
        for x in range(width):
            inside_y = i * height // grid <= y < (i + 1) * height // grid
            inside_x = j * width // grid <= x < (j + 1) * width // grid
            if inside_y and inside_x:
                copy[:, y, x] = torch.tensor(GREY, dtype=canvas.dtype)
    return copy


def occlusion(model: VQAModel, canvas: Tensor, question: Tokens, grid: int) -> np.ndarray:
    """Logits ``(y, x, answer)`` of every painted image."""
    return np.array(
        [
            [logits(model, painted(canvas, grid, i, j), question) for j in range(grid)]
            for i in range(grid)
        ]
    )


def drop(clean: np.ndarray, occluded: np.ndarray, answer: int) -> np.ndarray:
    """``p(clean) - p(occluded)`` per cell, from logits."""
    return softmax(clean)[answer] - np.apply_along_axis(softmax, -1, occluded)[..., answer]


def log_drop(clean: np.ndarray, occluded: np.ndarray, answer: int) -> np.ndarray:
    logs = np.log(np.apply_along_axis(softmax, -1, occluded)[..., answer])
    return np.log(softmax(clean)[answer]) - logs
