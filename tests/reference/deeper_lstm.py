"""The forward pass of Deeper LSTM Q + norm I (VT-vision-lab/VQA_LSTM_CNN), in NumPy float64.

Word by word, and for the image from the trunk's map on: max-pooling, fc6, fc7, L2 norm.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference.kazemi import sigmoid

Weights = Mapping[str, np.ndarray]


def question_vector(w: Weights, indices: Sequence[int], layers: int) -> np.ndarray:
    """``[c1, h1, c2, h2]``; PyTorch stacks the gates as input, forget, candidate, output."""
    size = w["question.lstm.weight_hh_l0"].shape[1]
    h, c = np.zeros((layers, size)), np.zeros((layers, size))
    for index in indices:
        one_hot = np.eye(w["question.embedding.weight"].shape[1])[index]
        x = np.tanh(w["question.embedding.weight"] @ one_hot + w["question.embedding.bias"])
        for k in range(layers):
            h[k], c[k] = lstm_step(w, k, x, h[k], c[k])
            x = h[k]
    return np.concatenate([part for k in range(layers) for part in (c[k], h[k])])


def lstm_step(
    w: Weights, k: int, x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    gates = w[f"question.lstm.weight_ih_l{k}"] @ x + w[f"question.lstm.bias_ih_l{k}"]
    gates = gates + w[f"question.lstm.weight_hh_l{k}"] @ h + w[f"question.lstm.bias_hh_l{k}"]
    i, f, g, o = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def image_vector(w: Weights, features: np.ndarray, pool: int, fully: int) -> np.ndarray:
    channels, height, width = features.shape
    seen = np.zeros((channels, height // pool, width // pool))
    for k in range(channels):
        for y in range(height // pool):
            for x in range(width // pool):
                cell = features[k, pool * y : pool * (y + 1), pool * x : pool * (x + 1)]
                seen[k, y, x] = cell.max()
    vector = seen.ravel()
    for layer in range(fully):
        name = f"image.fully.{3 * layer}"
        vector = np.maximum(w[f"{name}.weight"] @ vector + w[f"{name}.bias"], 0)
    return vector / np.sqrt((vector**2).sum())


def combine(
    w: Weights, features: np.ndarray, question: np.ndarray, pool: int, fully: int
) -> np.ndarray:
    image = w["image_in.weight"] @ image_vector(w, features, pool, fully) + w["image_in.bias"]
    return np.tanh(image) * np.tanh(w["question_in.weight"] @ question + w["question_in.bias"])


def answer(w: Weights, combined: np.ndarray) -> np.ndarray:
    return w["answer.weight"] @ combined + w["answer.bias"]
