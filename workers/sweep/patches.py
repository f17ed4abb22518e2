"""What a sweep paints with: whole canvases ``(3, y, x)``, RGB in 0..255, of which windows show."""

from hashlib import sha256
from math import ceil
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

Level = Annotated[float, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
"""RGB in 0..255, before normalisation."""
Name = Literal["gray", "mean", "blur", "noise"]
Patch = Annotated[
    Annotated[Name, Tag("name")] | Annotated[Colour, Tag("colour")],
    Discriminator(lambda patch: "name" if isinstance(patch, str) else "colour"),
]
GRAY: Colour = (123.68, 116.779, 103.939)
"""ImageNet's mean colour, which the usual normalisation turns into zero."""
BLUR_SIGMA = 10 / 224
"""Fong and Vedaldi 2017, section 4.1, blur by 10 pixels; their images have sides of 224."""
CUT = 4
"""The Gaussian ends at this many standard deviations; 6e-5 of it is beyond them."""


def fill(canvas: Tensor, patch: Patch, sigma: float | None, seed: int | None) -> Tensor:
    """The canvas that a patch shows in place of ``canvas (3, y, x)``; ``sigma`` is the blur's,
    ``seed`` the noise's."""
    if patch == "blur":
        assert sigma is not None
        return blurred(canvas, sigma)
    if patch == "noise":
        assert seed is not None
        return noise(canvas, seed)
    if patch == "mean":
        return canvas.mean((1, 2), keepdim=True).expand_as(canvas)
    return constant(canvas, GRAY if patch == "gray" else patch)


def constant(canvas: Tensor, colour: Colour) -> Tensor:
    """One colour everywhere."""
    return canvas.new_tensor(colour)[:, None, None].expand_as(canvas)


def blurred(canvas: Tensor, sigma: float) -> Tensor:
    """The image under a Gaussian of standard deviation ``sigma``, in its shorter sides, mirrored
    at the border (Fong and Vedaldi 2017, section 4.1)."""
    side = min(canvas.shape[1:])
    deviation = sigma * side
    size = 2 * min(ceil(CUT * deviation), side - 1) + 1
    for kernel in ([1, size], [size, 1]):  # torchvision would multiply the two into one
        canvas = gaussian_blur(canvas, kernel, [deviation, deviation])
    return canvas


def noise(canvas: Tensor, seed: int) -> Tensor:
    """Uniform noise in 0..255 in each channel of each pixel, one pattern for an image."""
    return torch.from_numpy(255 * generator(canvas, seed).random(canvas.shape)).to(canvas)


def generator(canvas: Tensor, seed: int) -> np.random.Generator:
    """Of random numbers that hang on the seed and the image's pixels, rounded to 8 bits, alone:
    neither device, batch, shard nor questions change them."""
    levels = canvas.round().clamp(0, 255).to("cpu", torch.uint8).contiguous()
    digest = sha256(levels.numpy().tobytes()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])
