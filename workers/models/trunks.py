"""Convolutional trunks: normalised pixels ``(n, 3, y, x)`` -> features ``(n, channel, y, x)``."""

from collections.abc import Callable
from itertools import pairwise

from torch import nn
from torchvision.models.resnet import BasicBlock


class SmallTrunk(nn.Sequential):
    """A ResNet (He et al. 2016) for 96-pixel scenes: a 5x5 stem, then one basic block a width.

    The stem and the second and third blocks halve the resolution: stride 8, so 12x12 cells at
    96 pixels, each seeing 49 pixels a side with three blocks; further blocks keep the stride.
    The default widths cost 97 million multiply-adds an image.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        stem = channels[0]
        strides = [1, 2, 2] + [1] * len(channels)
        super().__init__(
            nn.Conv2d(3, stem, 5, 2, 2, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            *(_block(*io, stride) for io, stride in zip(pairwise(channels), strides, strict=False)),
        )


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride > 1 or inputs != outputs:
        conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, shortcut)


TRUNKS: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {"small": SmallTrunk}
"""Trunk builders by name; each is given the ``channels`` of the model's configuration."""
