"""Weight files: what is read, and the exact words for each one that is refused."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from workers.errors import UserError
from workers.models import kazemi, specs
from workers.models.checkpoints import read_state_dict, read_torch
from workers.models.digest import weights_digest
from workers.models.kazemi import FORMAT, Kazemi, KazemiConfig
from workers.models.specs import DemoSpec, EasyVQASpec, KazemiSpec
from workers.models.trunks import TRUNKS

CPU = torch.device("cpu")
CONFIG = KazemiConfig(
    trunk="small",
    channels=(2, 3, 4, 5),
    image_size=24,
    tokeniser="simple",
    embedding=4,
    state=5,
    attention=6,
    hidden=7,
    words=("is", "it", "red"),
    answers=("no", "yes"),
)
AGAIN = "save the model again with workers.models.kazemi.save"
RESNET18 = "give weights of the trunk 'resnet18' under torchvision's parameter names"


def refusal(spec: specs.ModelSpec) -> str:
    with pytest.raises(UserError) as caught:
        spec.build(CPU)
    return str(caught.value)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A file of our own format."""
    torch.manual_seed(0)
    kazemi.save(Kazemi(CONFIG), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """The file with other tensors or metadata."""
    model = kazemi.load(path)
    described = {"format": FORMAT, "config": model.config.model_dump_json(), **metadata}
    save_file(model.state_dict() if tensors is None else tensors, path, described)


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """A ResNet-18 state_dict as torchvision has it, classifier included."""
    torch.manual_seed(1)
    layers = dict(TRUNKS["resnet18"](()).state_dict())
    torch.save({**layers, "fc.weight": torch.zeros(1000, 512)}, tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def released(**changes: Any) -> dict[str, Any]:
    """A checkpoint in the layout of pytorch-vqa's ``logs/NAME.pth``, with small sizes."""
    torch.manual_seed(2)
    config = CONFIG.model_copy(update={"trunk": "resnet18", "image_size": 32})
    weights = {
        f"module.{name}": tensor
        for name, tensor in Kazemi(config).state_dict().items()
        if not name.startswith("trunk_net.")
    }
    return {
        "name": "2017-08-04_00.55.19",
        "tracker": {"train_loss": [[0.5, 0.25]], "val_acc": [[torch.tensor(0.5)]]},
        "config": {"image_size": 64, "central_fraction": 0.5, "max_answers": 3000, "task": "x"},
        "weights": weights,
        "eval": {"answers": [torch.tensor(1)], "accuracies": [torch.tensor(0.3)], "idx": [0]},
        "vocab": {"question": {"red": 3, "is": 1, "it": 2}, "answer": {"yes": 1, "no": 0}},
        **changes,
    }


def test_saved_model_loads_with_the_same_weights_and_settings(ours: Path) -> None:
    model, again = kazemi.load(ours), KazemiSpec(checkpoint=ours).build(CPU)
    assert isinstance(again, Kazemi)
    assert again.config == model.config == CONFIG
    assert weights_digest(again) == weights_digest(model)


def test_saved_model_says_its_format_and_configuration(ours: Path) -> None:
    raw = ours.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["format"] == "vqatlas-kazemi-1"
    assert json.loads(header["__metadata__"]["config"])["words"] == ["is", "it", "red"]


def test_recipe_overrides_the_checkpoint_s_image_size(ours: Path) -> None:
    model = KazemiSpec(checkpoint=ours, image_size=40, central_fraction=1.0).build(CPU)
    assert (model.geometry.input_height, model.geometry.feature_height) == (40, 5)
    assert model.config == CONFIG.model_copy(update={"image_size": 40, "central_fraction": 1.0})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_released_checkpoint_and_trunk_make_one_model(
    tmp_path: Path, trunk: Path, zipped: bool
) -> None:
    path, content = tmp_path / "released.pth", released()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = KazemiSpec(checkpoint=path, trunk_checkpoint=trunk, trunk="resnet18").build(CPU)
    assert isinstance(model, Kazemi)
    config = model.config
    assert (config.words, config.answers) == (("is", "it", "red"), ("no", "yes"))
    assert (config.image_size, config.central_fraction) == (64, 0.5)
    assert (config.tokeniser, config.resize) == ("pytorch_vqa", "shorter_side_crop")
    assert (config.embedding, config.state, config.attention, config.hidden) == (4, 5, 6, 7)
    loaded = model.state_dict()
    for name, tensor in content["weights"].items():
        assert torch.equal(loaded[name.removeprefix("module.")], tensor)
    for name, tensor in read_state_dict(trunk).items():
        assert name == "fc.weight" or torch.equal(loaded[f"trunk_net.{name}"], tensor)


def test_trunk_checkpoint_older_than_batch_counters_loads(tmp_path: Path, trunk: Path) -> None:
    layers = {k: v for k, v in read_state_dict(trunk).items() if "num_batches" not in k}
    torch.save(layers, trunk)
    torch.save(released(), tmp_path / "released.pth")
    spec = KazemiSpec(
        checkpoint=tmp_path / "released.pth", trunk_checkpoint=trunk, trunk="resnet18"
    )
    assert torch.equal(
        spec.build(CPU).state_dict()["trunk_net.conv1.weight"], layers["conv1.weight"]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either checkpoint (a weight file) or random_seed (a number)"),
        (
            {"checkpoint": "a", "random_seed": 1},
            "give either checkpoint (a weight file) or random_seed (a number)",
        ),
        (
            {"trunk_checkpoint": "a", "random_seed": 1},
            "trunk_checkpoint goes with checkpoint, not with random_seed",
        ),
    ],
)
def test_recipe_without_one_source_of_weights_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        KazemiSpec(**fields)
    assert caught.value.errors()[0]["msg"] == f"Value error, {message}"


def test_checkpoint_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    assert refusal(KazemiSpec(checkpoint=path)) == (
        f"cannot read the weights {path}: No such file or directory; give the path of a weight file"
    )
    assert refusal(KazemiSpec(checkpoint=tmp_path)) == (
        f"cannot read the weights {tmp_path}: Is a directory; give the path of a weight file"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(50), pickle.dumps({"weights": {}})],
    ids=["empty", "text", "png", "plain pickle"],
)
def test_checkpoint_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert refusal(KazemiSpec(checkpoint=path)) == (
        f"{path} is neither a safetensors file nor a PyTorch checkpoint; give one of the two"
    )


