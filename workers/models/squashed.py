"""What Deeper LSTM and SAN do alike with image and question: squashed, in Caffe's colours."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from schemas.base import Frozen
from schemas.frame import Frame
from workers.models.base import Geometry, SplitModel, Tokens, Words
from workers.models.preprocessing import square_crop, to_canvas
from workers.models.questions import UNKNOWN, check_vocabularies, word_indices
from workers.models.tokenisers import TOKENISERS, TokeniserName
from workers.models.trunks import TRUNKS, TrunkName, trunk_shape


class SquashedConfig(Frozen):
    """Of the image, the words and the answers; each family says which trunk and side."""

    trunk: TrunkName
    channels: tuple[PositiveInt, ...] = (24, 32, 64, 96)
    """Widths of the small trunk. Other trunks have their own."""
    image_size: PositiveInt
    """Side of the square input, in pixels; the image is squashed into it."""
    bgr: bool = True
    """Whether the trunk takes blue, green, red (as Caffe) rather than red, green, blue."""
    mean: tuple[float, float, float] = (123.68, 116.779, 103.939)
    """RGB, of pixels in 0..255."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    embedding: PositiveInt = 200
    layers: int = Field(default=2, ge=1, le=64)
    """Of the LSTM."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    tokeniser: TokeniserName = "nltk"
    max_words: PositiveInt = 26
    """Longer questions are cut off here."""
    words: tuple[str, ...]
    """The question vocabulary; its last entry is ``UNK``."""
    answers: tuple[str, ...]

    @model_validator(mode="after")
    def _vocabularies(self) -> Self:
        check_vocabularies(self.words, self.answers)
        return self


class SquashedModel(SplitModel):
    """A trunk over a squashed image, and a network ``question`` that encodes embedded words."""

    config: SquashedConfig
    question: nn.Module

    def __init__(self, config: SquashedConfig) -> None:
        super().__init__()
        self.channels, height, width = trunk_shape(config.trunk, config.channels, config.image_size)
        self.config = config
        self.answers = config.answers
        self.geometry = Geometry(
            input_height=config.image_size,
            input_width=config.image_size,
            feature_height=height,
            feature_width=width,
        )
        self._word_index = {word: i for i, word in enumerate(config.words)}
        self.trunk_net = TRUNKS[config.trunk](config.channels)
        for name, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """The whole image is seen. Pillow's bilinear filter averages where it shrinks; the
        published code's (Torch's) picks single pixels."""
        height, width = image.shape[:2]
        crop = square_crop(height, width, self.config.image_size, 1.0, "squash")
        return to_canvas(image, crop), crop.frame(height, width)

    def tokenise(self, question: str) -> Tokens:
        return self._all_words(question)[: self.config.max_words]

    def cut_off(self, question: str) -> Tokens:
        return self._all_words(question)[self.config.max_words :]

    def _all_words(self, question: str) -> Tokens:
        return TOKENISERS[self.config.tokeniser](question)

    def known(self, token: str) -> bool:
        return token in self._word_index

    def words(self, questions: Sequence[Tokens]) -> Words:
        unknown = self._word_index[UNKNOWN]
        indices, lengths = word_indices(questions, self._word_index, unknown)
        return Words(self.embed(indices.to(self.device)), lengths)

    @abstractmethod
    def embed(self, indices: Tensor) -> Tensor:
        """Words' positions in the vocabulary ``(n, word)`` -> ``(n, word, channel)``."""

    def encode(self, words: Words) -> Tensor:
        return self.question(words.embeddings, words.lengths)

    def normalise(self, canvas: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = (canvas.to(mean.dtype) - mean) / std
        return pixels.flip(1) if self.config.bgr else pixels

    def trunk(self, pixels: Tensor) -> Tensor:
        return self.trunk_net(pixels)
