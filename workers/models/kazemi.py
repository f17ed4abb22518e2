"""The VQA model of Kazemi and Elqursh ("Show, Ask, Attend, and Answer", 2017), any trunk.

The layout, sizes and parameter names are those of Cyanogenoid/pytorch-vqa, so that its released
weights load; the sizes are fields, so that small models of the family can be trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from schemas.base import Frozen
from schemas.frame import Frame
from workers.models.base import Capability, Geometry, HeadOutput, SplitModel, Tokens, Words
from workers.models.checkpoints import load_weights, read_model, save_model
from workers.models.preprocessing import Resize, square_crop, to_canvas
from workers.models.questions import check_different, final_states, word_indices
from workers.models.region_model import softmax_of
from workers.models.tokenisers import TOKENISERS
from workers.models.trunks import TRUNKS, TrunkName, trunk_shape

FORMAT = "vqatlas-kazemi-1"
"""Names our weight files; a file of another format is refused."""
AGAIN = "save the model again with workers.models.kazemi.save"


class KazemiConfig(Frozen):
    """Everything but the weights. The defaults are the published architecture."""

    trunk: TrunkName = "resnet152_caffe"
    channels: tuple[PositiveInt, ...] = (24, 32, 64, 96)
    """Widths of the small trunk: its stem, then one a block. Other trunks have their own."""
    image_size: PositiveInt = 448
    """Side of the square input, in pixels."""
    central_fraction: float = Field(default=0.875, gt=0, le=1)
    """Part of the shorter side that a centre crop keeps; 1 keeps all of it."""
    resize: Resize = "shorter_side_crop"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB, of pixels in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    embedding: PositiveInt = 300
    state: PositiveInt = 1024
    """Length of the question state, the LSTM's cell."""
    attention: PositiveInt = 512
    hidden: PositiveInt = 1024
    glimpses: PositiveInt = 2
    coordinates: bool = False
    """Append each cell's x and y, -1 to 1, to its features inside the head. Not in the paper; it
    lets a small model learn relations such as "left of"."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    tokeniser: Literal["pytorch_vqa", "simple"] = "pytorch_vqa"
    words: tuple[str, ...]
    """The question vocabulary. ``words[i]`` has embedding row i + 1; row 0 means unknown."""
    answers: tuple[str, ...]

    @field_validator("words", "answers")
    @classmethod
    def _all_different(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        check_different(entries)
        return entries


def feature_shape(config: KazemiConfig) -> tuple[int, int, int]:
    """Channels, height and width of the trunk's output."""
    return trunk_shape(config.trunk, config.channels, config.image_size)


class Text(nn.Module):
    """Question words -> the final **cell** state of an LSTM over their tanh embeddings."""

    def __init__(self, words: int, embedding: int, state: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, embedding, padding_idx=0)
        self.drop = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, state)

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """``embeddings (n, word, channel)`` and ``lengths (n,)`` -> ``(n, state)``.

        The state of an empty question is the LSTM's initial one, zero.
        """
        return final_states(self.lstm, self.drop(embeddings).tanh(), lengths)[1][0]


class Attention(nn.Module):
    """Glimpse logits over the cells, ``x_conv(relu(v_conv(v) + q_lin(q)))``, in two steps."""

    def __init__(self, channels: int, state: int, hidden: int, glimpses: int, drop: float) -> None:
        super().__init__()
        self.v_conv = nn.Conv2d(channels, hidden, 1, bias=False)
        self.q_lin = nn.Linear(state, hidden)
        self.x_conv = nn.Conv2d(hidden, glimpses, 1)
        self.drop = nn.Dropout(drop)
        self.relu = nn.ReLU()

    def image(self, v: Tensor) -> Tensor:
        """The part that no question changes: ``(n, channel, y, x)`` -> ``(n, hidden, y, x)``."""
        return self.v_conv(self.drop(v))

    def forward(self, image: Tensor, q: Tensor) -> Tensor:
        """``image (n, hidden, y, x)`` and ``q (n or 1, state)`` -> ``(n, glimpse, y, x)``."""
        question = self.q_lin(self.drop(q))[:, :, None, None]
        return self.x_conv(self.drop(self.relu(image + question)))


class Classifier(nn.Sequential):
    """Glimpses and question state, concatenated -> answer logits."""

    def __init__(self, inputs: int, hidden: int, answers: int, dropout: float) -> None:
        super().__init__()
        self.add_module("drop1", nn.Dropout(dropout))
        self.add_module("lin1", nn.Linear(inputs, hidden))
        self.add_module("relu", nn.ReLU())
        self.add_module("drop2", nn.Dropout(dropout))
        self.add_module("lin2", nn.Linear(hidden, answers))


