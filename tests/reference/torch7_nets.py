"""Published Torch7 networks run on their flat vectors, in NumPy float64: nothing is cut out or put
in another order before, each layer takes its numbers where the graph's parameters lie.

``Flat`` walks along a vector as ``getParameters`` laid it out; ``lstm.lua`` and ``netdef.lua`` of
VQA_LSTM_CNN, ``FastLSTM.lua`` of Element-Research/rnn and ``san.lua`` of neural-vqa-attention give
the layers.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.reference.kazemi import sigmoid, softmax


class Flat:
    """A place in a vector of parameters."""

    def __init__(self, vector: np.ndarray) -> None:
        self.vector, self.at = vector.astype(np.float64), 0

    def take(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        taken = self.vector[self.at : self.at + count].reshape(shape)
        self.at += count
        assert len(taken.ravel()) == count
        return taken

    def linear(self, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        return self.take(outputs, inputs), self.take(outputs)

    def end(self) -> None:
        assert self.at == len(self.vector)


def apply(layer: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    return layer[0] @ x + layer[1]


def deeper_lstm(
    vectors: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    words: Sequence[int],
    image: np.ndarray,
) -> np.ndarray:
    """Logits; ``words`` count from 1 as the published files do, ``image`` is fc7's output, of
    length one."""
    width, state, layers = sizes["embedding"], sizes["state"], sizes["layers"]
    flat = Flat(vectors["embedding_w_q"])
    embedding = flat.linear(sizes["words"], width)
    flat.end()
    flat = Flat(vectors["encoder_w_q"])
    cells = []
    for k in range(layers):
        i2h = flat.linear(state if k else width, 4 * state)
        cells.append((i2h, flat.linear(state, 4 * state)))
    flat.linear(state, 1)
    flat.end()
    c, h = np.zeros((layers, state)), np.zeros((layers, state))
    for word in words:
        x = np.tanh(apply(embedding, np.eye(sizes["words"])[word - 1]))
        for k, (i2h, h2h) in enumerate(cells):
            sums = apply(i2h, x) + apply(h2h, h[k])
            gates = sigmoid(sums[: 3 * state])
            entered, kept, shown = np.split(gates, 3)
            c[k] = kept * c[k] + entered * np.tanh(sums[3 * state :])
            x = h[k] = shown * np.tanh(c[k])
    question = np.concatenate([part for k in range(layers) for part in (c[k], h[k])])
    flat, joint = Flat(vectors["multimodal_w"]), sizes["combine"]
    question_in = flat.linear(2 * layers * state, joint)
    image_in = flat.linear(len(image), joint)
    answer = flat.linear(joint, sizes["answers"])
    flat.end()
    return apply(answer, np.tanh(apply(question_in, question)) * np.tanh(apply(image_in, image)))


def fast_lstm(flat: Flat, inputs: int, state: int) -> Callable[[np.ndarray], np.ndarray]:
    """One ``nn.FastLSTM``: its gates are input, candidate, forget, output; only the input's
    ``Linear`` has a bias."""
    i2g, o2g = flat.linear(inputs, 4 * state), flat.take(4 * state, state)
    memory = {"h": np.zeros(state), "c": np.zeros(state)}

    def step(x: np.ndarray) -> np.ndarray:
        entered, candidate, kept, shown = np.split(apply(i2g, x) + o2g @ memory["h"], 4)
        memory["c"] = sigmoid(kept) * memory["c"] + sigmoid(entered) * np.tanh(candidate)
        memory["h"] = sigmoid(shown) * np.tanh(memory["c"])
        return memory["h"]

    return step


def san(
    vector: np.ndarray, sizes: Mapping[str, int], words: Sequence[int], features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and attention ``(layer, cell)``, of ``words`` counted from 1 and features ``(channel,
    y, x)``; the parameters in the order of ``san.lua``'s sorted graph."""
    state, attention, stacks = sizes["state"], sizes["attention"], sizes["stacks"]
    flat = Flat(vector)
    lookup = flat.take(sizes["words"] + 1, sizes["embedding"])
    lower = fast_lstm(flat, sizes["embedding"], state)
    upper = fast_lstm(flat, state, state)
    image = flat.linear(len(features), state)
    image_common = {k: flat.linear(state, attention) for k in range(stacks, 0, -1)}
    v = [np.tanh(apply(image, cell)) for cell in features.reshape(len(features), -1).T]
    u = np.zeros(state)
    for word in words:
        u = upper(lower(lookup[word]))  # LookupTableMaskZero adds one: row 0 is padding
    maps = []
    for k in range(1, stacks + 1):
        question_common, score = flat.linear(state, attention), flat.linear(attention, 1)
        asked = apply(question_common, u)
        h = [apply(score, np.tanh(apply(image_common[k], cell) + asked))[0] for cell in v]
        maps.append(softmax(np.array(h)))
        u = u + np.stack(v).T @ maps[-1]
    logits = apply(flat.linear(state, sizes["answers"]), u)
    flat.end()
    return logits, np.stack(maps)
