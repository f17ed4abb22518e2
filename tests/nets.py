"""Small VQA nets in which ReLUs are called in every way that breaks module hooks."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchvision.models import vgg
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import Bottleneck

from schemas.frame import Frame
from workers.methods.base import Scene
from workers.models.base import (
    Geometry,
    HeadOutput,
    SplitModel,
    Tokens,
    VQAModel,
    Words,
    freeze,
)
from workers.models.deeper_lstm import DeeperLSTMConfig
from workers.models.san import SANConfig

HEIGHT, WIDTH = 24, 20
VOCABULARY = ("what", "colour", "is", "the", "circle", "where")
ANSWERS = ("red", "green", "blue", "yes", "no")
QUESTIONS: tuple[Tokens, ...] = (
    ("what", "colour", "is", "the", "circle"),
    ("where",),
    ("is", "the", "circle"),
)

LSTM = DeeperLSTMConfig(
    trunk="small",
    channels=(4, 6, 8, 10),
    image_size=56,
    pool=3,
    fully=(12, 9),
    embedding=7,
    state=5,
    combine=11,
    tokeniser="simple",
    words=("what", "color", "is", "the", "circle", "UNK"),
    answers=("red", "blue", "yes"),
)
"""A tiny Deeper LSTM Q + norm I."""
STACKED = SANConfig(
    trunk="small",
    channels=(4, 6, 8, 10),
    image_size=32,
    embedding=7,
    state=6,
    attention=5,
    tokeniser="simple",
    words=LSTM.words,
    answers=LSTM.answers,
)
"""A tiny stacked attention network, SAN-2."""


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class InPlace(nn.Module):
    """In-place ReLUs and an in-place residual addition, as torchvision's blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = conv(3, 6, 2), conv(6, 6), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        y = self.bn(self.conv2(x))
        y += x
        return self.relu(y)


class Functional(nn.Module):
    """A ReLU in six spellings, none of which a module hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(3, 6, 2), *(conv(6, 6) for _ in range(5))])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](x))
        x = torch.relu(self.convs[1](x))
        x = self.convs[2](x).relu_()
        x = self.convs[3](x).clamp(min=0)
        x = torch.clamp_min(self.convs[4](x), 0)
        return F.threshold(self.convs[5](x), 0.0, 0.0)


class Reused(nn.Module):
    """One ReLU module called three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(3, 6, 2), conv(6, 6), conv(6, 6)])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = self.relu(layer(x))
        return x


class Parallel(nn.Module):
    """One ReLU module called on branches that are added and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(3, 6, 2), conv(6, 4), conv(6, 4), conv(6, 4)])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.convs[0](x))
        branches = [layer(x) for layer in self.convs[1:]]
        a, b, c = (self.relu(branch) for branch in branches)
        return torch.cat([a + b, c], 1)


class PreActivation(nn.Module):
    """A residual block whose ReLU reads what the skip connection reads too (He et al. 2016b)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6, 2), conv(6, 6), conv(6, 6)
        self.bn = nn.BatchNorm2d(6)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv1(x))
        x = x + self.conv2(self.relu1(x))
        return x + self.conv3(self.relu2(x))


class Aliased(nn.Module):
    """In-place ReLUs whose write is seen through another name and through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6, 2), conv(6, 6), conv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        alias, half = x, x[:, :3]
        F.relu_(x)
        y = self.conv2(x) + alias
        y[:, 3:] += half
        y[:, :2].relu_()
        y.clamp_(min=0)
        y = self.conv3(y).relu()
        y += alias
        return y


class Clipped(nn.Module):
    """ReLUs cut at a ceiling that their inputs reach."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(3, 6, 2), conv(6, 6), conv(6, 6), conv(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.convs[0](x), 0.0, 0.5)
        x = F.relu6(40 * self.convs[1](x))
        x = (10 * self.convs[2](x)).clamp_(0, 5)
        return F.relu(self.convs[3](x))


