"""From a photo to a model's square canvas, and the frame that says what of the photo is left."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schemas.base import Frozen
from schemas.frame import Frame

Resize = Literal["shorter_side_crop", "squash"]


class Crop(Frozen):
    """A rectangle of the resized image, in its pixels, half-open."""

    top: int
    left: int
    bottom: int
    right: int
    resized_height: int
    resized_width: int

    def frame(self, height: int, width: int) -> Frame:
        """The same rectangle as fractions of the original image of this size."""
        return Frame(
            top=self.top / self.resized_height,
            left=self.left / self.resized_width,
            bottom=self.bottom / self.resized_height,
            right=self.right / self.resized_width,
            image_height=height,
            image_width=width,
            input_height=self.bottom - self.top,
            input_width=self.right - self.left,
        )


def square_crop(height: int, width: int, size: int, fraction: float, resize: Resize) -> Crop:
    """Where a ``size`` x ``size`` input lies in the resized image.

    ``shorter_side_crop`` is pytorch-vqa's ``Resize(int(size / fraction))`` and ``CenterCrop(size)``
    of torchvision, whose longer side is truncated to whole pixels; ``squash`` keeps everything.
    """
    if resize == "squash":
        return Crop(top=0, left=0, bottom=size, right=size, resized_height=size, resized_width=size)
    short = int(size / fraction)
    long = int(short * max(height, width) / min(height, width))
    tall, wide = (short, long) if width >= height else (long, short)
    return centre_crop(size, size, tall, wide)


def centre_crop(height: int, width: int, tall: int, wide: int) -> Crop:
    """The middle ``height`` x ``width`` of a resized image ``tall`` x ``wide``, as torchvision's
    CenterCrop rounds."""
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return Crop(
        top=top,
        left=left,
        bottom=top + height,
        right=left + width,
        resized_height=tall,
        resized_width=wide,
    )


def to_canvas(image: np.ndarray, crop: Crop) -> Tensor:
    """Upright uint8 RGB ``(y, x, 3)`` -> float canvas ``(3, y, x)`` in 0..255, by Pillow's bilinear
    filter, which averages when it shrinks."""
    size = (crop.resized_width, crop.resized_height)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    pixels = resized.crop((crop.left, crop.top, crop.right, crop.bottom))
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
