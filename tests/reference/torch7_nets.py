"""Published Torch7 networks run on their flat vectors, in NumPy float64: nothing is cut out or put
in another order before, each layer takes its numbers where the graph's parameters lie.

``Flat`` walks along a vector as ``getParameters`` laid it out; ``lstm.lua`` and ``netdef.lua`` of
VQA_LSTM_CNN, ``FastLSTM.lua`` of Element-Research/rnn and ``san.lua`` of neural-vqa-attention give
the layers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference.kazemi import sigmoid


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
