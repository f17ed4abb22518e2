"""Published weight files made into ours: the same logits as the published graphs, and what is
refused."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.cli import main
from tests import torch7
from tests.reference import nngraph
from tests.reference import torch7_nets as published
from tests.reference.deeper_lstm import image_vector
from workers.errors import UserError
from workers.models import deeper_lstm, san, san_files
from workers.models.base import Tokens, freeze
from workers.models.deeper_lstm_torch7 import layout
from workers.models.flat import Part
from workers.models.specs import PUBLISHED_DEEPER, PUBLISHED_SAN
from workers.models.trunks import TRUNKS
from workers.models.vgg import load_vgg

WORDS = ("what", "color", "is", "the", "circle", "UNK")
ANSWERS = ("red", "blue", "yes")
SIZES = {"embedding": 7, "state": 5, "layers": 2, "combine": 11, "image_size": 56, "pool": 3}
SETTINGS = [
    *(f"{key}={value}" for key, value in SIZES.items()),
    *("trunk=small", "channels=[4,6,8,10]", "fully=[12,9]", "tokeniser=simple"),
]
LENGTHS = {
    "embedding_w_q": 7 * 6 + 7,
    "encoder_w_q": 20 * (7 + 1 + 5 + 1) + 20 * (5 + 1 + 5 + 1) + 5 + 1,
    "multimodal_w": 11 * (2 * 2 * 5 + 1) + 11 * (9 + 1) + 3 * (11 + 1),
}
SAN_SIZES = {"embedding": 7, "state": 6, "attention": 5, "image_size": 32}
SAN_SETTINGS = [
    *(f"{key}={value}" for key, value in SAN_SIZES.items()),
    *("trunk=small", "channels=[4,6,8,10]", "tokeniser=simple"),
]
QUESTIONS: list[Tokens] = [("what", "color", "is", "the", "circle"), ("zebra",), ("is", "the")]
Convert = Callable[..., str]


@pytest.fixture
def convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Convert:
    """The command, with the files in ``tmp_path``; what it printed. Refusals are errors."""
    monkeypatch.chdir(tmp_path)

    def run(model: str, weights: Sequence[str], settings: Sequence[str], status: int = 0) -> str:
        arguments = ["run_pipeline.py", "convert", model, "--vocabulary", "data_prepro.json"]
        arguments += ["--trunk", "vgg.safetensors", "--out", "out.safetensors"]
        for name in weights:
            arguments += ["--weights", name]
        for setting in settings:
            arguments += ["--set", setting]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == (status or 0), printed.err
        return printed.err if status else printed.out

    return run


def random_vector(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.4, length).astype(np.float32)


def write_vocabulary(path: Path, words: Sequence[str] = WORDS, answers: Sequence[str] = ANSWERS):
    """``ix_to_word`` and ``ix_to_ans`` in no order, as json.dump writes a dict of Python 2."""
    tables = {
        key: {str(i): entry for i, entry in reversed([*enumerate(entries, 1)])}
        for key, entries in (("ix_to_word", words), ("ix_to_ans", answers))
    }
    path.write_text(json.dumps({**tables, "unique_img_train": ["train2014/a.jpg"]}))


def trunk_state(fully: Sequence[int] = (12, 9)) -> dict[str, torch.Tensor]:
    """torchvision's names of a VGG, ImageNet's classifier included, on a small trunk."""
    torch.manual_seed(3)
    trunk = TRUNKS["small"]((4, 6, 8, 10))
    state = {f"features.{name}": t for name, t in trunk.state_dict().items()}
    inputs = 10 * 2 * 2
    for i, width in enumerate((*fully, 1000)):
        layer = nn.Linear(inputs, width)
        state |= {f"classifier.{3 * i}.{n}": p.detach() for n, p in layer.named_parameters()}
        inputs = width
    return state


@pytest.fixture
def lstm_files(tmp_path: Path) -> dict[str, np.ndarray]:
    """``lstm.t7``, ``data_prepro.json`` and the trunk's file; the vectors that are in the first."""
    vectors = {key: random_vector(length, i) for i, (key, length) in enumerate(LENGTHS.items())}
    on_gpu = {key: torch7.cuda(values) for key, values in vectors.items()}
    torch7.save(on_gpu, tmp_path / "lstm.t7")
    write_vocabulary(tmp_path / "data_prepro.json")
    save_file(trunk_state(), tmp_path / "vgg.safetensors")
    return vectors


