"""Ummettuguli, "Towards visual explanations that ground multiple modalities", section 3, on Deeper
LSTM Q + norm I: every derivative by its full Jacobian, written out by hand, in NumPy float64.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import deeper_lstm
from tests.reference.gradients import score_gradient
from tests.reference.kazemi import sigmoid

Weights = Mapping[str, np.ndarray]


def image_side(w: Weights, features: np.ndarray, pool: int, fully: int) -> np.ndarray:
    vector = deeper_lstm.image_vector(w, features, pool, fully)
    return np.tanh(w["image_in.weight"] @ vector + w["image_in.bias"])


def question_side(w: Weights, q: np.ndarray) -> np.ndarray:
    return np.tanh(w["question_in.weight"] @ q + w["question_in.bias"])


def jacobian_of_question(w: Weights, image: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``d a_i / d q_j``, ``(combine, state)``."""
    rows = image * (1 - question_side(w, q) ** 2)
    return rows[:, None] * w["question_in.weight"]


def jacobian_of_word(w: Weights, indices: Sequence[int], place: int, layers: int) -> np.ndarray:
    """``d [c1, h1, c2, h2] / d w`` of one word's embedding, ``(state, embedding)``."""
    size = w["question.lstm.weight_hh_l0"].shape[1]
    width = len(w["question.embedding.bias"])
    h, c = np.zeros((layers, size)), np.zeros((layers, size))
    dh, dc = np.zeros((layers, size, width)), np.zeros((layers, size, width))
    for position, index in enumerate(indices):
        embedding = w["question.embedding.weight"][:, index] + w["question.embedding.bias"]
        x, dx = np.tanh(embedding), np.zeros((width, width))
        if position == place:
            dx = np.diag(1 - x**2)
        for k in range(layers):
            w_x, w_h = w[f"question.lstm.weight_ih_l{k}"], w[f"question.lstm.weight_hh_l{k}"]
            gates = w_x @ x + w[f"question.lstm.bias_ih_l{k}"]
            gates = gates + w_h @ h[k] + w[f"question.lstm.bias_hh_l{k}"]
            di, df, dg, do = np.split(w_x @ dx + w_h @ dh[k], 4)
            i, f, g, o = np.split(gates, 4)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            di, df, do = ((s * (1 - s))[:, None] * d for s, d in ((i, di), (f, df), (o, do)))
            dg = (1 - g**2)[:, None] * dg
            dc[k] = f[:, None] * dc[k] + c[k][:, None] * df + i[:, None] * dg + g[:, None] * di
            c[k] = f * c[k] + i * g
            t = np.tanh(c[k])
            dh[k] = t[:, None] * do + (o * (1 - t**2))[:, None] * dc[k]
            h[k] = o * t
            x, dx = h[k], dh[k]
    return np.concatenate([part for k in range(layers) for part in (dc[k], dh[k])])


def sensitivity(
    w: Weights,
    features: np.ndarray,
    indices: Sequence[int],
    kind: str,
    word: int | str,
    sizes: tuple[int, int, int],
) -> tuple[np.ndarray, int]:
    """One number a neuron, and the position of the word that it refers to."""
    pool, fully, layers = sizes
    q = deeper_lstm.question_vector(w, indices, layers)
    jacobian = jacobian_of_question(w, image_side(w, features, pool, fully), q)
    if kind == "row_sum":
        return jacobian.sum(1), 0
    if kind == "l2":
        return np.sqrt((jacobian**2).sum(1)), 0
    places = range(len(indices)) if word == "max" else [word % len(indices)]
    sums = {k: (jacobian @ jacobian_of_word(w, indices, k, layers)).sum(1) for k in places}
    best = max(sums, key=lambda k: np.sqrt((sums[k] ** 2).sum()))
    return sums[best], best


def top(values: np.ndarray, n: int) -> set[int]:
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:n])


def question_grad_cam(
    w: Weights,
    features: np.ndarray,
    indices: Sequence[int],
    answer: int,
    score: str,
    kept: set[int],
    sizes: tuple[int, int, int],
) -> np.ndarray:
    """``sum_k alpha_k A^k`` before the ReLU, the gradient passing the neurons ``kept`` alone;
    the forward pass again, then backwards layer by layer."""
    pool, fully, layers = sizes
    q = question_side(w, deeper_lstm.question_vector(w, indices, layers))
    image = image_side(w, features, pool, fully)
    logits = deeper_lstm.answer(w, image * q)
    at_combine = w["answer.weight"].T @ score_gradient(logits, answer, score)
    at_combine = np.array([g if i in kept else 0.0 for i, g in enumerate(at_combine)])
    gradient = w["image_in.weight"].T @ (at_combine * q * (1 - image**2))
    gradient = through_image_vector(w, features, gradient, pool, fully)
    total = np.zeros(features.shape[1:])
    for gradient_k, activation_k in zip(gradient, features, strict=True):
        total += gradient_k.sum() / gradient_k.size * activation_k
    return total


def through_image_vector(
    w: Weights, features: np.ndarray, gradient: np.ndarray, pool: int, fully: int
) -> np.ndarray:
    """From the normalised vector back to the trunk's map."""
    channels, height, width = features.shape
    source: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    seen = np.zeros((channels, height // pool, width // pool))
    for k, y, x in np.ndindex(*seen.shape):
        cell = features[k, pool * y : pool * (y + 1), pool * x : pool * (x + 1)]
        i, j = np.unravel_index(cell.argmax(), cell.shape)
        source[k, y, x] = (k, pool * y + i, pool * x + j)
        seen[k, y, x] = cell.max()
    vectors = [seen.ravel()]
    for layer in range(fully):
        name = f"image.fully.{3 * layer}"
        vectors.append(np.maximum(w[f"{name}.weight"] @ vectors[-1] + w[f"{name}.bias"], 0))
    last = vectors[-1]
    length = np.sqrt((last**2).sum())
    unit = last / length
    gradient = (np.eye(len(last)) - np.outer(unit, unit)) @ gradient / length
    for layer in reversed(range(fully)):
        gradient = gradient * (vectors[layer + 1] > 0)
        gradient = w[f"image.fully.{3 * layer}.weight"].T @ gradient
    result = np.zeros_like(features)
    for place, value in zip(np.ndindex(*seen.shape), gradient, strict=True):
        result[source[place]] += value
    return result
