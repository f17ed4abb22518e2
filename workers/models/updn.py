"""Bottom-up and top-down attention (Anderson et al. 2018; Teney et al. 2018), as
hengyuan-hu/bottom-up-attention-vqa has it (``baseline0_newatt``, its default, and ``baseline0``),
and the fork of jialinwu17/self_critical_vqa and erobic/negative_analysis_of_grounding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from schemas.base import Frozen
from workers.errors import UserError
from workers.models.base import (
    Capability,
    Embedded,
    EmbeddingModel,
    ModelSpec,
    RegionModel,
    RegionOutput,
    Tokens,
    VQAModel,
    freeze,
    present,
)
from workers.models.checkpoints import as_state_dict, folded, length_of, load_weights, read_weights
from workers.models.pickles import read_plain
from workers.models.questions import native_rnn
from workers.models.region_model import (
    Files,
    StoredRegionModel,
    by_row,
    check_channels,
    read_labels,
    softmax_of,
)
from workers.models.regions import RegionFeatures
from workers.models.tokenisers import updn, updn_fork
from workers.models.tokens import tapped

LENGTH = 14
"""Words of a question: what is longer is cut, what is shorter is padded in front."""
REMEDY = (
    "give model.pth of hengyuan-hu/bottom-up-attention-vqa or of its self-critical fork (their "
    "layers are weight-normed: NAME.weight_g and NAME.weight_v here make NAME.weight)"
)
FORK = {
    "gv_net.": "v_net.",
    "gv_att_1.": "v_att.",
    "gv_att_2.": "v_att_2.",
    "q_emb.rnn.gru_cell.weight_ih.weight": "q_emb.rnn.weight_ih_l0",
    "q_emb.rnn.gru_cell.weight_hh.weight": "q_emb.rnn.weight_hh_l0",
    "q_emb.rnn.gru_cell.weight_ih.bias": "q_emb.rnn.bias_ih_l0",
    "q_emb.rnn.gru_cell.weight_hh.bias": "q_emb.rnn.bias_hh_l0",
}
"""How names of the fork begin, whose GRU is written out, and ours."""
DICTIONARY = "give dictionary.pkl of bottom-up-attention-vqa, a list of word2idx and idx2word"
LABELS = "give trainval_label2ans.pkl, written when the model was trained"


class UpDnConfig(Frozen):
    """What decides the logits beside the weights."""

    words: tuple[str, ...]
    features: str
    """``RegionFeatures.digest``."""


class Shape(NamedTuple):
    """What the tensors of a checkpoint tell of its model."""

    sizes: Mapping[str, int]
    concatenates: bool
    """``baseline0``: attention sees region and question as one vector, not their product."""
    deep: bool
    """Attention has one more layer before its last: the fork's."""
    twofold: bool
    """Two attentions, added up: the fork's."""


