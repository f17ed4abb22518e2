"""Deeper LSTM Q + norm I: its formulas, its contract, its files and its published sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests import nets
from tests.reference import deeper_lstm as reference
from workers import catalog
from workers.errors import UserError
from workers.methods.base import Scene
from workers.methods.gradients import GradCam
from workers.methods.occlusion import Occlusion
from workers.models import deeper_lstm
from workers.models.base import Capability, SplitModel, Tokens, Words, freeze
from workers.models.deeper_lstm import DeeperLSTM, DeeperLSTMConfig
from workers.models.specs import PUBLISHED_DEEPER, DeeperLSTMSpec
from workers.models.tokenisers import nltk, vqa_lstm

CONFIG = nets.LSTM
QUESTIONS: list[Tokens] = [
    ("what", "color", "is", "the", "circle"),
    (),
    ("circle",),
    ("zebra", "the"),
    ("is",) * 300,
]


def make(**changes: object) -> DeeperLSTM:
    return freeze(deeper_lstm.untrained(CONFIG.model_copy(update=changes), 0).double())


def canvases(n: int, size: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 255 * torch.rand(n, 3, size, size, dtype=torch.float64, generator=generator)


def weights(model: DeeperLSTM) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_deeper_lstm_equals_the_published_formulas(layers: int) -> None:
    model, w = make(layers=layers), weights(make(layers=layers))
    features = model.trunk(model.normalise(canvases(len(QUESTIONS))))
    assert features.shape[2:] == (7, 7), "the last row and column fall out of the pooling"
    states = model.encode(model.words(QUESTIONS))
    combined = model.combine(features, states)
    logits = model.head(features, states).logits
    for row, tokens in enumerate(QUESTIONS):
        indices = [CONFIG.words.index(t) if t in CONFIG.words else 5 for t in tokens]
        q = reference.question_vector(w, indices, layers)
        np.testing.assert_allclose(states[row], q, rtol=0, atol=1e-12)
        a = reference.combine(w, features[row].numpy(), q, pool=3, fully=2)
        np.testing.assert_allclose(combined[row], a, rtol=0, atol=1e-12)
        np.testing.assert_allclose(logits[row], reference.answer(w, a), rtol=0, atol=1e-12)


def test_deeper_lstm_batched_equals_single_and_pooled() -> None:
    model, canvas = make(), canvases(len(QUESTIONS))
    batched = model.logits(canvas, QUESTIONS)
    single = [model.logits(c[None], [q]) for c, q in zip(canvas, QUESTIONS, strict=True)]
    torch.testing.assert_close(batched, torch.cat(single), rtol=0, atol=1e-12)
    states = model.encode(model.words(QUESTIONS))
    pooled = model.pool(model.trunk(model.normalise(canvas)), states)
    each = model.classify(pooled, states).diagonal(dim1=0, dim2=1).T
    torch.testing.assert_close(batched, each, rtol=0, atol=1e-12)


def test_deeper_lstm_padding_has_no_influence_and_an_empty_question_is_zero() -> None:
    model = make()
    words = model.words(QUESTIONS)
    noisy = words.embeddings.clone()
    for row, length in enumerate(words.lengths):
        noisy[row, length:] = 1e6
    states = model.encode(words)
    torch.testing.assert_close(model.encode(Words(noisy, words.lengths)), states, rtol=0, atol=0)
    assert states.abs().sum(1).gt(0).tolist() == [True, False, True, True, True]


def test_deeper_lstm_reads_blue_green_red_less_the_means() -> None:
    pixel = torch.tensor([123.68, 117.779, 105.939]).reshape(1, 3, 1, 1)
    model = DeeperLSTM(CONFIG)
    torch.testing.assert_close(model.normalise(pixel).flatten(), torch.tensor([2.0, 1.0, 0.0]))
    model = DeeperLSTM(CONFIG.model_copy(update={"bgr": False, "std": (1.0, 2.0, 4.0)}))
    torch.testing.assert_close(model.normalise(pixel).flatten(), torch.tensor([0.0, 0.5, 0.5]))


def test_deeper_lstm_cuts_long_questions_off() -> None:
    model = DeeperLSTM(CONFIG.model_copy(update={"max_words": 3}))
    assert model.tokenise("What color is the circle?") == ("what", "color", "is")
    assert model.known("circle")
    assert not model.known("zebra")


def test_only_a_model_with_a_combine_layer_says_so() -> None:
    assert Capability.COMBINE not in SplitModel.provides
    assert make().provides == SplitModel.provides | {Capability.COMBINE}
    assert make().geometry.combine == CONFIG.combine


def test_deeper_lstm_gradients_reach_pixels_and_words_through_frozen_weights() -> None:
    model = make()
    image, words = canvases(1).requires_grad_(), model.words(QUESTIONS[:1])
    embeddings = words.embeddings.detach().requires_grad_()
    states = model.encode(Words(embeddings, words.lengths))
    model.head(model.trunk(model.normalise(image)), states).logits[0, 0].backward()
    assert image.grad.abs().sum() > 0
    assert embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_deeper_lstm_is_occluded_and_has_grad_cam() -> None:
    model, canvas = make(), canvases(1)[0]
    scene = Scene(model, canvas, [QUESTIONS[0], QUESTIONS[2]], [1, 2], [None, None])
    drops = Occlusion(grid=3, score="logit").explain(scene).arrays["drop"]
    painted = canvas.clone()
    painted[:, :18, :18] = torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    both = model.logits(torch.stack([canvas, painted]), [QUESTIONS[2]] * 2)
    answer = scene.rows[1].answer
    assert drops[1, 0, 0] == pytest.approx(float(both[0, answer] - both[1, answer]), rel=1e-6)
    assert GradCam().explain(scene).arrays["map"].shape == (2, 7, 7)


def test_deeper_lstm_is_saved_and_read_back(tmp_path: Path) -> None:
    model, canvas = make().float(), canvases(1).float()
    path = tmp_path / "model.safetensors"
    deeper_lstm.save(model, path)
    again = DeeperLSTMSpec(checkpoint=path).build(torch.device("cpu"))
    assert again.config == model.config
    torch.testing.assert_close(
        again.logits(canvas, QUESTIONS[:1]), model.logits(canvas, QUESTIONS[:1]), rtol=0, atol=0
    )
    size = path.stat().st_size
    deeper_lstm.save(model, path, torch.float16)
    half = deeper_lstm.load(path)
    assert path.stat().st_size < 0.7 * size
    assert half.dtype is torch.float32
    torch.testing.assert_close(half.answer.weight, model.answer.weight, rtol=1e-3, atol=1e-6)


def test_deeper_lstm_of_another_format_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError) as caught:
        deeper_lstm.load(checkpoint)
    assert str(caught.value) == (
        f"{checkpoint} says its format is 'vqatlas-kazemi-1', only 'vqatlas-deeper-lstm-1' can be "
        "read; save the model again with workers.models.deeper_lstm.save"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ("UNK", "what")}, "the last of the words must be 'UNK'"),
        ({"words": ()}, "the last of the words must be 'UNK'"),
        ({"words": ("is", "is", "UNK")}, "'is' is there more than once"),
        ({"answers": ("no", "no")}, "'no' is there more than once"),
    ],
)
def test_deeper_lstm_vocabulary_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DeeperLSTMConfig.model_validate({**CONFIG.model_dump(), **changes})
    assert caught.value.errors()[0]["msg"] == f"Value error, {message}"


def test_deeper_lstm_needs_one_source() -> None:
    for given in ({}, {"checkpoint": Path("a"), "random_seed": 1}):
        with pytest.raises(ValidationError, match="give either checkpoint"):
            DeeperLSTMSpec(**given)
    assert catalog.MODELS["deeper_lstm"] is DeeperLSTMSpec


def test_published_deeper_lstm_has_the_published_sizes() -> None:
    """14 x 14 cells; the flat vectors of the released file hold as many numbers."""
    with torch.device("meta"):
        model = DeeperLSTM(PUBLISHED_DEEPER)
    vocabulary = len(PUBLISHED_DEEPER.words)
    assert (model.geometry.feature_height, model.geometry.feature_width) == (14, 14)
    assert count(model.question.embedding) == 200 * vocabulary + 200
    assert count(model.question.lstm) == 3_564_033 - 513  # without its unused output layer
    heads = (model.question_in, model.image_in, model.answer)
    assert sum(map(count, heads)) == 7_318_504
    assert count(model.trunk_net) + count(model.image) == 143_667_240 - 4_097_000  # VGG-19, no fc8


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_tokenisers_of_the_published_code() -> None:
    assert nltk("What's the man's Name?") == ("what", "'s", "the", "man", "'s", "name", "?")
    assert nltk("Can't you see it, please?") == (
        "ca",
        "n't",
        "you",
        "see",
        "it",
        ",",
        "please",
        "?",
    )
    assert vqa_lstm("What's up,  man-of-war?") == (
        *("What", "'", "s", "up", ",", "man", "-", "of", "-", "war", "?"),
    )
    assert nltk("") == vqa_lstm(" ") == ()