def damaged(path: Path) -> str:
    return (
        f"{path} is damaged, or holds more than tensors in plain containers, which could run "
        "code and is not loaded; copy it again, or save only its state_dict"
    )


def test_checkpoint_that_is_another_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not weights")
    assert refusal(KazemiSpec(checkpoint=path)) == damaged(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoint_cut_in_half_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(released(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(KazemiSpec(checkpoint=path)) == damaged(path)


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoint_with_code_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    content = {"weights": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert refusal(KazemiSpec(checkpoint=path)) == damaged(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file would have run code"


def test_safetensors_cut_in_half_is_refused(ours: Path) -> None:
    ours.write_bytes(ours.read_bytes()[: ours.stat().st_size // 2])
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} is a damaged safetensors file; copy or make it again"
    )


def test_safetensors_of_another_format_is_refused(ours: Path) -> None:
    rewrite(ours, format="vqatlas-kazemi-9")
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} says its format is 'vqatlas-kazemi-9', only 'vqatlas-kazemi-1' can be read; "
        f"{AGAIN}"
    )
    save_file({"weight": torch.zeros(1)}, ours)
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} says its format is None, only 'vqatlas-kazemi-1' can be read; {AGAIN}"
    )


def test_safetensors_with_a_wrong_configuration_is_refused(ours: Path) -> None:
    fields = CONFIG.model_dump(mode="json")
    rewrite(ours, config=json.dumps({**fields, "glimpses": 0}))
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} holds no valid configuration (glimpses: Input should be greater than 0); {AGAIN}"
    )


def test_safetensors_with_other_tensors_is_refused(ours: Path) -> None:
    whole = kazemi.load(ours).state_dict()
    wrong = {**whole, "attention.v_conv.weight": torch.zeros(6, 8, 1, 1)}
    rewrite(ours, wrong)
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours}: tensor 'attention.v_conv.weight' has shape [6, 8, 1, 1], the model needs "
        f"[6, 5, 1, 1]; {AGAIN}"
    )


def test_safetensors_with_a_missing_or_extra_tensor_is_refused(ours: Path) -> None:
    whole = kazemi.load(ours).state_dict()
    metadata = {"format": FORMAT, "config": CONFIG.model_dump_json()}
    save_file({k: v for k, v in whole.items() if k != "attention.q_lin.bias"}, ours, metadata)
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} lacks a tensor 'attention.q_lin.bias' of shape [6], which the model needs; {AGAIN}"
    )
    save_file({**whole, "extra": torch.zeros(2, 3)}, ours, metadata)
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} has a tensor 'extra' of shape [2, 3], which the model has no place for; {AGAIN}"
    )
    more = {f"extra{i}": torch.zeros(i + 1) for i in range(4)}
    save_file({**whole, **more}, ours, metadata)
    assert refusal(KazemiSpec(checkpoint=ours)) == (
        f"{ours} has 4 tensors, first 'extra0' [1], 'extra1' [2], 'extra2' [3], which the model "
        f"has no place for; {AGAIN}"
    )


