"""The stacked attention network: its formulas, its contract, its files and its published sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pipeline import explain
from tests import nets
from tests.reference import san as reference
from workers import catalog
from workers.errors import UserError
from workers.methods.attention import Attention
from workers.methods.base import Scene
from workers.methods.gradients import GradCam
from workers.methods.occlusion import Occlusion
from workers.models import deeper_lstm, san
from workers.models.base import Capability, SplitModel, Tokens, Words, freeze
from workers.models.san import SAN
from workers.models.specs import PUBLISHED_SAN, SANSpec

CONFIG = nets.STACKED
QUESTIONS: list[Tokens] = [
    ("what", "color", "is", "the", "circle"),
    (),
    ("circle",),
    ("zebra", "the"),
    ("is",) * 300,
]


def make(**changes: object) -> SAN:
    return freeze(san.untrained(CONFIG.model_copy(update=changes), 0).double())


def canvases(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 255 * torch.rand(n, 3, 32, 32, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    ("stacks", "layers", "word_tanh"), [(2, 2, False), (1, 2, False), (3, 1, True)]
)
def test_san_equals_the_published_formulas(stacks: int, layers: int, word_tanh: bool) -> None:
    model = make(stacks=stacks, layers=layers, word_tanh=word_tanh)
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    features = model.trunk(model.normalise(canvases(len(QUESTIONS))))
    states = model.encode(model.words(QUESTIONS))
    output = model.head(features, states)
    assert output.attention is not None
    for row, tokens in enumerate(QUESTIONS):
        indices = [CONFIG.words.index(t) if t in CONFIG.words else 5 for t in tokens]
        q = reference.question_state(w, indices, layers, word_tanh)
        np.testing.assert_allclose(states[row], q, rtol=0, atol=1e-12)
        logits, attention = reference.forward(w, features[row].numpy(), q, stacks)
        np.testing.assert_allclose(output.logits[row], logits, rtol=0, atol=1e-9)
        np.testing.assert_allclose(output.attention[row], attention, rtol=0, atol=1e-9)


def test_san_batched_equals_single_and_pooled() -> None:
    model, canvas = make(), canvases(len(QUESTIONS))
    batched = model.logits(canvas, QUESTIONS)
    single = [model.logits(c[None], [q]) for c, q in zip(canvas, QUESTIONS, strict=True)]
    torch.testing.assert_close(batched, torch.cat(single), rtol=0, atol=1e-12)
    states = model.encode(model.words(QUESTIONS))
    pooled = model.pool(model.trunk(model.normalise(canvas)), states)
    each = model.classify(pooled, states).diagonal(dim1=0, dim2=1).T
    torch.testing.assert_close(batched, each, rtol=0, atol=1e-12)


def test_san_padding_has_no_influence_and_an_empty_question_is_zero() -> None:
    model = make()
    words = model.words(QUESTIONS)
    noisy = words.embeddings.clone()
    for row, length in enumerate(words.lengths):
        noisy[row, length:] = 1e6
    states = model.encode(words)
    torch.testing.assert_close(model.encode(Words(noisy, words.lengths)), states, rtol=0, atol=0)
    assert states.abs().sum(1).gt(0).tolist() == [True, False, True, True, True]


def test_san_reads_blue_green_red_less_the_means_and_cuts_long_questions_off() -> None:
    pixel = torch.tensor([123.68, 117.779, 105.939]).reshape(1, 3, 1, 1)
    model = SAN(CONFIG.model_copy(update={"max_words": 3}))
    torch.testing.assert_close(model.normalise(pixel).flatten(), torch.tensor([2.0, 1.0, 0.0]))
    assert model.tokenise("What color is the circle?") == ("what", "color", "is")
    assert model.known("circle")
    assert not model.known("zebra")


def test_attention_of_a_san_is_its_last_layer_s() -> None:
    """The layers' maps differ, and people are compared with the last."""
    model = make(stacks=3)
    for stack in model.stacks:
        stack.score.weight.mul_(20)
    scene = Scene(model, canvases(1)[0], [QUESTIONS[0], QUESTIONS[2]], [1, 2], [None, None])
    arrays = Attention().explain(scene).arrays
    assert {spec.name: spec.shape for spec in Attention().arrays(model.geometry)} == {
        "map": (4, 4),
        "glimpses": (3, 4, 4),
    }
    layers = model.head(scene.features, scene.states[:1]).attention
    np.testing.assert_allclose(arrays["glimpses"][0], layers[0], atol=1e-12)
    np.testing.assert_array_equal(arrays["map"], arrays["glimpses"][:, -1])
    assert np.abs(arrays["map"] - arrays["glimpses"].mean(1)).max() > 1e-3
    np.testing.assert_allclose(arrays["glimpses"].sum((2, 3)), 1)


