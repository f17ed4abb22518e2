"""The forward pass of a stacked attention network (Yang et al. 2016), word by word and cell by
cell, in NumPy float64."""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference.deeper_lstm import lstm_step
from tests.reference.kazemi import softmax

Weights = Mapping[str, np.ndarray]


def question_state(w: Weights, indices: Sequence[int], layers: int, word_tanh: bool) -> np.ndarray:
    """The output of the LSTM's last layer after the last word."""
    size = w["question.lstm.weight_hh_l0"].shape[1]
    h, c = np.zeros((layers, size)), np.zeros((layers, size))
    for index in indices:
        x = w["question.embedding.weight"][index]
        x = np.tanh(x) if word_tanh else x
        for k in range(layers):
            h[k], c[k] = lstm_step(w, k, x, h[k], c[k])
            x = h[k]
    return h[-1]


def forward(
    w: Weights, features: np.ndarray, question: np.ndarray, stacks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(channel, y, x)`` and a question's state -> logits and attention ``(layer, y,
    x)``."""
    _, height, width = features.shape
    cells = [features[:, y, x] for y in range(height) for x in range(width)]
    v = [np.tanh(w["image.weight"] @ cell + w["image.bias"]) for cell in cells]
    u, maps = question, []
    for k in range(stacks):
        asked = w[f"stacks.{k}.question.weight"] @ u + w[f"stacks.{k}.question.bias"]
        scores = np.zeros(len(v))
        for i, cell in enumerate(v):
            seen = w[f"stacks.{k}.image.weight"] @ cell + w[f"stacks.{k}.image.bias"]
            joint = np.tanh(seen + asked)
            score = w[f"stacks.{k}.score.weight"] @ joint + w[f"stacks.{k}.score.bias"]
            scores[i] = score[0]
        weights = softmax(scores)
        u = u + sum(p * cell for p, cell in zip(weights, v, strict=True))
        maps.append(weights.reshape(height, width))
    return w["answer.weight"] @ u + w["answer.bias"], np.stack(maps)
