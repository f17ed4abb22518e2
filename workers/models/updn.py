"""Bottom-up and top-down attention (Anderson et al. 2018; Teney et al. 2018), as
hengyuan-hu/bottom-up-attention-vqa has it: its default model, ``baseline0_newatt``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from workers.models.checkpoints import folded, length_of, load_weights, read_state_dict
from workers.models.pickles import read_plain
from workers.models.questions import native_rnn
from workers.models.region_model import (
    Files,
    StoredRegionModel,
    check_channels,
    read_labels,
    softmax_of,
)
from workers.models.regions import RegionFeatures
from workers.models.tokenisers import updn
from workers.models.tokens import tapped

LENGTH = 14
"""Words of a question: what is longer is cut, what is shorter is padded in front."""
REMEDY = (
    "give model.pth of hengyuan-hu/bottom-up-attention-vqa, trained as baseline0_newatt (its "
    "layers are weight-normed: NAME.weight_g and NAME.weight_v here make NAME.weight)"
)
DICTIONARY = "give dictionary.pkl of bottom-up-attention-vqa, a list of word2idx and idx2word"
LABELS = "give trainval_label2ans.pkl, written when the model was trained"


class UpDnConfig(Frozen):
    """What decides the logits beside the weights."""

    words: tuple[str, ...]
    features: str
    """``RegionFeatures.digest``."""


class UpDn(StoredRegionModel, EmbeddingModel):
    """``q`` the last state of a GRU over the words, ``a = softmax_r w(W_v v_r * W_q q)`` over the
    regions, ``logits = c(W q * W sum_r a_r v_r)``, every layer weight-normed and with a ReLU but
    the last of each (Anderson et al. 2018, section 3.2, with the repository's product in place of
    a concatenation).

    Parameters have the repository's names; ``nn.Linear`` holds what weight normalisation gives.
    Padding words count, as there: each question has ``LENGTH`` of them.
    """

    provides = RegionModel.provides | {Capability.ATTENTION, Capability.EMBEDDINGS}
    config: UpDnConfig

    def __init__(
        self,
        config: UpDnConfig,
        answers: Sequence[str],
        sizes: Mapping[str, int],
        features: RegionFeatures,
        longest: int,
    ) -> None:
        super().__init__(features, longest)
        self.config, self.answers = config, tuple(answers)
        self.numbers = {word: i for i, word in enumerate(config.words)}
        hidden, channels = sizes["hidden"], features.channels
        self.w_emb = nn.ModuleDict({"emb": nn.Embedding(len(config.words) + 1, sizes["embedding"])})
        self.q_emb = nn.ModuleDict({"rnn": nn.GRU(sizes["embedding"], hidden, batch_first=True)})
        self.v_att = nn.ModuleDict(
            {
                "v_proj": _relu(channels, sizes["attention"]),
                "q_proj": _relu(hidden, sizes["attention"]),
                "linear": nn.Linear(sizes["attention"], 1),
            }
        )
        self.q_net = _relu(hidden, sizes["joint"])
        self.v_net = _relu(channels, sizes["joint"])
        self.classifier = _classifier(sizes["joint"], sizes["classifier"], len(answers))

    def tokenise(self, question: str) -> Tokens:
        """At most ``LENGTH`` words: the model sees no more."""
        return updn(question)[:LENGTH]

    def known(self, token: str) -> bool:
        return token in self.numbers

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        features, states = regions[..., 4:], self.encode(questions)
        product = self.v_att["v_proj"](features) * self.v_att["q_proj"](states)[:, None]
        attention = softmax_of(self.v_att["linear"](product)[..., 0], present(regions))
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


def _relu(inputs: int, outputs: int) -> Layers:
    return Layers(nn.Linear(inputs, outputs), nn.ReLU())


def _classifier(joint: int, hidden: int, answers: int) -> Layers:
    return Layers(nn.Linear(joint, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, answers))


class UpDnSpec(ModelSpec):
    """A model of hengyuan-hu/bottom-up-attention-vqa and the regions of the images it is asked
    about, all by files."""

    checkpoint: Path
    """``model.pth``: its state_dict, with or without DataParallel's prefix."""
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
        weights = folded(read_state_dict(path), path, REMEDY)
        sizes = {name: length_of(weights, *axis, path, REMEDY) for name, axis in SIZES.items()}
        words = read_dictionary(self.dictionary, sizes["words"] - 1, self.checkpoint)
        answers = read_labels(self.answers_file, sizes["answers"], LABELS)
        features = RegionFeatures(self.features)
        check_channels(features, sizes["channels"], self.checkpoint)
        config = UpDnConfig(words=words, features=features.digest)
        model = UpDn(config, answers, sizes, features, self.longest)
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
    "attention": ("v_att.v_proj.main.0.weight", 0),
    "joint": ("q_net.main.0.weight", 0),
    "channels": ("v_net.main.0.weight", 1),
    "classifier": ("classifier.main.0.weight", 0),
    "answers": ("classifier.main.3.weight", 0),
}
"""Which axis of which tensor tells a size."""


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
