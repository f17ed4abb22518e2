"""MMF's ``pythia`` from the facts about it alone: one image, one question, float64, on the
state_dict as it was saved."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: Sequence[float]) -> np.ndarray:
    e = np.exp(np.array(x) - max(x))
    return e / e.sum()


def tokens(words: Sequence[str], question: str) -> list[int]:
    """Fourteen numbers: 0 is padding and comes behind, 3 an unknown word, 4 the first of the
    vocabulary's."""
    text = question.lower().replace("'s", " 's").replace(",", "").replace("?", "")
    found = [part.strip() for part in re.split(r"(\W+)", text) if part.strip()][:14]
    own = [words.index(word) + 4 if word in words else 3 for word in found]
    return own + [0] * (14 - len(own))


def lstm(w: Weights, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The hidden state after every word; gates in the order input, forget, candidate, output."""
    name = "text_embeddings.0.module.recurrent_unit"
    h = c = np.zeros(w[f"{name}.weight_hh_l0"].shape[1])
    states = []
    for x in inputs:
        gates = w[f"{name}.weight_ih_l0"] @ x + w[f"{name}.bias_ih_l0"]
        gates = gates + w[f"{name}.weight_hh_l0"] @ h + w[f"{name}.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return states


def question_state(w: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The glimpses, one after another."""
    states = lstm(w, inputs)
    name = "text_embeddings.0.module"
    energies = []
    for h in states:
        hidden = w[f"{name}.conv1.weight"][:, :, 0] @ h + w[f"{name}.conv1.bias"]
        hidden = np.maximum(hidden, 0)
        energies.append(w[f"{name}.conv2.weight"][:, :, 0] @ hidden + w[f"{name}.conv2.bias"])
    glimpses = []
    for g in range(len(energies[0])):
        attention = softmax([energy[g] for energy in energies])
        glimpses.append(sum(a * h for a, h in zip(attention, states, strict=True)))
    return np.concatenate(glimpses)


def normed(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """A weight-normed layer, with one scale for the whole matrix."""
    g, v = w[f"{name}.weight_g"], w[f"{name}.weight_v"]
    return g * v @ x / np.sqrt((v**2).sum()) + w[f"{name}.bias"]


def relu(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return np.maximum(normed(w, f"{name}.layers.0", x), 0)


def branch(
    w: Weights, number: int, features: np.ndarray, q: np.ndarray, padded: int
) -> tuple[np.ndarray, np.ndarray]:
    """What attention sees of one kind of features, and the attention. As there: softmax over
    ``padded`` regions, of which those that are none then get 0 and the rest are divided by their
    sum and 1e-8."""
    name = f"image_feature_embeddings_list.{number}.0.image_attention_model.module"
    combination = f"{name}.combination_layer.module"
    rows = np.concatenate([features, np.zeros((padded - len(features), features.shape[1]))])
    encoder = f"image_feature_encoders.{number}.lc"
    if f"{encoder}.weight" in w:
        weight, bias = w[f"{encoder}.weight"], w[f"{encoder}.bias"]
        rows = np.array([np.maximum(weight @ v + bias, 0) for v in rows])
    asked = relu(w, f"{combination}.fa_txt", q)
    energies = [
        normed(w, f"{name}.transform.module.lc", relu(w, f"{combination}.fa_image", v) * asked)[0]
        for v in rows
    ]
    attention = softmax(energies)
    attention[len(features) :] = 0
    attention = attention / (attention.sum() + 1e-8)
    return attention @ rows, attention[: len(features)]


def logits(
    weights: Weights,
    words: Sequence[str],
    kinds: Sequence[np.ndarray],
    question: str,
    padded: int = 0,
    moved: Mapping[int, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the answers and the attention over all regions; ``kinds`` are arrays ``(region,
    channel)``, one a branch. ``moved`` puts another embedding at a place of the question."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    inputs = [w["word_embedding.weight"][number] for number in tokens(words, question)]
    for place, other in (moved or {}).items():
        inputs[place] = other
    q = question_state(w, inputs)
    found = [
        branch(w, i, features.astype(np.float64), q, max(padded, len(features)))
        for i, features in enumerate(kinds)
    ]
    image = np.concatenate([seen for seen, _ in found])
    layer = "image_text_multi_modal_combine_layer.module"
    joint = relu(w, f"{layer}.fa_image", image) * relu(w, f"{layer}.fa_txt", q)
    total = np.zeros(len(w["classifier.module.linear_text.bias"]))
    for kind in ("text", "image"):
        name = f"classifier.module.linear_{kind}"
        hidden = relu(w, f"classifier.module.f_o_{kind}", joint)
        total += w[f"{name}.weight"] @ hidden + w[f"{name}.bias"]
    return total, np.concatenate([attention for _, attention in found])