def test_converted_deeper_lstm_answers_as_the_published_graph(
    convert: Convert, lstm_files: dict[str, np.ndarray], tmp_path: Path
) -> None:
    printed = convert("deeper_lstm", ["lstm.t7"], SETTINGS)
    assert "out.safetensors: 3 answers, " in printed
    assert "check-model recipes/deeper_lstm.yaml --set model.checkpoint=out.safetensors" in printed
    model = freeze(deeper_lstm.load(tmp_path / "out.safetensors").double())
    assert (model.config.words, model.config.answers) == (WORDS, ANSWERS)
    generator = torch.Generator().manual_seed(1)
    canvas = 255 * torch.rand(3, 3, 56, 56, dtype=torch.float64, generator=generator)
    logits = model.logits(canvas, QUESTIONS)
    features = model.trunk(model.normalise(canvas)).numpy()
    state = {name: tensor.double().numpy() for name, tensor in trunk_state().items()}
    fully = {name.replace("classifier", "image.fully"): tensor for name, tensor in state.items()}
    for row, question in enumerate(QUESTIONS):
        image = image_vector(fully, features[row], 3, 2)
        numbers = [1 + WORDS.index(word if word in WORDS else "UNK") for word in question]
        sizes = {**SIZES, "words": 6, "answers": 3}
        expected = published.deeper_lstm(lstm_files, sizes, numbers, image)
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=1e-12)


def test_doubles_are_converted_too(
    convert: Convert, lstm_files: dict[str, np.ndarray], tmp_path: Path
) -> None:
    convert("deeper_lstm", ["lstm.t7"], SETTINGS)
    single = deeper_lstm.load(tmp_path / "out.safetensors").state_dict()
    torch7.save({k: v.astype(np.float64) for k, v in lstm_files.items()}, tmp_path / "lstm.t7")
    convert("deeper_lstm", ["lstm.t7"], SETTINGS)
    double = deeper_lstm.load(tmp_path / "out.safetensors").state_dict()
    assert all(torch.equal(single[name], double[name]) for name in single)


