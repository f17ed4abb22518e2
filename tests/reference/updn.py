"""hengyuan-hu/bottom-up-attention-vqa's ``baseline0_newatt`` from the facts about it alone: one
image, one question, float64, on the state_dict as it was saved; ``baseline0``, and the fork of
self_critical_vqa."""

from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]


def normed(w: Weights, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight normalisation with one scale for the whole matrix, and the bias."""
    g, v = w[f"module.{name}.weight_g"], w[f"module.{name}.weight_v"]
    return g * v / np.sqrt((v**2).sum()), w[f"module.{name}.bias"]


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    weight, bias = normed(w, name)
    return weight @ x + bias


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru(w: Weights, inputs: list[np.ndarray]) -> np.ndarray:
    """The state after the last word; gates in the order reset, update, new."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    wi, wh, bi, bh = (w[f"module.q_emb.rnn.{name}"] for name in names)
    h = np.zeros(wh.shape[1])
    for x in inputs:
        ir, iz, i_new = np.split(wi @ x + bi, 3)
        hr, hz, h_new = np.split(wh @ h + bh, 3)
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        h = (1 - z) * np.tanh(i_new + r * h_new) + z * h
    return h


def tokens(word2idx: Mapping[str, int], question: str) -> list[int]:
    """Fourteen numbers, padding in front; unknown words are padding too."""
    text = question.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    own = [word2idx.get(word, len(word2idx)) for word in text.split()][:14]
    return [len(word2idx)] * (14 - len(own)) + own


def logits(
    weights: Weights,
    word2idx: Mapping[str, int],
    features: np.ndarray,
    question: str,
    moved: Mapping[int, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the answers and the attention over regions; ``features (region, channel)``.
    ``moved`` puts another embedding at a place of the padded question."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    embedding = w["module.w_emb.emb.weight"]
    inputs = [embedding[i] for i in tokens(word2idx, question)]
    for place, other in (moved or {}).items():
        inputs[place] = other
    q = gru(w, inputs)
    asked = relu(linear(w, "v_att.q_proj.main.0", q))
    energies = []
    for v in features.astype(np.float64):
        seen = relu(linear(w, "v_att.v_proj.main.0", v))
        energies.append(linear(w, "v_att.linear", seen * asked)[0])
    attention = np.exp(energies) / np.exp(energies).sum()
    image = sum(a * v for a, v in zip(attention, features.astype(np.float64), strict=True))
    joint = relu(linear(w, "q_net.main.0", q)) * relu(linear(w, "v_net.main.0", image))
    hidden = relu(linear(w, "classifier.main.0", joint))
    return linear(w, "classifier.main.3", hidden), attention


def softmax(energies: list[float]) -> np.ndarray:
    e = np.exp(np.array(energies) - max(energies))
    return e / e.sum()


def answer(w: Weights, q: np.ndarray, image: np.ndarray) -> np.ndarray:
    joint = relu(linear(w, "q_net.main.0", q)) * relu(linear(w, "v_net.main.0", image))
    return linear(w, "classifier.main.3", relu(linear(w, "classifier.main.0", joint)))


def concatenating(
    weights: Weights, word2idx: Mapping[str, int], features: np.ndarray, question: str
) -> tuple[np.ndarray, np.ndarray]:
    """``baseline0``: logits and attention."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    embedding = w["module.w_emb.emb.weight"]
    q = gru(w, [embedding[i] for i in tokens(word2idx, question)])
    seen = [relu(linear(w, "v_att.nonlinear.main.0", np.concatenate([v, q]))) for v in features]
    attention = softmax([linear(w, "v_att.linear", x)[0] for x in seen])
    return answer(w, q, attention @ features.astype(np.float64)), attention


def forked(
    weights: Weights, numbers: list[int], features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The fork, of a question's padded numbers: logits and attention."""
    w = {f"module.{name}": value.astype(np.float64) for name, value in weights.items()}
    cell = "module.q_emb.rnn.gru_cell.weight"
    h = np.zeros(w[f"{cell}_hh.weight"].shape[1])
    for number in numbers:
        x = w["module.w_emb.emb.weight"][number]
        ir, iz, i_new = np.split(w[f"{cell}_ih.weight"] @ x + w[f"{cell}_ih.bias"], 3)
        hr, hz, h_new = np.split(w[f"{cell}_hh.weight"] @ h + w[f"{cell}_hh.bias"], 3)
        new = np.tanh(i_new + sigmoid(ir + hr) * h_new)
        h = new + sigmoid(iz + hz) * (h - new)
    attention = np.zeros(len(features))
    for name in ("gv_att_1", "gv_att_2"):
        asked = relu(linear(w, f"{name}.q_proj.main.0", h))
        seen = [relu(linear(w, f"{name}.v_proj.main.0", v)) * asked for v in features]
        deeper = [relu(linear(w, f"{name}.nonlinear.main.0", x)) for x in seen]
        attention += softmax([linear(w, f"{name}.linear", x)[0] for x in deeper])
    w |= {n.replace("gv_net", "v_net"): t for n, t in w.items() if "gv_net" in n}
    return answer(w, h, attention @ features.astype(np.float64)), attention