class KazemiHead(SplitModel):
    """All of it but what makes the features: an LSTM, stacked attention of a few glimpses, and a
    classifier."""

    config: KazemiConfig

    def _make_head(self, config: KazemiConfig, shape: tuple[int, int, int]) -> None:
        """For features of this shape: channels, height and width."""
        channels, height, width = shape
        self.config = config
        self.answers = config.answers
        self.geometry = Geometry(
            input_height=config.image_size,
            input_width=config.image_size,
            feature_height=height,
            feature_width=width,
            glimpses=config.glimpses,
        )
        self._word_index = {word: i for i, word in enumerate(config.words, start=1)}
        drop, seen = config.dropout, channels + 2 * config.coordinates
        self.text = Text(len(config.words), config.embedding, config.state, drop)
        self.attention = Attention(seen, config.state, config.attention, config.glimpses, drop)
        fused = config.glimpses * seen + config.state
        self.classifier = Classifier(fused, config.hidden, len(config.answers), drop)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        height, width = image.shape[:2]
        config = self.config
        crop = square_crop(height, width, config.image_size, config.central_fraction, config.resize)
        return to_canvas(image, crop), crop.frame(height, width)

    def tokenise(self, question: str) -> Tokens:
        return TOKENISERS[self.config.tokeniser](question)

    def known(self, token: str) -> bool:
        return token in self._word_index

    def words(self, questions: Sequence[Tokens]) -> Words:
        indices, lengths = word_indices(questions, self._word_index, 0)
        return Words(self.text.embedding(indices.to(self.device)), lengths)

    def encode(self, words: Words) -> Tensor:
        return self.text(words.embeddings, words.lengths)

    def head(self, features: Tensor, states: Tensor) -> HeadOutput:
        """The published head: L2-normalised features, glimpses by softmax over the cells, then
        the classifier over [glimpse 1, glimpse 2, ..., question state]."""
        return self.head_over(features, states, None)

    def head_over(self, features: Tensor, states: Tensor, kept: Tensor | None) -> HeadOutput:
        """``head`` over the cells ``kept (n, cell)`` alone; the others get no attention."""
        v = self._normalised(features)
        glimpses, attention = self._glimpses(v, self.attention.image(v), states, kept)
        logits = self.classify(glimpses[None], states)[0]
        return HeadOutput(logits, attention.unflatten(2, v.shape[2:]))

    def pool(self, features: Tensor, states: Tensor) -> Tensor:
        """The glimpses; normalisation and ``v_conv`` are computed once for all questions."""
        return self.pool_over(features, states, None)

    def pool_over(self, features: Tensor, states: Tensor, kept: Tensor | None) -> Tensor:
        """``pool`` over the cells ``kept (n, cell)`` alone."""
        v = self._normalised(features)
        image = self.attention.image(v)
        return torch.stack([self._glimpses(v, image, state[None], kept)[0] for state in states], 1)

    def classify(self, pooled: Tensor, states: Tensor) -> Tensor:
        """The classifier over the glimpses and their question's state."""
        return self.classifier(torch.cat([pooled, states.expand(len(pooled), -1, -1)], 2))

    def _normalised(self, features: Tensor) -> Tensor:
        v = features / (features.norm(dim=1, keepdim=True) + 1e-8)
        return torch.cat([v, _cell_centres(v)], 1) if self.config.coordinates else v

    def _glimpses(
        self, v: Tensor, image: Tensor, states: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Glimpses ``(n, glimpse * channel)``, and the attention ``(n, glimpse, cell)`` that they
        are means of ``v`` under."""
        energies = self.attention(image, states).flatten(2)
        attention = energies.softmax(-1) if kept is None else softmax_of(energies, kept[:, None])
        return torch.einsum("ngp,ncp->ngc", attention, v.flatten(2)).flatten(1), attention


class Kazemi(KazemiHead):
    """The whole model on a convolutional trunk.

    Fresh instances have random weights and are trainable; ``ModelSpec.build`` freezes them.
    """

    provides = SplitModel.provides | {Capability.ATTENTION}

    def __init__(self, config: KazemiConfig) -> None:
        super().__init__()
        shape = feature_shape(config)
        self.trunk_net = TRUNKS[config.trunk](config.channels)
        self._make_head(config, shape)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def normalise(self, canvas: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (canvas.to(mean.dtype) / 255 - mean) / std

    def trunk(self, pixels: Tensor) -> Tensor:
        return self.trunk_net(pixels)


def _cell_centres(v: Tensor) -> Tensor:
    """x and y of each cell's centre, the image spanning -1 to 1: ``(n, 2, y, x)`` like ``v``."""
    y, x = (
        (2 * torch.arange(cells, dtype=v.dtype, device=v.device) + 1) / cells - 1
        for cells in v.shape[2:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy")).expand(len(v), -1, -1, -1)


def save(model: Kazemi, path: Path) -> None:
    """Weights and configuration in one safetensors file that ``load`` reads back."""
    save_model(model, model.config, path, FORMAT)


def load(path: Path) -> Kazemi:
    """The model that ``save`` wrote, on the CPU."""
    return assemble(*read(path), path)


def read(path: Path) -> tuple[KazemiConfig, dict[str, Tensor]]:
    """Configuration and weights of a file that ``save`` wrote."""
    return read_model(path, FORMAT, KazemiConfig, AGAIN)


def assemble(config: KazemiConfig, tensors: dict[str, Tensor], path: Path) -> Kazemi:
    """The model of this configuration with the weights of ``path``."""
    model = Kazemi(config)
    load_weights(model, tensors, path, AGAIN)
    return model