def test_published_sizes_of_the_flat_vectors() -> None:
    """The released file's lengths, with the default settings."""
    parts = layout(PUBLISHED_DEEPER)
    count = {k: sum(int(np.prod(p.shape)) for p in found) for k, (found, _) in parts.items()}
    words = len(PUBLISHED_DEEPER.words)
    assert count == {
        "embedding_w_q": 200 * words + 200,
        "encoder_w_q": 3_564_033,
        "multimodal_w": 7_318_504,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["state=6"],
            "'encoder_w_q' holds 526 numbers, embedding=7, state=6 and layers=2 make 703; give the "
            "vocabulary that the model was trained with, or --set the sizes it was trained with",
        ),
        (["embedding=8"], "'embedding_w_q' holds 49 numbers, 6 words and embedding=8 make 56; "),
        (["combine=12"], "'multimodal_w' holds 377 numbers, combine=12, state=5, layers=2, fully="),
        (["staet=6"], "(staet: Extra inputs are not permitted); settings are trunk, channels, "),
        (["state=-1"], "(state: Input should be greater than 0); settings are trunk, channels, "),
        (["fully=[13,9]"], "tensor 'classifier.0.weight' has shape [12, 40], the model needs [13,"),
        (["fully=[12,8,9]"], "'classifier.3.weight' has shape [9, 12], the model needs [8, 12]; "),
        (["pool=7"], "tensor 'classifier.0.weight' has shape [12, 40], the model needs [12, 10]; "),
        (["channels=[4,6,8,12]"], "tensor 'features.5.conv1.weight' has shape [10, 8, 3, 3], the "),
    ],
)
def test_other_sizes_than_the_file_s_are_refused(
    convert: Convert, lstm_files: object, settings: list[str], message: str, tmp_path: Path
) -> None:
    assert message in convert("deeper_lstm", ["lstm.t7"], [*SETTINGS, *settings], status=2)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "data_prepro.json is not JSON ("),
        ("[" * 5000, "data_prepro.json is not JSON ("),
        ("[1]", "data_prepro.json has no 'ix_to_word'; give the JSON file that VQA_LSTM_CNN's"),
        ('{"ix_to_word": {"1": "UNK"}}', "data_prepro.json has no 'ix_to_ans'; "),
        (
            '{"ix_to_word": {"0": "a", "1": "UNK"}, "ix_to_ans": {"1": "no"}}',
            "data_prepro.json: the 2 entries of 'ix_to_word' are not texts numbered 1 to 2; ",
        ),
        (
            '{"ix_to_word": {"1": 3}, "ix_to_ans": {"1": "no"}}',
            "data_prepro.json: the 1 entries of 'ix_to_word' are not texts numbered 1 to 1; ",
        ),
        (
            '{"ix_to_word": {"1": "a"}, "ix_to_ans": {"1": "no"}}',
            "describe a model (Value error, the last of the words must be 'UNK'); settings are ",
        ),
        (
            '{"ix_to_word": {"1": "a", "2": "UNK"}, "ix_to_ans": {"1": "no"}}',
            "'embedding_w_q' holds 49 numbers, 2 words and embedding=7 make 21; give the vocab",
        ),
    ],
)
def test_wrong_vocabularies_are_refused(
    convert: Convert, lstm_files: object, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "data_prepro.json").write_text(content)
    assert message in convert("deeper_lstm", ["lstm.t7"], SETTINGS, status=2)


def test_wrong_files_are_refused(
    convert: Convert, lstm_files: dict[str, np.ndarray], tmp_path: Path
) -> None:
    def refused(weights: Sequence[str] = ("lstm.t7",), model: str = "deeper_lstm") -> str:
        return convert(model, weights, SETTINGS, status=2)

    assert "no published files of 'kazemi' are known. Known: deeper_lstm, san." in refused(
        model="kazemi"
    )
    assert "2 files are given, a .t7 is one" in refused(["lstm.t7", "lstm.t7"])
    assert "cannot read the weights none.t7: No such file" in refused(["none.t7"])
    assert "vgg.safetensors is no file of Torch7's torch.save" in refused(["vgg.safetensors"])
    torch7.save({"model_params": lstm_files["multimodal_w"]}, tmp_path / "lstm.t7")
    assert "no flat vector 'embedding_w_q' (it holds 'model_params'); give the file" in refused()
    torch7.save(lstm_files["multimodal_w"], tmp_path / "lstm.t7")
    assert "no flat vector 'embedding_w_q' (it holds no table); give the file" in refused()
    torch7.save({"embedding_w_q": 3}, tmp_path / "lstm.t7")
    assert "no flat vector 'embedding_w_q' (it holds 'embedding_w_q'); give the" in refused()
    lstm_files["encoder_w_q"][7] = np.nan
    torch7.save(lstm_files, tmp_path / "lstm.t7")
    assert "'encoder_w_q' holds numbers that are not finite; copy the file again" in refused()
    (tmp_path / "data_prepro.json").unlink()
    assert "cannot read the vocabulary data_prepro.json: No such file" in refused()


