"""The published weights of Deeper LSTM Q + norm I: ``lstm.t7`` of VT-vision-lab/VQA_LSTM_CNN.

A table of three flat vectors, each of which ``getParameters`` made of a network's parameters in
the order of its modules. That order, which no size tells, was derived by applying nngraph's
topological sort (``Graph:topsort``: depth first from the output, inputs in their order) to the
published graphs:

* ``embedding_w_q``: ``Linear(V, 200)`` on a one-hot word;
* ``encoder_w_q``: for each layer ``i2h = Linear(input, 4 * 512)``, ``h2h = Linear(512, 4 * 512)``,
  both with biases, gates stacked input, forget, output, candidate; at last ``Linear(512, 1)``,
  whose output nothing uses;
* ``multimodal_w``: question ``Linear(2048, 1024)``, image ``Linear(4096, 1024)``, answer
  ``Linear(1024, 1000)``.

Each ``Linear`` is its weight ``(output, input)``, row by row, and its bias.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workers.models.checkpoints import load_weights
from workers.models.deeper_lstm import DeeperLSTM, DeeperLSTMConfig, save
from workers.models.flat import (
    Part,
    Sources,
    configure,
    cut,
    linear,
    one_file,
    reorder_gates,
    vector,
)
from workers.models.torch7 import read_torch7
from workers.models.vgg import load_vgg

GATES = "ifog"
HEAD = ("question", "question_in", "image_in", "answer")


def convert(sources: Sources, sizes: Mapping[str, Any], out: Path) -> DeeperLSTM:
    """``lstm.t7``, ``data_prepro.json`` and the VGG-19's state_dict, up to fc7, as one file of
    ours."""
    path = one_file(sources)
    config = configure(DeeperLSTMConfig, sources, sizes)
    weights = read(path, config)
    model = DeeperLSTM(config)
    head = nn.ModuleDict({part: getattr(model, part) for part in HEAD})
    load_weights(head, weights, path, "give the file that train.lua wrote")
    load_vgg(model.trunk_net, model.image.fully, sources.trunk, config.trunk)
    save(model, out)
    return model


def read(path: Path, config: DeeperLSTMConfig) -> dict[str, Tensor]:
    """The weights of all but the image network, under our names."""
    table = read_torch7(path)
    found: dict[str, Tensor] = {}
    for key, (parts, sizes) in layout(config).items():
        found |= cut(vector(table, key, path), parts, key, path, sizes)
    weights = {name: t for name, t in found.items() if not name.startswith("unused.")}
    return {
        name: reorder_gates(tensor, GATES) if ".lstm." in name else tensor
        for name, tensor in weights.items()
    }


def layout(config: DeeperLSTMConfig) -> dict[str, tuple[list[Part], str]]:
    """What lies in each of the file's vectors, and which sizes its length follows from."""
    words, width, state = len(config.words), config.embedding, config.state
    encoder = []
    for k in range(config.layers):
        inputs = state if k else width
        for side, given in (("ih", inputs), ("hh", state)):
            name = f"question.lstm.{{}}_{side}_l{k}"
            encoder.append(Part(name.format("weight"), (4 * state, given)))
            encoder.append(Part(name.format("bias"), (4 * state,)))
    answers, joint = len(config.answers), config.combine
    return {
        "embedding_w_q": (
            linear("question.embedding", words, width),
            f"{words} words and embedding={width}",
        ),
        "encoder_w_q": (
            encoder + linear("unused", state, 1),
            f"embedding={width}, state={state} and layers={config.layers}",
        ),
        "multimodal_w": (
            linear("question_in", 2 * config.layers * state, joint)
            + linear("image_in", config.fully[-1], joint)
            + linear("answer", joint, answers),
            f"combine={joint}, state={state}, layers={config.layers}, fully={[*config.fully]} "
            f"and {answers} answers",
        ),
    }