class Dense(nn.Module):
    """torchvision's DenseNet trunk: concatenation, average pooling, in-place ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = DenseNet(4, (2, 2), 6, bn_size=2).features

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.features(x), inplace=True)


def plain() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 8), nn.BatchNorm2d(8), nn.ReLU()
    )


def resnet() -> nn.Module:
    shortcut = nn.Sequential(nn.Conv2d(6, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Bottleneck(6, 4, 2, shortcut),
        Bottleneck(16, 4),
    )


TRUNKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "in_place": InPlace,
    "functional": Functional,
    "reused": Reused,
    "parallel": Parallel,
    "pre_activation": PreActivation,
    "aliased": Aliased,
    "clipped": Clipped,
    "resnet": resnet,
    "vgg": lambda: vgg.make_layers([6, "M", 8, 8], batch_norm=True),
    "dense": Dense,
}


class AttentionHead(nn.Module):
    """Two glimpses and a classifier, with functional and in-place ReLUs."""

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.image = nn.Conv2d(channels, 7, 1)
        self.question = nn.Linear(state, 7)
        self.glimpses = nn.Conv2d(7, 2, 1)
        self.hidden = nn.Linear(2 * channels + state, 9)
        self.answer = nn.Linear(9, len(ANSWERS))

    def forward(self, features: Tensor, states: Tensor) -> HeadOutput:
        fused = F.relu(self.image(features) + self.question(states)[:, :, None, None])
        attention = self.glimpses(fused).flatten(2).softmax(2)
        seen = torch.einsum("ngp,ncp->ngc", attention, features.flatten(2)).flatten(1)
        hidden = self.hidden(torch.cat([seen, states], 1)).relu_()
        return HeadOutput(self.answer(hidden), attention.unflatten(2, features.shape[2:]))


class PooledHead(nn.Module):
    """Pooled features times a question branch that has its own ReLU; modules only.

    The first operation overwrites its input, as a careless head may.
    """

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.question = nn.Linear(state, channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.hidden = nn.Linear(channels, 9)
        self.answer = nn.Linear(9, len(ANSWERS))

    def forward(self, features: Tensor, states: Tensor) -> HeadOutput:
        features = features.contiguous().mul_(0.5)
        fused = features.mean((2, 3)) * self.relu1(self.question(states))
        return HeadOutput(self.answer(self.relu2(self.hidden(fused))))


class TinyVQA(SplitModel):
    """Any trunk, an LSTM over tanh word embeddings, and one of the two heads."""

    def __init__(self, trunk: nn.Module, head: Literal["attention", "pooled"]) -> None:
        super().__init__()
        self.answers = ANSWERS
        with torch.no_grad():
            channels, height, width = trunk.eval()(torch.zeros(1, 3, HEIGHT, WIDTH)).shape[1:]
        self.geometry = Geometry(
            input_height=HEIGHT,
            input_width=WIDTH,
            feature_height=height,
            feature_width=width,
            glimpses=2 if head == "attention" else 0,
        )
        self.trunk_net = trunk
        self.embedding = nn.Embedding(len(VOCABULARY) + 1, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head_net = {"attention": AttentionHead, "pooled": PooledHead}[head](channels, 5)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        canvas = torch.from_numpy(image[:HEIGHT, :WIDTH].copy()).permute(2, 0, 1).float()
        frame = Frame(
            image_height=HEIGHT, image_width=WIDTH, input_height=HEIGHT, input_width=WIDTH
        )
        return canvas, frame

    def tokenise(self, question: str) -> Tokens:
        return tuple(question.split())

    def known(self, token: str) -> bool:
        return token in VOCABULARY

    def normalise(self, canvas: Tensor) -> Tensor:
        mean = canvas.new_tensor([0.485, 0.456, 0.406])[:, None, None]
        std = canvas.new_tensor([0.229, 0.224, 0.225])[:, None, None]
        return (canvas / 255 - mean) / std

    def trunk(self, pixels: Tensor) -> Tensor:
        return self.trunk_net(pixels)

    def words(self, questions: Sequence[Tokens]) -> Words:
        indices = torch.zeros(len(questions), max(1, *map(len, questions), 1), dtype=torch.long)
        for row, tokens in zip(indices, questions, strict=True):
            for i, token in enumerate(tokens):
                row[i] = VOCABULARY.index(token) + 1
        lengths = torch.tensor([len(tokens) for tokens in questions])
        return Words(self.embedding(indices.to(self.device)), lengths)

    def encode(self, words: Words) -> Tensor:
        packed = pack_padded_sequence(
            words.embeddings.tanh(),
            words.lengths.clamp(min=1),
            batch_first=True,
            enforce_sorted=False,
        )
        _, (hidden, _) = self.lstm(packed)
        return hidden[0] * (words.lengths > 0)[:, None].to(hidden)

    def head(self, features: Tensor, states: Tensor) -> HeadOutput:
        return self.head_net(features, states)


class BlackBox(VQAModel):
    """A model that only gives logits; the colours' weights differ from place to place."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = ANSWERS
        self.geometry = Geometry(input_height=HEIGHT, input_width=WIDTH)
        self.image = nn.Linear(3 * HEIGHT * WIDTH, len(ANSWERS))
        self.word = nn.Embedding(len(VOCABULARY), len(ANSWERS))

    prepare = TinyVQA.prepare
    tokenise = TinyVQA.tokenise
    known = TinyVQA.known

    def logits(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        asked = [self.word.weight[[VOCABULARY.index(t) for t in q]].sum(0) for q in questions]
        return self.image(canvas.flatten(1) / 255) * torch.stack(asked).tanh()


def build(trunk: str, head: Literal["attention", "pooled"] = "attention", seed: int = 0) -> TinyVQA:
    """A frozen float64 net with random weights and random batch statistics."""
    torch.manual_seed(seed)
    model = TinyVQA(TRUNKS[trunk](), head)
    for module in model.trunk_net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    for name, parameter in model.head_net.named_parameters():
        if name.startswith("answer"):
            parameter.data.mul_(5)
        elif name.endswith("bias"):
            parameter.data.add_(0.5)  # ReLUs that let something pass
    return freeze(model.double())


def black_box() -> BlackBox:
    torch.manual_seed(0)
    model = BlackBox()
    model.image.weight.data.mul_(20)
    return freeze(model.double())


def canvas(seed: int = 0) -> Tensor:
    """A noisy image ``(3, y, x)`` in 0..255."""
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)


def scene(model: VQAModel, questions: Sequence[Tokens] = QUESTIONS, **fields: object) -> Scene:
    """Two rows a question: the prediction, and a truth that differs from it."""
    seen, ids = canvas().to(model.device), range(1, len(questions) + 1)
    made = Scene(model, seen, questions, ids, [None] * len(questions), **fields)
    made.truths = [(answer + 1) % len(ANSWERS) for answer in made.predictions]
    return made