def test_caffe_names_are_those_of_torchvision_in_the_order_of_the_layers(tmp_path: Path) -> None:
    """conv1_1 to conv5_4 on a narrow VGG-19, fc6 and fc7; fc8 is left out."""
    blocks = [(2, 2), (2, 2), (2, 4), (2, 4), (3, 4)]
    caffe, features, inputs = {}, nn.Sequential(), 3
    for block, (width, count) in enumerate(blocks, 1):
        for k in range(1, count + 1):
            features.extend([nn.Conv2d(inputs, width, 3), nn.ReLU()])
            inputs = width
            for name, tensor in nn.Conv2d(*features[-2].weight.shape[1::-1], 3).named_parameters():
                caffe[f"conv{block}_{k}.{name}"] = tensor.detach()
    features.requires_grad_(False)
    fully = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 5), nn.ReLU())
    fully.requires_grad_(False)
    for k, (i, o) in enumerate(((12, 5), (5, 5), (5, 9)), 6):
        caffe |= {f"fc{k}.{n}": p.detach() for n, p in nn.Linear(i, o).named_parameters()}
    torch.save(dict(reversed(caffe.items())), tmp_path / "vgg.pth")
    load_vgg(features, fully, tmp_path / "vgg.pth", "vgg19")
    assert torch.equal(features[0].weight, caffe["conv1_1.weight"])
    assert torch.equal(features[2 * 11].bias, caffe["conv4_4.bias"])
    assert torch.equal(features[2 * 15].weight, caffe["conv5_4.weight"])
    assert torch.equal(fully[3].weight, caffe["fc7.weight"])
    caffe["conv5_5.weight"] = torch.zeros(1)
    torch.save(caffe, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match="has 17 convolutions, the trunk 16; give weights of the"):
        load_vgg(features, fully, tmp_path / "vgg.pth", "vgg19")


def test_older_names_are_read_and_torchvision_s_own_weights_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "vgg.pth", trunk_state()
    for new, old in (("0", "1"), ("3", "4")):
        for kind in ("weight", "bias"):
            state[f"classifier.{old}.{kind}"] = state.pop(f"classifier.{new}.{kind}")
    features = TRUNKS["small"]((4, 6, 8, 10)).requires_grad_(False)
    relu, drop = nn.ReLU(), nn.Dropout()
    fully = nn.Sequential(nn.Linear(40, 12), relu, drop, nn.Linear(12, 9), relu, drop)
    torch.save(state, path)
    load_vgg(features, fully, path, "small")
    assert torch.equal(fully[3].weight, state["classifier.4.weight"])
    state["features.0.weight"].view(-1)[:3] = torch.tensor([-0.053474, -0.049257, -0.067942])
    torch.save(state, path)
    with pytest.raises(UserError, match=r"is torchvision's own VGG-19, trained on RGB in 0\.\.1; "):
        load_vgg(features, fully, path, "small")


def san_length(stacks: int) -> int:
    """Numbers of a small network of ``SAN_SIZES`` over 10 channels, counted layer by layer."""
    lstms = 7 * 7 + 24 * (7 + 1 + 6) + 24 * (6 + 1 + 6)
    return lstms + 6 * 11 + stacks * (5 * 7 + 5 * 7 + 6) + 3 * 7


@pytest.fixture
def san_files_of(tmp_path: Path) -> Callable[[int], np.ndarray]:
    """Writes ``san.t7`` of so many attention layers, and its vocabulary and trunk."""

    def write(stacks: int) -> np.ndarray:
        vector = random_vector(san_length(stacks), stacks)
        options = {"rnn_size": 6, "num_attention_layers": stacks, "log_path": "logs/", "gpu": 0}
        file = {"model_params": torch7.cuda(vector), "opt": options}
        torch7.save(file, tmp_path / "san.t7")
        write_vocabulary(tmp_path / "data_prepro.json")
        save_file(trunk_state(), tmp_path / "vgg.safetensors")
        return vector

    return write


