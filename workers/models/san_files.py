"""The published weights of stacked attention networks, of two projects.

**abhshkdz/neural-vqa-attention**, ``san2_150000.t7`` (two attention layers) or ``san1_120000.t7``
(one): a table whose ``opt`` states the sizes and whose ``model_params`` is one flat vector, which
``getParameters`` made of the network's parameters in the order of its modules. The order, which no
size tells, was derived by applying nngraph's topological sort (``Graph:topsort``) to the published
graph; it puts the attention layers' softmaxes at modules 22 and 35, where the project's own
``eval.lua`` reads them:

* ``LookupTableMaskZero``: a row for padding, then one a word, of ``embedding`` numbers;
* for each LSTM layer a ``FastLSTM``: ``Linear(input, 4 * state)``, and ``LinearNoBias(state, 4 *
  state)``, gates stacked input, candidate, forget, output;
* ``Linear(512, state)`` of the image;
* the attention layers' ``Linear(state, attention)`` of the image, **the last layer's first**;
* for each attention layer ``Linear(state, attention)`` of the question and ``Linear(attention,
  1)``;
* ``Linear(state, answers)``.

**abhi608/sans-pytorch**: ``question_model.pkl``, ``image_model.pkl`` and ``attention_model.pkl``,
state_dicts that ``torch.save`` wrote, as three files or merged into one. Assumed are the question
model with ``lookuptable`` (no bias, then tanh) and ``LSTM``, whose output at the last word is
taken; the image model's ``linear``; ``fcK1`` (question), ``fcK2`` (image, no bias) and ``fcK3`` for
attention layer K, and ``fc``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import UserError
from workers.models.checkpoints import load_weights, read_state_dict
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
from workers.models.san import SAN, SANConfig, save
from workers.models.torch7 import is_torch7, read_torch7
from workers.models.trunks import trunk_shape
from workers.models.vgg import load_vgg

KEY = "model_params"
GATES = "igfo"
OPTIONS = {
    "embedding_size": "embedding",
    "rnn_size": "state",
    "common_embedding_size": "attention",
    "num_attention_layers": "stacks",
}
HEAD = ("question", "image", "stacks", "answer")
PYTORCH = {"word_tanh": True, "embedding": 500}
"""What sans-pytorch does otherwise."""
REMEDY = (
    "give sans-pytorch's question_model.pkl, image_model.pkl and attention_model.pkl, and --set "
    "the sizes they were trained with"
)
OUR_NAMES = {
    "lookuptable": "question.embedding",
    "LSTM": "question.lstm",
    "linear": "image",
    "fc": "answer",
}
SIDES = {"1": "question", "2": "image", "3": "score"}
"""The last figure of ``fc11`` and what it is; those before it count the attention layers."""


def convert(sources: Sources, sizes: Mapping[str, Any], out: Path) -> SAN:
    """The weights of either project, their vocabulary (``params.json``) and the VGG-19's state_dict
    as one file of ours."""
    if is_torch7(sources.weights[0]):
        path = one_file(sources)
        table = read_torch7(path)
        config = configure(SANConfig, sources, {**stated_sizes(table), **sizes})
        weights = read(table, config, path)
    else:
        config = configure(SANConfig, sources, {**PYTORCH, **sizes})
        weights = read_pytorch(sources.weights, config)
    model = SAN(config)
    head = nn.ModuleDict({part: getattr(model, part) for part in HEAD})
    load_weights(head, weights, sources.weights[0], REMEDY)
    load_vgg(model.trunk_net, None, sources.trunk, config.trunk)
    save(model, out)
    return model


def stated_sizes(table: Any) -> dict[str, Any]:
    """The sizes that the file's own ``opt`` states, under our names; they may be none or nonsense,
    which the configuration will refuse."""
    options = table.get("opt") if isinstance(table, dict) else None
    stated = options if isinstance(options, dict) else {}
    return {ours: stated[theirs] for theirs, ours in OPTIONS.items() if theirs in stated}


def read(table: Any, config: SANConfig, path: Path) -> dict[str, Tensor]:
    """The weights of all but the image network in a ``.t7``'s table, under our names."""
    parts, sizes = layout(config)
    found = cut(vector(table, KEY, path), parts, KEY, path, sizes)
    found["question.embedding.weight"] = found["question.embedding.weight"][1:]  # 0 is padding
    for k in range(config.layers):
        found[f"question.lstm.bias_hh_l{k}"] = torch.zeros(4 * config.state)
    return {
        name: reorder_gates(tensor, GATES) if ".lstm." in name else tensor
        for name, tensor in found.items()
    }


