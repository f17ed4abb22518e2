"""The forward pass of pytorch-vqa's network, word by word and cell by cell, in NumPy float64."""

from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def question_state(w: Weights, indices: Sequence[int]) -> np.ndarray:
    """The LSTM's final cell; PyTorch stacks the gates as input, forget, candidate, output."""
    size = w["text.lstm.weight_hh_l0"].shape[1]
    h, c = np.zeros(size), np.zeros(size)
    for index in indices:
        x = np.tanh(w["text.embedding.weight"][index])
        gates = w["text.lstm.weight_ih_l0"] @ x + w["text.lstm.bias_ih_l0"]
        gates = gates + w["text.lstm.weight_hh_l0"] @ h + w["text.lstm.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return c


def forward(
    w: Weights, features: np.ndarray, indices: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(channel, y, x)`` and word indices -> logits and attention ``(glimpse, y, x)``."""
    q = question_state(w, indices)
    channels, height, width = features.shape
    glimpses = w["attention.x_conv.weight"].shape[0]
    v = np.zeros_like(features)
    logits = np.zeros((glimpses, height, width))
    for y in range(height):
        for x in range(width):
            cell = features[:, y, x]
            v[:, y, x] = cell / (np.sqrt((cell**2).sum()) + 1e-8)
            image = w["attention.v_conv.weight"][:, :, 0, 0] @ v[:, y, x]
            question = w["attention.q_lin.weight"] @ q + w["attention.q_lin.bias"]
            joint = np.maximum(image + question, 0)
            logits[:, y, x] = (
                w["attention.x_conv.weight"][:, :, 0, 0] @ joint + w["attention.x_conv.bias"]
            )
    attention = np.stack([softmax(glimpse.ravel()).reshape(height, width) for glimpse in logits])
    seen = [(attention[g] * v[k]).sum() for g in range(glimpses) for k in range(channels)]
    fused = np.concatenate([seen, q])
    hidden = np.maximum(w["classifier.lin1.weight"] @ fused + w["classifier.lin1.bias"], 0)
    return w["classifier.lin2.weight"] @ hidden + w["classifier.lin2.bias"], attention