@pytest.mark.parametrize("stacks", [1, 2, 3])
def test_converted_san_answers_as_the_published_graph(
    convert: Convert, san_files_of: Callable[[int], np.ndarray], stacks: int, tmp_path: Path
) -> None:
    vector = san_files_of(stacks)
    convert("san", ["san.t7"], SAN_SETTINGS)  # the file states how many layers it has
    model = freeze(san.load(tmp_path / "out.safetensors").double())
    assert model.geometry.glimpses == stacks
    generator = torch.Generator().manual_seed(1)
    canvas = 255 * torch.rand(3, 3, 32, 32, dtype=torch.float64, generator=generator)
    features = model.trunk(model.normalise(canvas))
    output = model.head(features, model.encode(model.words(QUESTIONS)))
    assert output.attention is not None
    sizes = {**SAN_SIZES, "words": 6, "answers": 3, "stacks": stacks}
    for row, question in enumerate(QUESTIONS):
        numbers = [1 + WORDS.index(word if word in WORDS else "UNK") for word in question]
        logits, attention = published.san(vector, sizes, numbers, features[row].numpy())
        np.testing.assert_allclose(output.logits[row], logits, rtol=0, atol=1e-9)
        np.testing.assert_allclose(output.attention[row].flatten(1), attention, rtol=0, atol=1e-9)


def test_san_of_other_sizes_is_refused(
    convert: Convert, san_files_of: Callable[[int], np.ndarray], tmp_path: Path
) -> None:
    san_files_of(2)
    refused = convert("san", ["san.t7"], [*SAN_SETTINGS, "stacks=1"], status=2)
    assert (
        f"san.t7: 'model_params' holds {san_length(2)} numbers, 6 words, 3 answers, embedding=7, "
        f"state=6, layers=2, attention=5, stacks=1 make {san_length(1)}; give the vocabulary that "
        "the model was trained with, or --set the sizes it was trained with"
    ) in refused
    assert "2 files are given" in convert("san", ["san.t7", "san.t7"], SAN_SETTINGS, status=2)
    assert "cannot read the weights none.t7: No such" in convert("san", ["none.t7"], [], status=2)
    torch7.save({"opt": {"rnn_size": 0.5}}, tmp_path / "san.t7")
    assert "(state: Input should be a valid integer" in convert("san", ["san.t7"], [], status=2)
    torch7.save({"opt": {"num_attention_layers": 1e9}}, tmp_path / "san.t7")
    assert "(stacks: Input should be less than or equal to 64)" in convert(
        "san", ["san.t7"], [], status=2
    )
    torch7.save({"opt": 3}, tmp_path / "san.t7")
    assert "no flat vector 'model_params' (it holds 'opt'); give the" in convert(
        "san", ["san.t7"], SAN_SETTINGS, status=2
    )


def test_published_length_of_san_2() -> None:
    """Counted by hand from the published graph's layers."""
    words = len(PUBLISHED_SAN.words)
    lstm = 200 * 4096 + 4096 + 1024 * 4096 + 1024 * 4096 + 4096 + 1024 * 4096
    layer = 2 * (1024 * 512 + 512) + 512 + 1
    parts, _ = san_files.layout(PUBLISHED_SAN)
    assert sum(int(np.prod(part.shape)) for part in parts) == (
        200 * (words + 1) + lstm + 513 * 1024 + 2 * layer + 1025 * 1000
    )


class PublishedSAN(nn.Module):
    """abhi608/sans-pytorch's three models in one, written from its description."""

    def __init__(self) -> None:
        super().__init__()
        self.lookuptable = nn.Linear(6, 7, bias=False)
        self.LSTM = nn.LSTM(7, 6, 2, batch_first=True)
        self.linear = nn.Linear(10, 6)
        self.fc11, self.fc12 = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        self.fc21, self.fc22 = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        self.fc13, self.fc23, self.fc = nn.Linear(5, 1), nn.Linear(5, 1), nn.Linear(6, 3)

    def forward(self, question: Sequence[int], features: torch.Tensor) -> list[torch.Tensor]:
        one_hot = torch.eye(6)[list(question)][None]
        u = self.LSTM(torch.tanh(self.lookuptable(one_hot)))[0][:, -1]
        image = torch.tanh(self.linear(features.flatten(1).T))[None]
        maps = []
        for ask, look, score in (
            (self.fc11, self.fc12, self.fc13),
            (self.fc21, self.fc22, self.fc23),
        ):
            p = score(torch.tanh(ask(u).view(1, 1, 5) + look(image))).view(1, 1, -1).softmax(2)
            u = u + p.matmul(image).view(1, -1)
            maps.append(p.flatten())
        return [self.fc(u)[0], *maps]


