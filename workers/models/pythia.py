"""Pythia (Jiang et al. 2018, "Pythia v0.1: the Winning Entry to the VQA Challenge 2018"), as
facebookresearch/mmf has it: ``configs/models/pythia/defaults.yaml``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

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
from workers.models.questions import native_rnn
from workers.models.region_model import (
    Files,
    StoredRegionModel,
    by_row,
    check_channels,
    read_lines,
    read_list,
    softmax_of,
)
from workers.models.regions import RegionFeatures
from workers.models.tokenisers import mmf
from workers.models.tokens import tapped

LENGTH = 14
"""Words of a question: what is longer is cut, what is shorter is padded behind."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""The first rows of the word embedding; the vocabulary's lines follow."""
PADDING, UNKNOWN = 0, 3
REMEDY = (
    "give the model of MMF's pythia: a state_dict, or a dictionary with one as 'model' (its layers "
    "are weight-normed: NAME.weight_g and NAME.weight_v here make NAME.weight)"
)
WORDS = "give the vocabulary that it was trained with, as MMF's vocabulary_100k.txt: a word a line"
ANSWERS = "give the answers that it was trained with, as MMF's answers_vqa.txt: one a line"
QUESTION = "text_embeddings.0.module"
BRANCH = "image_feature_embeddings_list.{}.0.image_attention_model.module"
JOINT = "image_text_multi_modal_combine_layer.module"


Inner = TypeVar("Inner", bound=nn.Module)


class PythiaConfig(Frozen):
    """What decides the logits beside the weights."""

    words: tuple[str, ...]
    features: tuple[str, ...]
    """``RegionFeatures.digest`` of each kind."""


class Branch(NamedTuple):
    """Sizes of what looks at one kind of features."""

    channels: int
    """Of a region in the file."""
    encoded: int
    """After the encoder ``lc``; equal to ``channels``, and 0 says so, where there is none."""
    hidden: int
    glimpses: int

    @property
    def features(self) -> int:
        """Of a region as attention sees it."""
        return self.encoded or self.channels


class Sizes(NamedTuple):
    """Of a checkpoint, told by its tensors."""

    words: int
    embedding: int
    state: int
    convolution: int
    glimpses: int
    branches: tuple[Branch, ...]
    joint: int
    text: int
    image: int
    answers: int


class Within(nn.Module, Generic[Inner]):
    """A module that MMF keeps under the name ``module``."""

    def __init__(self, module: Inner) -> None:
        super().__init__()
        self.module = module


class QuestionAttention(nn.Module):
    """``q_g = sum_t a_gt h_t``: LSTM states under ``a_g = softmax_t conv2(relu(conv1 h))_g``, the
    glimpses one after another (Jiang et al. 2018, section 2.1)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.recurrent_unit = nn.LSTM(sizes.embedding, sizes.state, batch_first=True)
        self.conv1 = nn.Conv1d(sizes.state, sizes.convolution, 1)
        self.conv2 = nn.Conv1d(sizes.convolution, sizes.glimpses, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """``(n, word, channel)`` -> ``(n, glimpse * state)``."""
        with native_rnn(self.recurrent_unit):
            states, _ = self.recurrent_unit(embeddings)
        energies = self.conv2(self.conv1(states.transpose(1, 2)).relu())
        return (energies.softmax(2) @ states).flatten(1)


class Encoder(nn.Module):
    """``relu(lc v)``: the detector's last layer, finetuned."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lc = nn.Linear(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.lc(features).relu()


class Rectified(nn.Module):
    """``relu(W x)`` under MMF's name for it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


class Product(nn.Module):
    """``relu(W_v v) * relu(W_q q)``."""

    def __init__(self, image: int, text: int, outputs: int) -> None:
        super().__init__()
        self.fa_image = Rectified(image, outputs)
        self.fa_txt = Rectified(text, outputs)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.fa_image(image) * self.fa_txt(text)


class Scale(nn.Module):
    """What makes energies of a product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lc = nn.Linear(inputs, outputs)


