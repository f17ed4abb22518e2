"""Selvaraju et al. 2017, equations 1 and 2, and Guided Grad-CAM, in loops."""

import numpy as np
from torch import Tensor

from tests.nets import TinyVQA
from tests.reference.gradients import Replica, pixel_gradient
from workers.models.base import Tokens


def grad_cam(
    model: TinyVQA, canvas: Tensor, question: Tokens, answer: int, score: str
) -> np.ndarray:
    """``sum_k alpha_k A^k`` before the ReLU."""
    replica = Replica(model, canvas, question, "saliency")
    gradient = replica.gradient(answer, score, replica.features)
    total = np.zeros(gradient.shape[1:])
    for gradient_k, activation_k in zip(gradient, replica.features.value, strict=True):
        alpha_k = gradient_k.sum() / gradient_k.size
        total += alpha_k * activation_k
    return total


def grad_cam_plus_plus(
    model: TinyVQA, canvas: Tensor, question: Tokens, answer: int, score: str
) -> np.ndarray:
    """Chattopadhay et al. 2018, equations 9, 10 and 19, one cell after the other."""
    replica = Replica(model, canvas, question, "saliency")
    gradient = replica.gradient(answer, score, replica.features)
    activation = replica.features.value
    _, height, width = gradient.shape
    total = np.zeros((height, width))
    for k in range(len(gradient)):
        weight = 0.0
        for i in range(height):
            for j in range(width):
                g = gradient[k, i, j]
                below = 2 * g**2 + activation[k].sum() * g**3
                alpha = g**2 / below if below != 0 else 0.0
                weight += alpha * max(g, 0)
        total += weight * activation[k]
    return np.maximum(total, 0)


def guided_grad_cam(
    model: TinyVQA, canvas: Tensor, question: Tokens, answer: int, score: str
) -> np.ndarray:
    """``(3, y, x)``."""
    guided = pixel_gradient(model, canvas, question, answer, score, "guided")
    cam = np.maximum(grad_cam(model, canvas, question, answer, score), 0)
    return guided * upsample(cam, *guided.shape[1:])


def upsample(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear between cell centres; beyond the outermost centres their value is kept."""
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            i = np.clip((y + 0.5) * cells.shape[0] / height - 0.5, 0, cells.shape[0] - 1)
            j = np.clip((x + 0.5) * cells.shape[1] / width - 0.5, 0, cells.shape[1] - 1)
            result[y, x] = _between(cells, i, j)
    return result


def _between(cells: np.ndarray, i: float, j: float) -> float:
    top, left = int(i), int(j)
    bottom, right = min(top + 1, cells.shape[0] - 1), min(left + 1, cells.shape[1] - 1)
    down, across = i - top, j - left
    above = (1 - across) * cells[top, left] + across * cells[top, right]
    below = (1 - across) * cells[bottom, left] + across * cells[bottom, right]
    return (1 - down) * above + down * below