def test_own_checkpoint_with_a_trunk_beside_it_is_refused(ours: Path, trunk: Path) -> None:
    assert refusal(KazemiSpec(checkpoint=ours, trunk_checkpoint=trunk)) == (
        f"{ours} has its own trunk; leave out trunk_checkpoint ({trunk})"
    )


def test_released_checkpoint_without_a_trunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "released.pth"
    torch.save(released(), path)
    assert refusal(KazemiSpec(checkpoint=path)) == (
        f"{path} holds no image trunk; give the trunk's state_dict as trunk_checkpoint, or what it "
        "gave as features (resnet-14x14.h5)"
    )


NOT_RELEASED = (
    "so it is not a checkpoint of pytorch-vqa; give the file that its training or its release "
    "wrote (a trunk goes into trunk_checkpoint)"
)
NUMBERED = "write it again with pytorch-vqa's preprocess-vocab.py"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, f" has no 'weights', {NOT_RELEASED}"),
        ({"vocab": [1]}, f" has no 'vocab', {NOT_RELEASED}"),
        ({"vocab": {"question": {"a": 1}}}, f" has no 'answer', {NOT_RELEASED}"),
        (
            {"weights": {"module.text": "embedding"}},
            ": 'weights': entry 'module.text' is a str, not a tensor; save model.state_dict()",
        ),
        (
            {"weights": {"text.embedding.weight": torch.zeros(4)}},
            ": 'weights' has no tensor 'text.embedding.weight' with 2 axes or more, which the "
            "model needs; its first tensors are 'text.embedding.weight' [4]; give a checkpoint of "
            "pytorch-vqa's published network",
        ),
        (
            {"vocab": {"question": {"is": 0, "it": 1}, "answer": {"no": 0}}},
            f": the question vocabulary of 2 entries is not numbered 1 to 2; {NUMBERED}",
        ),
        (
            {"vocab": {"question": {"is": 1}, "answer": {"no": 0, "yes": 0}}},
            f": the answer vocabulary of 2 entries is not numbered 0 to 1; {NUMBERED}",
        ),
        (
            {"vocab": {"question": {"is": 1}, "answer": {"no": 0, "yes": 1}}},
            ": tensor 'text.embedding.weight' has shape [4, 4], the model needs [2, 4]; give one "
            "trained on the trunk 'resnet18'",
        ),
        (
            {"config": {"image_size": -1}},
            " does not describe a model (image_size: Input should be greater than 0); give the "
            "file as pytorch-vqa wrote it",
        ),
    ],
)
def test_released_checkpoint_with_a_wrong_part_is_refused(
    tmp_path: Path, trunk: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "released.pth"
    torch.save(released(**changes), path)
    spec = KazemiSpec(checkpoint=path, trunk_checkpoint=trunk, trunk="resnet18")
    assert refusal(spec) == f"{path}{message}"


def test_released_checkpoint_on_another_trunk_is_refused(tmp_path: Path, trunk: Path) -> None:
    path = tmp_path / "released.pth"
    torch.save(released(), path)
    spec = KazemiSpec(checkpoint=path, trunk_checkpoint=trunk, trunk="small")
    assert refusal(spec) == (
        f"{path}: tensor 'attention.v_conv.weight' has shape [6, 512, 1, 1], the model needs "
        "[6, 96, 1, 1]; give one trained on the trunk 'small'"
    )


def test_trunk_checkpoint_with_other_tensors_is_refused(tmp_path: Path, trunk: Path) -> None:
    path = tmp_path / "released.pth"
    torch.save(released(), path)
    spec = KazemiSpec(checkpoint=path, trunk_checkpoint=trunk, trunk="resnet18")
    layers = read_state_dict(trunk)
    torch.save({k: v for k, v in layers.items() if k != "bn1.bias"}, trunk)
    assert refusal(spec) == (
        f"{trunk} lacks a tensor 'bn1.bias' of shape [64], which the model needs; {RESNET18}"
    )
    torch.save({**layers, "conv1.weight": torch.zeros(64, 1, 7, 7)}, trunk)
    assert refusal(spec) == (
        f"{trunk}: tensor 'conv1.weight' has shape [64, 1, 7, 7], the model needs [64, 3, 7, 7]; "
        f"{RESNET18}"
    )
    torch.save({**layers, "layer5.0.conv1.weight": torch.zeros(1)}, trunk)
    assert refusal(spec) == (
        f"{trunk} has a tensor 'layer5.0.conv1.weight' of shape [1], which the model has no place "
        f"for; {RESNET18}"
    )
    torch.save([1, 2], trunk)
    assert refusal(spec) == f"{trunk} is a list, not a state_dict; save model.state_dict()"


@pytest.mark.parametrize("seed", range(3))
def test_checkpoint_with_flipped_bytes_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    """Nothing but ``UserError`` comes out of a damaged header."""
    path, generator = tmp_path / "model.pth", torch.Generator().manual_seed(seed)
    for zipped in (True, False):
        torch.save({"a": torch.zeros(9)}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            where, value = torch.randint(0, 400, (2, 4), generator=generator).tolist()
            for position, byte in zip(where, value, strict=True):
                data[position % len(data)] = byte % 256
            path.write_bytes(data)
            try:
                read_torch(path)
            except UserError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize(
    ("spec", "file", "command"),
    [
        (DemoSpec(), "demo.safetensors", "make demo-model"),
        (EasyVQASpec(), "easy_vqa.safetensors", "make easy-vqa-model"),
    ],
)
def test_shipped_model_without_its_file_names_the_command(
    spec: specs.ModelSpec, file: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "WEIGHTS", tmp_path)
    assert refusal(spec) == f"{tmp_path / file} does not exist; make it with `{command}`"


def test_shipped_model_loads_from_its_file(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "WEIGHTS", ours.parent)
    ours.rename(ours.parent / "demo.safetensors")
    model = DemoSpec().build(CPU)
    assert model.config == CONFIG
    assert not any(module.training for module in model.modules())


def test_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    assert refusal(KazemiSpec(checkpoint=path)) == (
        f"{path} is packed, 1000000 bytes in {path.stat().st_size}, which no file of torch.save "
        "is; copy it again, or save only its state_dict"
    )


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**12),
        torch.zeros(5, 5).to_sparse(),
        torch.empty(10**12, device="meta"),
    ],
    ids=["view", "sparse", "without values"],
)
def test_checkpoint_with_a_tensor_larger_than_the_file_is_refused(
    tmp_path: Path, tensor: Tensor
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"module.a": tensor}, path)
    with pytest.raises(UserError, match=r"entry 'module\.a' is a view"):
        read_state_dict(path)