def layout(config: SANConfig) -> tuple[list[Part], str]:
    """What lies in the file's vector, and which sizes its length follows from."""
    state, attention, stacks = config.state, config.attention, range(config.stacks)
    parts = [Part("question.embedding.weight", (len(config.words) + 1, config.embedding))]
    for k in range(config.layers):
        inputs = state if k else config.embedding
        parts.append(Part(f"question.lstm.weight_ih_l{k}", (4 * state, inputs)))
        parts.append(Part(f"question.lstm.bias_ih_l{k}", (4 * state,)))
        parts.append(Part(f"question.lstm.weight_hh_l{k}", (4 * state, state)))
    parts += linear("image", _channels(config), state)
    for k in reversed(stacks):
        parts += linear(f"stacks.{k}.image", state, attention)
    for k in stacks:
        parts += linear(f"stacks.{k}.question", state, attention)
        parts += linear(f"stacks.{k}.score", attention, 1)
    parts += linear("answer", state, len(config.answers))
    return parts, (
        f"{len(config.words)} words, {len(config.answers)} answers, embedding={config.embedding}, "
        f"state={state}, layers={config.layers}, attention={attention}, stacks={config.stacks}"
    )


def read_pytorch(paths: Sequence[Path], config: SANConfig) -> dict[str, Tensor]:
    """The weights of all but the image network in sans-pytorch's files, under our names."""
    found: dict[str, Tensor] = {}
    for path in paths:
        state = read_state_dict(path)
        twice = next((name for name in state if name in found), None)
        if twice is not None:
            raise UserError(f"{path} has a tensor {twice!r} that a file before it has; {REMEDY}")
        found |= state
    published = _published(config)
    load_weights(published, found, ", ".join(map(str, paths)), REMEDY)
    weights = {_our_name(name): t for name, t in published.state_dict().items()}
    embedding = "question.embedding.weight"  # (embedding, word), on a one-hot word
    weights[embedding] = weights[embedding].T.contiguous()
    for k in range(config.stacks):
        weights[f"stacks.{k}.image.bias"] = torch.zeros(config.attention)
    return weights


def _published(config: SANConfig) -> nn.ModuleDict:
    """The three models of sans-pytorch as one, with their names and shapes."""
    state, attention = config.state, config.attention
    parts: dict[str, nn.Module] = {
        "lookuptable": nn.Linear(len(config.words), config.embedding, bias=False),
        "LSTM": nn.LSTM(config.embedding, state, config.layers),
        "linear": nn.Linear(_channels(config), state),
        "fc": nn.Linear(state, len(config.answers)),
    }
    for k in range(1, config.stacks + 1):
        parts[f"fc{k}1"] = nn.Linear(state, attention)
        parts[f"fc{k}2"] = nn.Linear(state, attention, bias=False)
        parts[f"fc{k}3"] = nn.Linear(attention, 1)
    return nn.ModuleDict(parts)


def _our_name(name: str) -> str:
    part, kind = name.split(".", 1)
    if part in OUR_NAMES:
        return f"{OUR_NAMES[part]}.{kind}"
    stack, side = part.removeprefix("fc")[:-1], part[-1]
    return f"stacks.{int(stack) - 1}.{SIDES[side]}.{kind}"


def _channels(config: SANConfig) -> int:
    return trunk_shape(config.trunk, config.channels, config.image_size)[0]