def test_san_gradients_reach_pixels_and_words_through_frozen_weights() -> None:
    model = make()
    image, words = canvases(1).requires_grad_(), model.words(QUESTIONS[:1])
    embeddings = words.embeddings.detach().requires_grad_()
    states = model.encode(Words(embeddings, words.lengths))
    model.head(model.trunk(model.normalise(image)), states).logits[0, 0].backward()
    assert image.grad.abs().sum() > 0
    assert embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_san_is_occluded_and_has_grad_cam() -> None:
    model, canvas = make(), canvases(1)[0]
    scene = Scene(model, canvas, [QUESTIONS[0], QUESTIONS[2]], [1, 2], [None, None])
    drops = Occlusion(grid=4, score="logit").explain(scene).arrays["drop"]
    painted = canvas.clone()
    painted[:, :8, :8] = torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    both = model.logits(torch.stack([canvas, painted]), [QUESTIONS[2]] * 2)
    answer = scene.rows[1].answer
    assert drops[1, 0, 0] == pytest.approx(float(both[0, answer] - both[1, answer]), rel=1e-6)
    assert GradCam().explain(scene).arrays["map"].shape == (2, 4, 4)
    assert model.provides == SplitModel.provides | {Capability.ATTENTION}


def test_san_is_saved_and_read_back(tmp_path: Path) -> None:
    model, canvas = make().float(), canvases(1).float()
    path = tmp_path / "model.safetensors"
    san.save(model, path)
    again = SANSpec(checkpoint=path).build(torch.device("cpu"))
    assert again.config == model.config
    torch.testing.assert_close(
        again.logits(canvas, QUESTIONS[:1]), model.logits(canvas, QUESTIONS[:1]), rtol=0, atol=0
    )


def test_san_of_another_format_or_with_other_tensors_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    with pytest.raises(UserError, match="'vqatlas-kazemi-1', only 'vqatlas-san-1' can be read"):
        san.load(checkpoint)
    path = tmp_path / "model.safetensors"
    san.save(make(), path)
    tensors = load_file(path)
    metadata = {"format": san.FORMAT, "config": CONFIG.model_dump_json()}
    missing = {name: t for name, t in tensors.items() if name != "stacks.1.score.bias"}
    save_file(missing, path, metadata)
    with pytest.raises(UserError, match=r"lacks a tensor 'stacks.1.score.bias' of shape \[1\]"):
        san.load(path)
    save_file({**tensors, "image.bias": torch.zeros(7)}, path, metadata)
    with pytest.raises(UserError, match=r"'image.bias' has shape \[7\], the model needs \[6\]"):
        san.load(path)


def test_san_needs_one_source_and_sound_vocabularies() -> None:
    for given in ({}, {"checkpoint": Path("a"), "random_seed": 1}):
        with pytest.raises(ValidationError, match="give either checkpoint"):
            SANSpec(**given)
    with pytest.raises(ValidationError, match="the last of the words must be 'UNK'"):
        san.SANConfig(words=("what",), answers=("no",))
    assert catalog.MODELS["san"] is SANSpec


def test_published_san_has_the_published_sizes() -> None:
    with torch.device("meta"):
        model = SAN(PUBLISHED_SAN)
    assert (model.geometry.feature_height, model.geometry.feature_width) == (14, 14)
    shapes = {name: [*tensor.shape] for name, tensor in model.state_dict().items()}
    assert shapes["image.weight"] == [1024, 512]
    assert shapes["question.lstm.weight_ih_l1"] == [4096, 1024]
    assert shapes["stacks.1.question.weight"] == [512, 1024]
    assert shapes["answer.weight"] == [1000, 1024]
    assert sum(p.numel() for p in model.trunk_net.parameters()) == 20_024_384  # VGG-19's 16 layers


def test_our_weight_files_are_explained_whichever_model_they_hold(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    san.save(san.untrained(CONFIG, 0), tmp_path / "san.safetensors")
    deeper_lstm.save(deeper_lstm.untrained(nets.LSTM, 0), tmp_path / "lstm.safetensors")
    shapes = {"san": ("attention", "map", (4, 4)), "lstm": ("grad_cam", "map", (7, 7))}
    for name, (method, array, shape) in shapes.items():
        found = explain(str(tmp_path / f"{name}.safetensors"), image, "what color?", [method])
        assert found.maps[method][array].shape == shape
