"""What Deeper LSTM and SAN do alike with image and question: squashed, in Caffe's colours."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from schemas.frame import Frame
from workers.models.base import SplitModel, Tokens
from workers.models.preprocessing import square_crop, to_canvas
from workers.models.tokenisers import TOKENISERS


class SquashedModel(SplitModel):
    """A model whose configuration has ``image_size``, ``bgr``, ``tokeniser`` and ``max_words``,
    with buffers ``mean`` and ``std (3, 1, 1)``."""

    config: Any
    trunk_net: nn.Module
    _word_index: dict[str, int]

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """The whole image is seen. Pillow's bilinear filter averages where it shrinks; the
        published code's (Torch's) picks single pixels."""
        height, width = image.shape[:2]
        crop = square_crop(height, width, self.config.image_size, 1.0, "squash")
        return to_canvas(image, crop), crop.frame(height, width)

    def tokenise(self, question: str) -> Tokens:
        return TOKENISERS[self.config.tokeniser](question)[: self.config.max_words]

    def known(self, token: str) -> bool:
        return token in self._word_index

    def normalise(self, canvas: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = (canvas.to(mean.dtype) - mean) / std
        return pixels.flip(1) if self.config.bgr else pixels

    def trunk(self, pixels: Tensor) -> Tensor:
        return self.trunk_net(pixels)
