"""The stacked attention network (Yang et al. 2016, "Stacked Attention Networks for Image Question
Answering"), any trunk.

The layout and sizes are those of abhshkdz/neural-vqa-attention, whose weights the authors of
VQA-HAT compared with people (Das et al. 2016); the sizes are fields, so that small models of the
family can be made.
"""

from pathlib import Path

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from workers.models.base import Capability, HeadOutput, SplitModel
from workers.models.checkpoints import load_weights, read_model, save_model
from workers.models.questions import final_states
from workers.models.squashed import SquashedConfig, SquashedModel
from workers.models.trunks import TrunkName

FORMAT = "vqatlas-san-1"
"""Names our weight files; a file of another format is refused."""
AGAIN = "save the model again with workers.models.san.save"


class SANConfig(SquashedConfig):
    """Everything but the weights. The defaults are neural-vqa-attention's SAN-2."""

    trunk: TrunkName = "vgg19"
    """VGG-19 up to and with ``pool5``."""
    image_size: PositiveInt = 448
    word_tanh: bool = False
    """Whether words pass a tanh before the LSTM, as in abhi608/sans-pytorch."""
    state: PositiveInt = 1024
    """Units of each LSTM layer, and length of a cell's vector: the two are added."""
    attention: PositiveInt = 512
    """Units in which image and question meet."""
    stacks: int = Field(default=2, ge=1, le=64)
    """Attention layers: how often the image is looked at."""


class Question(nn.Module):
    """Question words -> the output of an LSTM's last layer after the last word."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(config.words), config.embedding)
        self.drop = nn.Dropout(config.dropout)
        self.tanh = nn.Tanh() if config.word_tanh else nn.Identity()
        self.lstm = nn.LSTM(config.embedding, config.state, config.layers)

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """``embeddings (n, word, channel)`` and ``lengths (n,)`` -> ``(n, state)``. That of an
        empty question is the LSTM's initial one, zero."""
        return final_states(self.lstm, self.drop(self.tanh(embeddings)), lengths)[0][-1]


class Stack(nn.Module):
    """One attention layer (section 3.3): ``p_i = softmax(w tanh(W_v v_i + W_u u + b) + c)``; the
    bias ``b`` is two here, the image's and the question's, as in neural-vqa-attention."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        self.image = nn.Linear(config.state, config.attention)
        self.question = nn.Linear(config.state, config.attention)
        self.score = nn.Linear(config.attention, 1)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, v: Tensor, u: Tensor) -> Tensor:
        """``v (n, cell, state)`` and ``u (n, state)`` -> weights ``(n, cell)``, one in sum."""
        joint = self.drop(torch.tanh(self.image(v) + self.question(u)[:, None]))
        return self.score(joint)[..., 0].softmax(1)


class SAN(SquashedModel):
    """``u_0 = q``, ``u_k = u_(k-1) + sum_i p_ki v_i``, answers from ``u_K``; ``v_i = tanh(W x_i)``
    are the image's cells and ``p_k`` the k-th attention layer's weights over them.

    The attention is ``(n, layer, y, x)``. People are compared with the last layer's, so that is
    the map of the method ``attention``. Fresh instances have random weights and are trainable;
    ``ModelSpec.build`` freezes them.
    """

    provides = SplitModel.provides | {Capability.ATTENTION}
    config: SANConfig
    question: Question

    def __init__(self, config: SANConfig) -> None:
        super().__init__(config)
        glimpses = {"glimpses": config.stacks, "glimpse_map": "last"}
        self.geometry = self.geometry.model_copy(update=glimpses)
        self.question = Question(config)
        self.image = nn.Linear(self.channels, config.state)
        self.drop = nn.Dropout(config.dropout)
        self.stacks = nn.ModuleList(Stack(config) for _ in range(config.stacks))
        self.answer = nn.Linear(config.state, len(config.answers))

    def embed(self, indices: Tensor) -> Tensor:
        return self.question.embedding(indices)

    def head(self, features: Tensor, states: Tensor) -> HeadOutput:
        v = self.drop(torch.tanh(self.image(features.flatten(2).transpose(1, 2))))
        u, attention = states, []
        for stack in self.stacks:
            weights = stack(v, u)
            u = u + torch.einsum("np,npc->nc", weights, v)
            attention.append(weights.unflatten(1, features.shape[2:]))
        return HeadOutput(self.answer(self.drop(u)), torch.stack(attention, 1))


def save(model: SAN, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Weights and configuration in one safetensors file that ``load`` reads back."""
    save_model(model, model.config, path, FORMAT, dtype)


def load(path: Path) -> SAN:
    """The model that ``save`` wrote, on the CPU."""
    config, tensors = read_model(path, FORMAT, SANConfig, AGAIN)
    model = SAN(config)
    load_weights(model, tensors, path, AGAIN)
    return model


def untrained(config: SANConfig, seed: int) -> SAN:
    """A model to try geometry, memory and speed on. Its maps explain nothing.

    Weights are drawn from ``seed`` on the CPU without touching the global generator's state; those
    of the trunk's convolutions keep the variance (He et al. 2015), so that sixteen layers of VGG do
    not forget the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = SAN(config)
        for module in model.trunk_net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