class TopDown(nn.Module):
    """``a = softmax_r w(relu(W_v v_r) * relu(W_q q))`` and ``sum_r a_r v_r``, a glimpse each."""

    def __init__(self, branch: Branch, question: int) -> None:
        super().__init__()
        self.combination_layer = Within(Product(branch.features, question, branch.hidden))
        self.transform = Within(Scale(branch.hidden, branch.glimpses))

    def image(self, features: Tensor) -> Tensor:
        """``relu(W_v v_r)``, which no question changes."""
        return self.combination_layer.module.fa_image(features)

    def forward(
        self, features: Tensor, image: Tensor, question: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(n, glimpse * channel)`` and the attention ``(n, glimpse, region)``."""
        asked = self.combination_layer.module.fa_txt(question)[:, None]
        scale = self.transform.module.lc  # the product of all regions is too large to write down
        energies = (image @ (asked * scale.weight).transpose(1, 2) + scale.bias).transpose(1, 2)
        attention = softmax_of(energies, kept[:, None])
        return (attention @ features).flatten(1), attention


class Attending(nn.Module):
    """``TopDown`` under its names."""

    def __init__(self, branch: Branch, question: int) -> None:
        super().__init__()
        self.image_attention_model = Within(TopDown(branch, question))


class LogitClassifier(nn.Module):
    """``W_t relu(F_t x) + W_i relu(F_i x)``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.f_o_text = Rectified(sizes.joint, sizes.text)
        self.f_o_image = Rectified(sizes.joint, sizes.image)
        self.linear_text = nn.Linear(sizes.text, sizes.answers)
        self.linear_image = nn.Linear(sizes.image, sizes.answers)

    def forward(self, joint: Tensor) -> Tensor:
        return self.linear_text(self.f_o_text(joint)) + self.linear_image(self.f_o_image(joint))


class Pythia(StoredRegionModel, EmbeddingModel):
    """The question by an LSTM and attention over its words; each kind of features by top-down
    attention; their product, and ``logits = W_t relu(F_t x) + W_i relu(F_i x)``.

    Parameters have MMF's names; ``nn.Linear`` holds what weight normalisation gives. Padding words
    count, as there: each question has ``LENGTH`` of them. MMF takes the softmax over absent regions
    too and divides by the rest plus 1e-8; ours is over those that are there, the same but for that.
    Its regions are those of all kinds of features, one kind after another.
    """

    provides = RegionModel.provides | {Capability.ATTENTION, Capability.EMBEDDINGS}
    config: PythiaConfig

    def __init__(
        self,
        config: PythiaConfig,
        answers: Sequence[str],
        sizes: Sizes,
        kinds: Sequence[RegionFeatures],
        longest: int,
    ) -> None:
        super().__init__(kinds[0], longest)
        self.config, self.answers, self.kinds = config, tuple(answers), tuple(kinds)
        regions = sum(kind.regions for kind in kinds)
        self.geometry = self.geometry.model_copy(update={"regions": regions})
        self.numbers = {word: i for i, word in enumerate(config.words, len(SPECIAL))}
        self.numbers |= {word: i for i, word in enumerate(SPECIAL)}
        question = sizes.glimpses * sizes.state
        self.word_embedding = nn.Embedding(sizes.words, sizes.embedding)
        self.text_embeddings = nn.ModuleList([Within(QuestionAttention(sizes))])
        self.image_feature_encoders = nn.ModuleList(
            Encoder(b.channels, b.encoded) if b.encoded else nn.Identity() for b in sizes.branches
        )
        self.image_feature_embeddings_list = nn.ModuleList(
            nn.ModuleList([Attending(branch, question)]) for branch in sizes.branches
        )
        seen = sum(branch.glimpses * branch.features for branch in sizes.branches)
        joint = Product(seen, question, sizes.joint)
        self.image_text_multi_modal_combine_layer = Within(joint)
        self.classifier = Within(LogitClassifier(sizes))

    def regions(self, image_id: int, height: int, width: int) -> Tensor:
        return torch.cat([kind.of(image_id, height, width) for kind in self.kinds])

    def tokenise(self, question: str) -> Tokens:
        """At most ``LENGTH`` words: the model sees no more."""
        return mmf(question)[:LENGTH]

    def cut_off(self, question: str) -> Tokens:
        return mmf(question)[LENGTH:]

    def known(self, token: str) -> bool:
        return token in self.numbers

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        return self._answer(self._looked_at(regions), present(regions), self.encode(questions))

    def answers_to_all(self, canvas: Tensor, questions: Sequence[Tokens]) -> Tensor:
        """What no question changes is computed once for all of them."""
        looked, kept = self._looked_at(canvas), present(canvas)
        states = self.encode(questions)
        return torch.stack([self._answer(looked, kept, q[None]).logits for q in states], 1)

    def embed(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Embedded:
        with tapped([self.word_embedding]) as outputs:
            logits = self.answer(canvas[None], [question]).logits[0, list(answers)]
        words = tuple((i,) for i in range(len(question)))
        return Embedded(logits, outputs[0], words)

    def encode(self, questions: Sequence[Tokens]) -> Tensor:
        """Token sequences -> question states ``(n, state)``; each question goes through the LSTM
        once, however many images it is asked of."""
        different = {question: i for i, question in enumerate(dict.fromkeys(questions))}
        ids = torch.full((len(different), LENGTH), PADDING)
        for row, question in zip(ids, different, strict=True):
            own = [self.numbers.get(word, UNKNOWN) for word in question[:LENGTH]]
            row[: len(own)] = torch.tensor(own, dtype=torch.long)
        embeddings = self.word_embedding(ids.to(self.device))
        states = self._question.module(embeddings)
        return states[[different[question] for question in questions]]

    def _looked_at(self, regions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each kind the features as attention sees them, and ``TopDown.image`` of them."""
        parts = regions[..., 4:].split([kind.regions for kind in self.kinds], 1)
        encoders = zip(self.image_feature_encoders, parts, strict=True)
        encoded = [by_row(encoder, part) for encoder, part in encoders]
        seen = zip(encoded, self._branches, strict=True)
        return [(v, by_row(branch.image, v)) for v, branch in seen]

    @property
    def _question(self) -> Within[QuestionAttention]:
        return cast(Within[QuestionAttention], self.text_embeddings[0])

    @property
    def _branches(self) -> list[TopDown]:
        lists = cast(Sequence[Sequence[Attending]], self.image_feature_embeddings_list)
        return [attending[0].image_attention_model.module for attending in lists]

    def _answer(
        self, looked: Sequence[tuple[Tensor, Tensor]], kept: Tensor, states: Tensor
    ) -> RegionOutput:
        """``states (n or 1, state)``."""
        each = kept.split([kind.regions for kind in self.kinds], 1)
        found = [
            branch(*at, states, own)
            for branch, at, own in zip(self._branches, looked, each, strict=True)
        ]
        image = torch.cat([seen for seen, _ in found], 1)
        joint = self.image_text_multi_modal_combine_layer.module(image, states)
        attention = torch.cat([attention.mean(1) for _, attention in found], 1)
        return RegionOutput(self.classifier.module(joint), attention)


class PythiaSpec(ModelSpec):
    """A model of MMF's ``pythia`` and the regions of the images it is asked about, all by files."""

    checkpoint: Path
    """``pythia.pth``: its state_dict, or a dictionary with one as ``model``."""
    vocabulary: Path
    """``vocabulary_100k.txt``, or the older ``vocabulary_vqa.txt``: a word a line."""
    answers_file: Path
    """``answers_vqa.txt``: one a line."""
    features: Files = Field(min_length=1)
    """The detector's regions (fc6): HDF5 or TSV files, or folders with an array a file."""
    grid_features: Files = ()
    """Of a model that sees a ResNet's feature map too: folders with an array a file."""
    longest: int = Field(448, ge=8)
    """The longer side at most of the picture that people see; no answer depends on it."""

    def build(self, device: torch.device) -> VQAModel:
        weights = read_pythia(self.checkpoint)
        sizes = sizes_of(weights, self.checkpoint)
        kinds = self._kinds(sizes.branches)
        words = read_words(self.vocabulary, sizes.words, self.checkpoint)
        answers = read_answers(self.answers_file, sizes.answers)
        config = PythiaConfig(words=words, features=tuple(kind.digest for kind in kinds))
        model = Pythia(config, answers, sizes, kinds, self.longest)
        load_weights(model, weights, self.checkpoint, REMEDY)
        model.about = (
            f"{self.checkpoint}: Pythia, one logit an answer; trained with a sigmoid each, "
            f"compared here by softmax; {model.geometry.regions} regions an image at most"
        )
        return freeze(model.to(device))

    def _kinds(self, branches: Sequence[Branch]) -> list[RegionFeatures]:
        """The features of each branch: those of a detector, then those of a grid."""
        given = [files for files in (self.features, self.grid_features) if files]
        if len(given) != len(branches):
            raise UserError(
                f"{self.checkpoint} was trained on {len(branches)} kinds of features, the recipe "
                f"gives {len(given)}; model.features are its detector's, model.grid_features the "
                "ResNet's feature map, which a checkpoint with "
                "image_feature_embeddings_list.1 needs and another has no use for"
            )
        kinds = [RegionFeatures(files) for files in given]
        for kind, branch in zip(kinds, branches, strict=True):
            check_channels(kind, branch.channels, self.checkpoint)
            check_channels(kind, kinds[0].channels, f"the detector's branch of {self.checkpoint}")
        return kinds


def read_pythia(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors, weight normalisation folded in, under the names of today."""
    found = read_weights(path)
    where = str(path)
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found, where = found["model"], f"{path}: 'model'"
    weights = as_state_dict(found, where, path.stat().st_size)
    return folded({_renamed(name): t for name, t in weights.items()}, path, REMEDY)


def _renamed(name: str) -> str:
    name = name.replace("fa_history", "fa_context")
    return re.sub(r"^(image_feature_encoders\.\d+)\.module\.lc\.", r"\1.lc.", name)


def sizes_of(weights: Mapping[str, Tensor], path: Path) -> Sizes:
    """What the tensors tell."""

    def length(name: str, axis: int = 0) -> int:
        return length_of(weights, name, axis, path, REMEDY)

    kinds = {name.split(".")[1] for name in weights if name.startswith(BRANCH.split(".")[0])}
    lengths = {
        "words": length("word_embedding.weight"),
        "embedding": length("word_embedding.weight", 1),
        "state": length(f"{QUESTION}.recurrent_unit.weight_hh_l0", 1),
        "convolution": length(f"{QUESTION}.conv1.weight"),
        "glimpses": length(f"{QUESTION}.conv2.weight"),
        "joint": length(f"{JOINT}.fa_image.layers.0.weight"),
        "text": length("classifier.module.linear_text.weight", 1),
        "image": length("classifier.module.linear_image.weight", 1),
        "answers": length("classifier.module.linear_text.weight"),
    }
    branches = tuple(_branch(weights, i, path) for i in range(max(1, len(kinds))))
    return Sizes(branches=branches, **lengths)


def _branch(weights: Mapping[str, Tensor], number: int, path: Path) -> Branch:
    name, encoder = BRANCH.format(number), f"image_feature_encoders.{number}.lc.weight"
    looks = f"{name}.combination_layer.module.fa_image.layers.0.weight"
    features = length_of(weights, looks, 1, path, REMEDY)
    encoded = encoder in weights
    return Branch(
        channels=length_of(weights, encoder, 1, path, REMEDY) if encoded else features,
        encoded=features if encoded else 0,
        hidden=length_of(weights, looks, 0, path, REMEDY),
        glimpses=length_of(weights, f"{name}.transform.module.lc.weight", 0, path, REMEDY),
    )


def read_words(path: Path, count: int, checkpoint: Path) -> tuple[str, ...]:
    """The words from row 4 of the embedding on, of which the checkpoint has ``count`` with the four
    before."""
    words = read_lines(path, WORDS)
    if len(words) + len(SPECIAL) != count:
        raise UserError(
            f"{path} has {len(words)} words, {checkpoint} was trained with {count - len(SPECIAL)}; "
            f"{WORDS}"
        )
    return tuple(words)


def read_answers(path: Path, count: int) -> tuple[str, ...]:
    """The answers in the order of the logits; MMF puts ``<unk>`` first where it is not there."""
    answers = read_list(path, ANSWERS)
    if len(answers) == count - 1 and SPECIAL[UNKNOWN] not in answers:
        answers = [SPECIAL[UNKNOWN], *answers]
    if len(answers) != count:
        raise UserError(f"{path} has {len(answers)} answers, the model has {count}; {ANSWERS}")
    return tuple(answers)
