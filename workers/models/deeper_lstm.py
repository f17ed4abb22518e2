"""Deeper LSTM Q + norm I (Lu et al. 2015, VT-vision-lab/VQA_LSTM_CNN), any trunk.

A two-layer LSTM reads the question; image and question meet in a combine layer, the product of
both after ``tanh``. The layout and sizes are those of the published code; the sizes are fields, so
that small models of the family can be trained.
"""

from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from workers.models.base import CombineModel
from workers.models.checkpoints import load_weights, read_model, save_model
from workers.models.questions import final_states
from workers.models.squashed import SquashedConfig, SquashedModel
from workers.models.trunks import TrunkName

FORMAT = "vqatlas-deeper-lstm-1"
"""Names our weight files; a file of another format is refused."""
AGAIN = "save the model again with workers.models.deeper_lstm.save"


class DeeperLSTMConfig(SquashedConfig):
    """Everything but the weights. The defaults are the published architecture."""

    trunk: TrunkName = "vgg19_relu5_4"
    image_size: PositiveInt = 224
    pool: PositiveInt = 2
    """Side of the max-pooling between the trunk's map and the fully connected layers."""
    fully: tuple[PositiveInt, ...] = (4096, 4096)
    """Widths of the fully connected layers, VGG's fc6 and fc7, each followed by a ReLU."""
    state: PositiveInt = 512
    """Units of each LSTM layer."""
    combine: PositiveInt = 1024
    """Neurons of the combine layer."""


class Question(nn.Module):
    """Question words -> ``[c1, h1, c2, h2]``, cell and output of every LSTM layer."""

    def __init__(self, config: DeeperLSTMConfig) -> None:
        super().__init__()
        self.embedding = nn.Linear(len(config.words), config.embedding)
        self.drop = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding, config.state, config.layers, dropout=between)

    def embed(self, indices: Tensor) -> Tensor:
        """The embedding is linear on a one-hot word and has a bias: ``W[:, w] + b``."""
        return self.embedding.weight.T[indices] + self.embedding.bias

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """``embeddings (n, word, channel)`` and ``lengths (n,)`` -> ``(n, 2 * layers * state)``.

        The state of an empty question is the LSTM's initial one, zero.
        """
        hidden, cell = final_states(self.lstm, self.drop(embeddings).tanh(), lengths)
        return torch.cat([*torch.stack([cell, hidden], 1).flatten(0, 1)], 1)  # c1, h1, c2, h2


class Image(nn.Module):
    """The trunk's map -> fully connected features, L2-normalised."""

    def __init__(self, inputs: int, config: DeeperLSTMConfig) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(config.pool)
        self.fully = nn.Sequential()
        for width in config.fully:
            self.fully.append(nn.Linear(inputs, width))
            self.fully.append(nn.ReLU())
            self.fully.append(nn.Dropout(config.dropout))
            inputs = width

    def forward(self, features: Tensor) -> Tensor:
        """``(n, channel, y, x)`` -> ``(n, width)`` of length one. As published, the norm has no
        epsilon: an image whose features are all zero has no answer."""
        seen = self.fully(self.pool(features).flatten(1))
        return seen / seen.norm(dim=1, keepdim=True)


class DeeperLSTM(SquashedModel, CombineModel):
    """``answer(tanh(W_q q) * tanh(W_i i))`` with ``q`` of a two-layer LSTM and ``i`` the
    normalised features of a network whose fully connected layers belong to the head, so that the
    trunk's output is the last convolutional map.

    Fresh instances have random weights and are trainable; ``ModelSpec.build`` freezes them.
    """

    config: DeeperLSTMConfig
    question: Question

    def __init__(self, config: DeeperLSTMConfig) -> None:
        super().__init__(config)
        geometry = self.geometry
        self.geometry = geometry.model_copy(update={"combine": config.combine})
        cells = (geometry.feature_height // config.pool) * (geometry.feature_width // config.pool)
        self.image = Image(self.channels * cells, config)
        self.question = Question(config)
        self.drop = nn.Dropout(config.dropout)
        self.question_in = nn.Linear(2 * config.layers * config.state, config.combine)
        self.image_in = nn.Linear(config.fully[-1], config.combine)
        self.answer = nn.Linear(config.combine, len(config.answers))

    def embed(self, indices: Tensor) -> Tensor:
        return self.question.embed(indices)

    def combine(self, features: Tensor, states: Tensor) -> Tensor:
        return self._image_side(features) * self._question_side(states)

    def answer_from_combine(self, combined: Tensor) -> Tensor:
        return self.answer(self.drop(combined))

    def pool(self, features: Tensor, states: Tensor) -> Tensor:
        """The image's side of the combine layer, the same for all questions."""
        return self._image_side(features)[:, None].expand(-1, len(states), -1)

    def classify(self, pooled: Tensor, states: Tensor) -> Tensor:
        return self.answer_from_combine(pooled * self._question_side(states))

    def _image_side(self, features: Tensor) -> Tensor:
        return self.image_in(self.image(features)).tanh()

    def _question_side(self, states: Tensor) -> Tensor:
        return self.question_in(self.drop(states)).tanh()


def save(model: DeeperLSTM, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Weights and configuration in one safetensors file that ``load`` reads back."""
    save_model(model, model.config, path, FORMAT, dtype)


def load(path: Path) -> DeeperLSTM:
    """The model that ``save`` wrote, on the CPU."""
    config = read_model(path, FORMAT, DeeperLSTMConfig, AGAIN)
    return assemble(*config, path)


def assemble(config: DeeperLSTMConfig, tensors: dict[str, Tensor], path: Path) -> DeeperLSTM:
    """The model of this configuration with the weights of ``path``."""
    model = DeeperLSTM(config)
    load_weights(model, tensors, path, AGAIN)
    return model


def untrained(config: DeeperLSTMConfig, seed: int) -> DeeperLSTM:
    """A model to try geometry, memory and speed on. Its maps explain nothing.

    Weights are drawn from ``seed`` on the CPU without touching the global generator's state;
    before a ReLU they keep the variance (He et al. 2015), so that sixteen layers of VGG do not
    forget the image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DeeperLSTM(config)
        for module in [*model.trunk_net.modules(), *model.image.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