def test_converted_pytorch_san_answers_as_the_published_modules(
    convert: Convert, san_files_of: Callable[[int], np.ndarray], tmp_path: Path
) -> None:
    san_files_of(2)
    torch.manual_seed(4)
    net = PublishedSAN().eval().requires_grad_(False)
    state = net.state_dict()
    parts = {"question": ("lookuptable", "LSTM"), "image": ("linear",), "attention": ("fc",)}
    for name, heads in parts.items():
        part = {key: tensor for key, tensor in state.items() if key.startswith(heads)}
        torch.save(part, tmp_path / f"{name}_model.pkl")
    three = [f"{name}_model.pkl" for name in parts]
    convert("san", three, SAN_SETTINGS)
    model = freeze(san.load(tmp_path / "out.safetensors"))
    assert model.config.word_tanh
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(3, 10, 4, 4, generator=generator)
    output = model.head(features, model.encode(model.words(QUESTIONS)))
    assert output.attention is not None
    for row, question in enumerate(QUESTIONS):
        numbers = [WORDS.index(word if word in WORDS else "UNK") for word in question]
        logits, *maps = net(numbers, features[row])
        torch.testing.assert_close(output.logits[row], logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(output.attention[row].flatten(1), torch.stack(maps))
    torch.save(state, tmp_path / "merged.pth")
    convert("san", ["merged.pth"], SAN_SETTINGS)
    again = san.load(tmp_path / "out.safetensors").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())

    def refused(*files: str) -> str:
        return convert("san", files, SAN_SETTINGS, status=2)

    assert "question_model.pkl, image_model.pkl lacks 12 tensors, first 'fc.weight' " in refused(
        *three[:2]
    )
    assert "merged.pth has a tensor 'linear.weight' that a file before it has" in refused(
        "image_model.pkl", "merged.pth"
    )
    torch.save({**state, "fc12.bias": torch.zeros(5)}, tmp_path / "merged.pth")
    assert "merged.pth has a tensor 'fc12.bias' of shape [5], which the model has" in refused(
        "merged.pth"
    )
    torch.save({**state, "fc21.weight": torch.zeros(5, 7)}, tmp_path / "merged.pth")
    assert "tensor 'fc21.weight' has shape [5, 7], the model needs [5, 6]; give" in refused(
        "merged.pth"
    )


def named(parts: Sequence[Part]) -> list[str]:
    """The modules of these parameters, each once."""
    return [*dict.fromkeys(part.name.rsplit(".", 1)[0] for part in parts)]


@pytest.mark.parametrize("stacks", [1, 2, 3])
def test_order_of_the_san_s_parameters_is_nngraph_s(stacks: int) -> None:
    modules = nngraph.stacked_attention(stacks)
    parts, _ = san_files.layout(PUBLISHED_SAN.model_copy(update={"stacks": stacks}))
    assert named(parts)[2:] == [m for m in modules if m in named(parts)]
    if stacks == 2:  # where the project's eval.lua reads the attention, counted from 1
        assert (modules[22 - 1], modules[35 - 1]) == ("softmax0", "softmax1")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_order_of_the_deeper_lstm_s_parameters_is_nngraph_s(layers: int) -> None:
    parts = layout(PUBLISHED_DEEPER.model_copy(update={"layers": layers}))
    linear = [m for m in nngraph.conventional_lstm(layers) if m[:2] in ("ih", "hh", "un")]
    found = [part.name for part in parts["encoder_w_q"][0] if "weight" in part.name]
    places = [f"question.lstm.weight_{m[:2]}_l{m[2:]}" for m in linear[:-1]]
    assert found == [*places, "unused.weight"]
    multimodal = named(parts["multimodal_w"][0])
    assert multimodal == [*(m for m in nngraph.product() if m in multimodal), "answer"]