class UpDn(StoredRegionModel, EmbeddingModel):
    """``q`` the last state of a GRU over the words, ``a = softmax_r w(W_v v_r * W_q q)`` over the
    regions, ``logits = c(W q * W sum_r a_r v_r)``, every layer weight-normed and with a ReLU but
    the last of each (Anderson et al. 2018, section 3.2, with the repository's product in place of
    a concatenation). ``baseline0`` has ``w(W [v_r, q])``; the fork has the sum of two attentions
    ``w(W (W_v v_r * W_q q))``, which adds up to 2.

    Parameters have the repository's names; ``nn.Linear`` holds what weight normalisation gives.
    Padding words count, as there: each question has ``LENGTH`` of them.
    """

    provides = RegionModel.provides | {Capability.ATTENTION, Capability.EMBEDDINGS}
    config: UpDnConfig

    def __init__(
        self,
        config: UpDnConfig,
        answers: Sequence[str],
        shape: Shape,
        features: RegionFeatures,
        longest: int,
    ) -> None:
        super().__init__(features, longest)
        self.config, self.answers = config, tuple(answers)
        self.numbers = {word: i for i, word in enumerate(config.words)}
        self.fork, sizes = shape.twofold, shape.sizes
        hidden, channels = sizes["hidden"], features.channels
        self.w_emb = nn.ModuleDict({"emb": nn.Embedding(len(config.words) + 1, sizes["embedding"])})
        self.q_emb = nn.ModuleDict({"rnn": nn.GRU(sizes["embedding"], hidden, batch_first=True)})
        self.v_att = _attention(shape, channels)
        self.v_att_2 = _attention(shape, channels) if shape.twofold else None
        self.q_net = _relu(hidden, sizes["joint"])
        self.v_net = _relu(channels, sizes["joint"])
        self.classifier = _classifier(sizes["joint"], sizes["classifier"], len(answers))

    def tokenise(self, question: str) -> Tokens:
        """At most ``LENGTH`` words: the model sees no more."""
        return self._all_words(question)[:LENGTH]

    def cut_off(self, question: str) -> Tokens:
        return self._all_words(question)[LENGTH:]

    def _all_words(self, question: str) -> Tokens:
        return (updn_fork if self.fork else updn)(question)

    def known(self, token: str) -> bool:
        return token in self.numbers

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        features, states, kept = regions[..., 4:], self.encode(questions), present(regions)
        attention = softmax_of(self.v_att(features, states), kept)
        if self.v_att_2 is not None:
            attention = attention + softmax_of(self.v_att_2(features, states), kept)
        seen = (attention[..., None] * features).sum(1)
        joint = self.q_net(states) * self.v_net(seen)
        return RegionOutput(self.classifier(joint), attention)

    def embed(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Embedded:
        with tapped([self.w_emb["emb"]]) as outputs:
            logits = self.answer(canvas[None], [question]).logits[0, list(answers)]
        words = tuple((LENGTH - len(question) + i,) for i in range(len(question)))
        return Embedded(logits, outputs[0], words)

    def encode(self, questions: Sequence[Tokens]) -> Tensor:
        """Token sequences -> the GRU's last states ``(n, state)``; each question goes through it
        once, however many images it is asked of."""
        different = {question: i for i, question in enumerate(dict.fromkeys(questions))}
        padding = len(self.numbers)
        ids = torch.full((len(different), LENGTH), padding)
        for row, question in zip(ids, different, strict=True):
            own = [self.numbers.get(word, padding) for word in question[:LENGTH]]
            row[LENGTH - len(own) :] = torch.tensor(own, dtype=torch.long)
        embeddings, rnn = self.w_emb["emb"](ids.to(self.device)), self.q_emb["rnn"]
        with native_rnn(rnn):
            states = rnn(embeddings)[0][:, -1]
        return states[[different[question] for question in questions]]


class Layers(nn.Module):
    """Layers one after another, under the repository's name for them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        return self.main(values)


class Product(nn.Module):
    """Energies ``w(W_v v_r * W_q q)`` of regions, or of the fork ``w(W (W_v v_r * W_q q))``."""

    def __init__(self, channels: int, state: int, size: int, deep: bool) -> None:
        super().__init__()
        self.v_proj, self.q_proj = _relu(channels, size), _relu(state, size)
        self.nonlinear = _relu(size, size) if deep else None
        self.linear = nn.Linear(size, 1)

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        """``(n, region, channel)`` and ``(n, state)`` -> ``(n, region)``."""
        product = by_row(self.v_proj, features) * self.q_proj(states)[:, None]
        return self.linear(product if self.nonlinear is None else self.nonlinear(product))[..., 0]


class Concatenation(nn.Module):
    """Energies ``w(W [v_r, q])`` of regions."""

    def __init__(self, channels: int, state: int, size: int) -> None:
        super().__init__()
        self.nonlinear, self.linear = _relu(channels + state, size), nn.Linear(size, 1)

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        """``(n, region, channel)`` and ``(n, state)`` -> ``(n, region)``."""
        asked = states[:, None].expand(-1, features.shape[1], -1)
        return self.linear(self.nonlinear(torch.cat([features, asked], 2)))[..., 0]


def _attention(shape: Shape, channels: int) -> Product | Concatenation:
    state, size = shape.sizes["hidden"], shape.sizes["attention"]
    if shape.concatenates:
        return Concatenation(channels, state, size)
    return Product(channels, state, size, shape.deep)


def _relu(inputs: int, outputs: int) -> Layers:
    return Layers(nn.Linear(inputs, outputs), nn.ReLU())


def _classifier(joint: int, hidden: int, answers: int) -> Layers:
    return Layers(nn.Linear(joint, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, answers))


class UpDnSpec(ModelSpec):
    """A model of hengyuan-hu/bottom-up-attention-vqa, or of its fork, and the regions of the images
    it is asked about, all by files."""

    checkpoint: Path
    """``model.pth``: its state_dict, with or without DataParallel's prefix; the fork's
    ``model-best.pth`` has it as ``model_state_dict``."""
    dictionary: Path
    """``dictionary.pkl``, or the same as ``.json``: a list of word2idx and idx2word."""
    answers_file: Path
    """``trainval_label2ans.pkl``, or the same as ``.json``."""
    features: Files = Field(min_length=1)
    """``{train,val}36.hdf5`` with their indexes beside them, or TSV files."""
    longest: int = Field(448, ge=8)
    """The longer side at most of the picture that people see; no answer depends on it."""

    def build(self, device: torch.device) -> VQAModel:
        path = self.checkpoint
        weights = read_updn(path)
        shape = shape_of(weights, path)
        sizes = shape.sizes
        words = read_dictionary(self.dictionary, sizes["words"] - 1, self.checkpoint)
        answers = read_labels(self.answers_file, sizes["answers"], LABELS)
        features = RegionFeatures(self.features)
        check_channels(features, sizes["channels"], self.checkpoint)
        config = UpDnConfig(words=words, features=features.digest)
        model = UpDn(config, answers, shape, features, self.longest)
        load_weights(model, weights, self.checkpoint, REMEDY)
        model.about = (
            f"{self.checkpoint}: UpDn, one logit an answer; trained with a sigmoid each, compared "
            f"here by softmax; {features.regions} regions an image at most"
        )
        return freeze(model.to(device))


SIZES = {
    "words": ("w_emb.emb.weight", 0),
    "embedding": ("w_emb.emb.weight", 1),
    "hidden": ("q_emb.rnn.weight_hh_l0", 1),
    "joint": ("q_net.main.0.weight", 0),
    "channels": ("v_net.main.0.weight", 1),
    "classifier": ("classifier.main.0.weight", 0),
    "answers": ("classifier.main.3.weight", 0),
}
"""Which axis of which tensor tells a size."""


def read_updn(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors, weight normalisation folded in, under the names of the original."""
    found, where = read_weights(path), str(path)
    if isinstance(found, Mapping) and isinstance(found.get("model_state_dict"), Mapping):
        found, where = found["model_state_dict"], f"{path}: 'model_state_dict'"
    weights = as_state_dict(found, where, path.stat().st_size)
    return folded({_renamed(name): tensor for name, tensor in weights.items()}, path, REMEDY)


def _renamed(name: str) -> str:
    for theirs, ours in FORK.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def shape_of(weights: Mapping[str, Tensor], path: Path) -> Shape:
    """Which of the models it is, and its sizes."""
    deep, product = (f"v_att.{part}.main.0.weight" for part in ("nonlinear", "v_proj"))
    concatenates = deep in weights and product not in weights
    axes = {**SIZES, "attention": (deep if concatenates else product, 0)}
    sizes = {name: length_of(weights, *axis, path, REMEDY) for name, axis in axes.items()}
    twofold = any(name.startswith("v_att_2.") for name in weights)
    return Shape(sizes, concatenates, deep in weights and not concatenates, twofold)


def read_dictionary(path: Path, count: int, checkpoint: Path) -> tuple[str, ...]:
    """The words in the order of their numbers, of which the checkpoint knows ``count``."""
    found = read_plain(path, DICTIONARY)
    parts = found if isinstance(found, list | tuple) and len(found) == 2 else ({}, [])
    numbers: Any = parts[0] if isinstance(parts[0], dict) else {}
    typed = all(type(word) is str and type(n) is int for word, n in numbers.items())
    words = sorted(numbers, key=numbers.__getitem__) if typed else []
    if not words or [numbers[word] for word in words] != list(range(len(words))):
        raise UserError(f"{path} does not number words from 0 without a gap; {DICTIONARY}")
    if len(words) != count:
        raise UserError(
            f"{path} has {len(words)} words, {checkpoint} was trained with {count}; give the "
            "dictionary that the model was trained with"
        )
    return tuple(words)
