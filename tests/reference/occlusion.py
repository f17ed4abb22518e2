"""Goyal et al. 2016, section 3.2, one painted image, one question and one answer at a time."""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from workers.models.base import Tokens, VQAModel

GREY = (123.68, 116.779, 103.939)
Cover = list[list[int]]
"""For every window along a side, the pixels it covers."""


def probabilities(model: VQAModel, canvas: Tensor, question: Tokens) -> np.ndarray:
    return softmax(logits(model, canvas, question))


def logits(model: VQAModel, canvas: Tensor, question: Tokens) -> np.ndarray:
    with torch.no_grad():
        return model.logits(canvas[None].clone(), [question])[0].numpy().astype(np.float64)


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


def cells(side: int, grid: int) -> Cover:
    """Cell i holds the pixels in [floor(i side / grid), floor((i + 1) side / grid))."""
    return [
        [p for p in range(side) if i * side // grid <= p < (i + 1) * side // grid]
        for i in range(grid)
    ]


def steps(side: int, size: int, stride: int) -> Cover:
    """A window slides by the stride until it has reached the last pixel."""
    windows = [[p for p in range(side) if p < size]]
    while side - 1 not in windows[-1]:
        start = len(windows) * stride
        windows.append([p for p in range(side) if start <= p < start + size])
    return windows


def painted(canvas: Tensor, rows: list[int], columns: list[int], fill: Tensor) -> Tensor:
    copy = canvas.clone()
    for y in rows:
        for x in columns:
            copy[:, y, x] = fill[:, y, x]
    return copy


def occlusion(
    model: VQAModel, canvas: Tensor, question: Tokens, rows: Cover, columns: Cover, fill: Tensor
) -> np.ndarray:
    """Logits ``(y, x, answer)`` of every painted image."""
    return np.array(
        [
            [
                logits(model, painted(canvas, inside_y, inside_x, fill), question)
                for inside_x in columns
            ]
            for inside_y in rows
        ]
    )


def colour(canvas: Tensor, rgb: tuple[float, ...] = GREY) -> Tensor:
    fill = canvas.clone()
    for channel, level in enumerate(rgb):
        fill[channel] = level
    return fill


def mean(canvas: Tensor) -> Tensor:
    return colour(canvas, tuple(sum(c.flatten().tolist()) / c.numel() for c in canvas))


def blur(canvas: Tensor, sigma: float) -> Tensor:
    """Every pixel the Gaussian mean of the square of 4 standard deviations around it; what lies
    beyond the border is the image mirrored in its outermost pixel."""
    _, height, width = canvas.shape
    deviation = sigma * min(height, width)
    reach = range(-math.ceil(4 * deviation), math.ceil(4 * deviation) + 1)
    fill = torch.zeros_like(canvas)
    for y in range(height):
        for x in range(width):
            total = 0.0
            for dy in reach:
                for dx in reach:
                    weight = math.exp(-(dy**2 + dx**2) / (2 * deviation**2))
                    pixel = canvas[:, mirrored(y + dy, height), mirrored(x + dx, width)]
                    fill[:, y, x] += weight * pixel
                    total += weight
            fill[:, y, x] /= total
    return fill


def mirrored(p: int, side: int) -> int:
    p = abs(p)
    return p if p < side else 2 * (side - 1) - p


def noise(canvas: Tensor, seed: int) -> Tensor:
    """Uniform in 0..255."""
    numbers = generator(canvas, seed)
    fill = torch.zeros_like(canvas)
    for channel, y, x in np.ndindex(*canvas.shape):
        fill[channel, y, x] = 255 * numbers.random()
    return fill


def generator(canvas: Tensor, seed: int) -> np.random.Generator:
    """Seeded by the seed and the 8-bit image's SHA-256."""
    pixels = bytes(round(min(max(level, 0), 255)) for level in canvas.flatten().tolist())
    return np.random.default_rng([seed, int(hashlib.sha256(pixels).hexdigest(), 16)])


def drop(clean: np.ndarray, occluded: np.ndarray, answer: int) -> np.ndarray:
    """``p(clean) - p(occluded)`` per cell, from logits."""
    return softmax(clean)[answer] - np.apply_along_axis(softmax, -1, occluded)[..., answer]


def log_drop(clean: np.ndarray, occluded: np.ndarray, answer: int) -> np.ndarray:
    logs = np.log(np.apply_along_axis(softmax, -1, occluded)[..., answer])
    return np.log(softmax(clean)[answer]) - logs


def per_pixel(drops: np.ndarray, rows: Cover, columns: Cover) -> np.ndarray:
    """Every pixel the mean drop of the windows that cover it."""
    result = np.zeros((max(map(max, rows)) + 1, max(map(max, columns)) + 1))
    for y, x in np.ndindex(*result.shape):
        covering = [
            drops[i, j]
            for i, inside_y in enumerate(rows)
            for j, inside_x in enumerate(columns)
            if y in inside_y and x in inside_x
        ]
        result[y, x] = sum(covering) / len(covering)
    return result
