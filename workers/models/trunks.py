"""Convolutional trunks: normalised pixels ``(n, 3, y, x)`` -> features ``(n, channel, y, x)``."""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ResNet, vgg
from torchvision.models.resnet import BasicBlock, Bottleneck


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


BESIDE = ("avgpool", "fc", "dropout", "classifier", "aux1", "aux2", "AuxLogits")
"""Children that come after the last feature map, or beside it."""


def _without_classifier(net: nn.Module) -> nn.Sequential:
    """Everything up to the last feature map; names stay torchvision's."""
    trunk = nn.Sequential()
    for name, module in net.named_children():
        if name not in BESIDE:
            trunk.add_module(name, module)
    return trunk


def _caffe_style(resnet: ResNet) -> ResNet:
    """He et al.'s original Caffe layout, as ruotianluo/pytorch-resnet converted it: the stride of
    ``layer2`` to ``layer4`` sits in the first 1x1 convolution, and the pooling has no padding but
    a partial last window. torchvision strides the 3x3 and pads, under the same names and shapes.
    """
    resnet.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    for layer in (resnet.layer2, resnet.layer3, resnet.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return resnet


def damp_residuals(trunk: nn.Module, scale: float = 0.2) -> None:
    """Make untrained residual branches small: the scale of each one's last BatchNorm.

    At the usual 1 every block doubles the variance, by 2^36 within ResNet-152's ``layer3``;
    at 0.2 those 36 blocks multiply it by four.
    """
    for module in trunk.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, scale)
        elif isinstance(module, BasicBlock):
            nn.init.constant_(module.bn2.weight, scale)


class Inception(nn.Module):
    """GoogLeNet or Inception v3 up to its last feature map; ``transform`` repeats on the input what
    torchvision's pretrained weights expect. Names stay torchvision's."""

    def __init__(self, name: str, transform: bool = False) -> None:
        super().__init__()
        net = models.get_model(name, init_weights=False, transform_input=transform)
        self.net = _without_classifier(net)
        self._transform = net._transform_input

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(self._transform(pixels))


def _torchvision(name: str) -> nn.Module:
    """One of torchvision's networks up to its last feature map, freshly initialised."""
    if name in ("googlenet", "inception_v3"):
        return Inception(name)
    device = torch.get_default_device()
    # RegNet computes its widths with tensors, of which meta ones have no values.
    with torch.device("cpu" if name.startswith("regnet") else device):
        net = models.get_model(name).to(device)
    whole = next((part for part in WHOLE if hasattr(net, part)), None)
    return _without_classifier(net) if whole is None else getattr(net, whole)


def _vgg19_relu5_4() -> nn.Sequential:
    """VGG-19 (Simonyan and Zisserman 2015) up to its last convolution's ReLU, without ``pool5``:
    the 14 x 14 map that Grad-CAM uses of a 224-pixel image. Names stay torchvision's."""
    return vgg.make_layers(vgg.cfgs["E"])[:-1]


WHOLE = ("features", "layers")
"""What some networks call everything up to the last feature map."""
FAMILIES = (
    *("resnet", "resnext", "wide_resnet", "vgg", "densenet", "mobilenet", "efficientnet"),
    *("convnext", "regnet", "googlenet", "inception", "squeezenet", "mnasnet"),
)
"""Of torchvision's classification networks, those with a convolutional feature map at the end."""

TRUNKS: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "small": SmallTrunk,
    "resnet152_caffe": lambda _: _without_classifier(_caffe_style(models.resnet152())),
    **{
        name: lambda _, name=name: _torchvision(name)  # type: ignore[misc]
        for name in models.list_models(models)
        if name.startswith(FAMILIES)
    },
    "vgg19_relu5_4": lambda _: _vgg19_relu5_4(),
}
"""Trunk builders by name; each is given the ``channels`` of the model's configuration, which only
the small one uses. All ResNets have stride 32: 14x14 cells at 448 pixels."""


def trunk_shape(name: str, channels: tuple[int, ...], size: int) -> tuple[int, int, int]:
    """Channels, height and width of a trunk's output for a square input of ``size`` pixels, from a
    pass on the meta device."""
    with torch.device("meta"):
        trunk = TRUNKS[name](channels).eval()
        features = trunk(torch.zeros(1, 3, size, size))
    _, depth, height, width = features.shape
    return depth, height, width


def _known(name: str) -> str:
    if name not in TRUNKS:
        raise ValueError(f"unknown trunk {name!r}; the trunks are {', '.join(TRUNKS)}")
    return name


TrunkName = Annotated[str, AfterValidator(_known)]