def test_state_dict_with_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="a tensor is named by a int"):
        read_state_dict(tmp_path / "model.pth")


@pytest.mark.parametrize("number", ["1", [1], None, float("nan"), True])
def test_released_vocabulary_numbered_by_no_number_is_refused(
    tmp_path: Path, number: object
) -> None:
    path = tmp_path / "model.pth"
    vocab = {"question": {"red": number, "is": 1}, "answer": {"yes": 1, "no": 0}}
    torch.save(released(vocab=vocab), path)
    assert "the question vocabulary of 2 entries is not numbered" in refusal(
        KazemiSpec(checkpoint=path)
    )


def test_safetensors_of_truth_values_is_refused(ours: Path) -> None:
    tensors = {name: t.bool() for name, t in kazemi.load(ours).state_dict().items()}
    rewrite(ours, tensors)
    assert "is of torch.bool, the model needs torch.float32" in refusal(KazemiSpec(checkpoint=ours))


class Calls:
    """Pickled as a call of something that ``weights_only`` allows."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoint_that_claims_memory_is_refused(tmp_path: Path, zipped: bool) -> None:
    """A hundred bytes that would become a gigabyte of zeros."""
    path = tmp_path / "model.pth"
    size = 10**5
    torch.save({"a": Calls(bytearray, size)}, path, _use_new_zipfile_serialization=zipped)
    assert len(torch.load(path, weights_only=True)["a"]) == size, "PyTorch allows it"
    with pytest.raises(UserError, match="holds a bytearray"):
        read_torch(path)


def test_checkpoint_whose_tensors_are_not_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": Calls(torch.FloatTensor, 10**6)}, path)
    with pytest.raises(UserError, match="its tensors take 4000000 bytes, the whole file"):
        read_state_dict(path)
