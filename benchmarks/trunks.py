"""Torchvision's convolutional networks without their classifiers, with random weights."""

import torch
from torch import Tensor, nn
from torchvision import models

from workers.models.trunks import TRUNKS

ENDS = ("avgpool", "fc", "dropout", "aux1", "aux2", "AuxLogits")
"""Children that come after the last feature map, or beside it."""


class Inception(nn.Module):
    """GoogLeNet or Inception v3 up to the last feature map, its input transform included."""

    def __init__(self, net: models.GoogLeNet | models.Inception3) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        x = self.net._transform_input(x)
        for name, child in self.net.named_children():
            if name not in ENDS:
                x = child(x)
        return x


def trunk(name: str) -> nn.Module:
    """Any of torchvision's by name, its weights drawn from a fixed seed."""
    torch.manual_seed(0)
    if name in ("googlenet", "inception_v3"):
        return Inception(getattr(models, name)(init_weights=False, transform_input=True))
    net = getattr(models, name)()
    if hasattr(net, "features"):
        return net.features
    children = {n: child for n, child in net.named_children() if n not in ENDS}
    return nn.Sequential(*children.values())


def register(name: str) -> None:
    """Let models have this trunk."""
    TRUNKS.setdefault(name, lambda _: trunk(name))
