"""The Kazemi-Elqursh model: its formulas, its contract, its trunks and its preprocessing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import functional as tv

from tests.reference import kazemi as reference
from workers.models.base import Capability, SplitModel, Tokens, Words, freeze
from workers.models.digest import weights_digest
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.preprocessing import square_crop, to_canvas
from workers.models.specs import KazemiSpec
from workers.models.tokenisers import pytorch_vqa, simple
from workers.models.trunks import TRUNKS, SmallTrunk
from workers.models.untrained import untrained

CONFIG = KazemiConfig(
    trunk="small",
    channels=(4, 6, 8, 10),
    image_size=40,
    central_fraction=1.0,
    embedding=7,
    state=9,
    attention=11,
    hidden=13,
    words=("what", "color", "is", "the", "circle"),
    answers=("red", "blue", "yes"),
)
QUESTIONS: list[Tokens] = [
    ("what", "color", "is", "the", "circle"),
    (),
    ("circle",),
    ("zebra", "the"),
    ("is",) * 500,
]


def make(**changes: object) -> Kazemi:
    torch.manual_seed(0)
    model = Kazemi(CONFIG.model_copy(update=changes)).double()
    torch.nn.init.normal_(model.text.embedding.weight)
    return freeze(model)


def pixels(n: int, size: int = 40) -> torch.Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.mark.parametrize("glimpses", [1, 2, 3])
def test_kazemi_head_equals_the_published_formulas(glimpses: int) -> None:
    model = make(glimpses=glimpses)
    features = model.trunk(pixels(len(QUESTIONS)))
    output = model.head(features, model.encode(model.words(QUESTIONS)))
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for row, tokens in enumerate(QUESTIONS):
        indices = [CONFIG.words.index(t) + 1 if t in CONFIG.words else 0 for t in tokens]
        logits, attention = reference.forward(weights, features[row].numpy(), indices)
        np.testing.assert_allclose(output.logits[row], logits, rtol=0, atol=1e-12)
        np.testing.assert_allclose(output.attention[row], attention, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coordinates", [False, True])
def test_kazemi_batched_equals_single(coordinates: bool) -> None:
    model, canvas = make(coordinates=coordinates), 255 * pixels(len(QUESTIONS)).sigmoid()
    batched = model.logits(canvas, QUESTIONS)
    single = [model.logits(c[None], [q]) for c, q in zip(canvas, QUESTIONS, strict=True)]
    torch.testing.assert_close(batched, torch.cat(single), rtol=0, atol=1e-12)


def test_kazemi_padding_has_no_influence() -> None:
    model = make()
    words = model.words(QUESTIONS[:3])
    noisy = words.embeddings.clone()
    for row, length in enumerate(words.lengths):
        noisy[row, length:] = 1e6
    torch.testing.assert_close(
        model.encode(Words(noisy, words.lengths)), model.encode(words), rtol=0, atol=0
    )


def test_kazemi_dropped_word_equals_the_shorter_question() -> None:
    model = make()
    tokens = model.tokenise("What color is the circle?")
    dropped = [tokens[:i] + tokens[i + 1 :] for i in range(len(tokens))]
    afresh = [model.tokenise(" ".join(short) + "?") for short in dropped]
    states = model.encode(model.words([tokens, *dropped]))
    for state, short in zip(states[1:], afresh, strict=True):
        alone = model.encode(model.words([short]))[0]
        torch.testing.assert_close(state, alone, rtol=0, atol=1e-14)


def test_kazemi_empty_question_has_the_zero_state() -> None:
    model = make()
    assert model.tokenise("?") == ()
    assert model.encode(model.words([(), ()])).abs().sum() == 0
    assert model.encode(model.words([(), ("is",)])).abs().sum(1).gt(0).tolist() == [False, True]


def test_kazemi_unknown_words_share_one_embedding() -> None:
    model = make()
    assert not model.known("zebra")
    assert model.known("circle")
    states = model.encode(model.words([("zebra",), ("yak",), ("circle",)]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-14)
    assert (states[0] - states[2]).abs().max() > 1e-3


def test_kazemi_coordinates_let_the_head_tell_mirrored_features_apart() -> None:
    features = pixels(10, size=6).flatten(0, 1)[None, :10].relu()
    for coordinates, told_apart in ((False, False), (True, True)):
        model = make(coordinates=coordinates)
        states = model.encode(model.words([("what",)]))
        both = [model.head(f, states).logits for f in (features, features.flip(3))]
        assert (not torch.allclose(*both, rtol=0, atol=1e-9)) == told_apart


def test_kazemi_gradients_reach_pixels_and_words_through_frozen_weights() -> None:
    model = make()
    image, words = pixels(1).requires_grad_(), model.words(QUESTIONS[:1])
    embeddings = words.embeddings.detach().requires_grad_()
    states = model.encode(Words(embeddings, words.lengths))
    model.head(model.trunk(image), states).logits[0, 0].backward()
    assert image.grad.abs().sum() > 0
    assert embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_kazemi_question_state_has_second_derivatives() -> None:
    model = make()
    words = model.words([("what", "is")])
    embeddings = words.embeddings.detach().requires_grad_()

    def total(e: torch.Tensor) -> torch.Tensor:
        return model.encode(Words(e, words.lengths)).sum()

    assert torch.autograd.gradgradcheck(total, embeddings)


def test_kazemi_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = Kazemi(CONFIG.model_copy(update={"dropout": 0.1})).train()
    canvas, answers = 255 * torch.rand(3, 3, 40, 40), torch.tensor([0, 1, 2])
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model.logits(canvas, QUESTIONS[:3]), answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert max(losses[-5:]) < min(losses[:5]) / 2


def test_kazemi_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    model, canvas = Kazemi(CONFIG), torch.zeros(2, 3, 40, 40)
    for training in (True, False):
        first, second = (model.train(training).logits(canvas, QUESTIONS[:2]) for _ in range(2))
        assert torch.equal(first, second) != training


def test_kazemi_built_model_is_frozen_and_provides_what_it_can_do() -> None:
    model = KazemiSpec(random_seed=0, trunk="resnet18", image_size=64).build(torch.device("cpu"))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.provides == SplitModel.provides | {Capability.ATTENTION}
    assert model.answer_index("yes") == 0
    assert model.answer_index("no such answer") is None


def test_answer_is_found_as_the_evaluation_compares_answers() -> None:
    """Vocabularies hold normalised answers, datasets what people wrote."""
    answers = ("t shirt", "2", "T-shirt", "dont know", "yes")
    model = Kazemi(CONFIG.model_copy(update={"answers": answers}))
    found = [model.answer_index(a) for a in ("t shirt", "T-shirt", "t-shirt", "two", "Yes.", "a")]
    assert found == [0, 2, 0, 1, 4, None]


def test_kazemi_random_seed_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (untrained(CONFIG, seed) for seed in (1, 1, 2))
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)
    assert torch.equal(before, torch.get_rng_state())


def test_kazemi_unknown_trunk_lists_the_known_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        KazemiConfig(trunk="alexnet", words=(), answers=("yes",))
    message = caught.value.errors()[0]["msg"]
    start = "Value error, unknown trunk 'alexnet'; the trunks are small, resnet152_caffe, convnext_"
    assert message.startswith(start)
    assert {"resnet18", "vgg16", "regnet_y_400mf"} <= set(message.split(", "))


def test_kazemi_repeated_answer_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        KazemiConfig(words=(), answers=("yes", "no", "yes"))
    assert caught.value.errors()[0]["msg"] == "Value error, 'yes' is there more than once"


def test_weights_digest_sees_every_weight_and_setting() -> None:
    model, digest = make(), weights_digest(make())
    assert weights_digest(model) == digest
    assert weights_digest(make(central_fraction=0.5)) != digest
    assert weights_digest(make(mean=(0.5, 0.5, 0.5))) != digest
    model.classifier.lin2.bias[0] += 1e-9
    assert weights_digest(model) != digest


def test_trunk_small_is_cheap_enough_for_the_demo() -> None:
    """At most 100 million multiply-adds at 96 pixels, under a million weights in all."""
    model = Kazemi(
        KazemiConfig(
            trunk="small",
            image_size=96,
            embedding=64,
            state=128,
            attention=128,
            hidden=256,
            words=("a",),
            answers=("b",),
        )
    )
    costs = []
    for module in model.trunk_net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, _, out: costs.append(m.weight.numel() * out.shape[2] * out.shape[3])
            )
    with torch.no_grad():
        model.eval().trunk(torch.zeros(1, 3, 96, 96))
    assert sum(costs) < 100e6
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6
    assert (model.geometry.feature_height, model.geometry.feature_width) == (12, 12)


@given(size=st.integers(33, 97), widths=st.lists(st.integers(1, 4), min_size=4, max_size=6))
@settings(max_examples=10, deadline=None)
def test_geometry_equals_the_trunk_s_real_output(size: int, widths: list[int]) -> None:
    model = freeze(
        Kazemi(CONFIG.model_copy(update={"image_size": size, "channels": tuple(widths)}))
    )
    features = model.trunk(torch.zeros(1, 3, size, size))
    geometry = model.geometry
    assert features.shape == (1, widths[-1], geometry.feature_height, geometry.feature_width)
    assert (geometry.input_height, geometry.input_width) == (size, size)


def test_geometry_of_the_published_network_is_14_cells_of_448_pixels() -> None:
    with torch.device("meta"):
        trunk = TRUNKS["resnet152_caffe"](()).eval()
        assert trunk(torch.zeros(1, 3, 448, 448)).shape == (1, 2048, 14, 14)


def test_trunk_caffe_strides_first_and_pools_without_padding() -> None:
    with torch.device("meta"):
        caffe, plain = TRUNKS["resnet152_caffe"](()), TRUNKS["resnet152"](())
    assert {k: v.shape for k, v in caffe.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    for name in ("layer2", "layer3", "layer4"):
        first = caffe.get_submodule(f"{name}.0")
        assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))
        assert plain.get_submodule(f"{name}.0").conv2.stride == (2, 2)
    assert caffe.maxpool(torch.zeros(1, 1, 224, 224, device="meta")).shape[2:] == (112, 112)
    row = torch.arange(8.0).expand(1, 1, 8, 8)
    assert caffe.maxpool(row)[0, 0, 0].tolist() == [2, 4, 6, 7]
    assert plain.maxpool(row)[0, 0, 0].tolist() == [1, 3, 5, 7]


def test_trunk_untrained_activations_stay_in_range() -> None:
    torch.manual_seed(0)
    model = untrained(CONFIG.model_copy(update={"trunk": "resnet152_caffe", "image_size": 64}), 0)
    with torch.no_grad():
        features = model.eval().trunk(torch.randn(1, 3, 64, 64))
    assert 0.01 < features.std() < 10


def test_tokeniser_pytorch_vqa_keeps_punctuation_inside_words() -> None:
    assert pytorch_vqa("What's the man, in red,  doing?") == (
        "what's",
        "the",
        "man,",
        "in",
        "red,",
        "doing",
    )
    assert pytorch_vqa("Count them.") == ("count", "them.")
    assert pytorch_vqa("really??") == ("really?",)
    assert pytorch_vqa("") == pytorch_vqa("?") == ()


def test_tokeniser_simple_removes_punctuation() -> None:
    assert simple("Is there a RED-ish circle,\tleft of 2?") == (
        "is",
        "there",
        "a",
        "red",
        "ish",
        "circle",
        "left",
        "of",
        "2",
    )
    assert simple(" ?! ") == ()


def test_frame_of_a_vga_photo_is_the_published_crop() -> None:
    crop = square_crop(480, 640, 448, 0.875, "shorter_side_crop")
    assert (crop.resized_width, crop.resized_height) == (682, 512)
    assert (crop.left, crop.right, crop.top, crop.bottom) == (117, 565, 32, 480)
    frame = crop.frame(480, 640)
    assert frame.left == 117 / 682
    assert frame.right == 565 / 682
    assert (frame.top, frame.bottom) == (32 / 512, 480 / 512)
    assert (frame.image_height, frame.image_width) == (480, 640)
    assert (frame.input_height, frame.input_width) == (448, 448)


@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_canvas_equals_torchvision_s_resize_and_crop(shared_data: Path, fraction: float) -> None:
    photos = sorted((shared_data / "coco-mm-explain").rglob("*.jpg"))
    assert len(photos) == 4
    for photo in photos:
        image = Image.open(photo).convert("RGB")
        crop = square_crop(image.height, image.width, 448, fraction, "shorter_side_crop")
        resized = tv.resize(image, int(448 / fraction))
        assert (resized.height, resized.width) == (crop.resized_height, crop.resized_width)
        expected = np.asarray(tv.center_crop(resized, 448)).astype(np.float32)
        ours = to_canvas(np.asarray(image), crop).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours, expected)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.integers(1, 500))
@settings(max_examples=200, deadline=None)
def test_crop_equals_torchvision_s_for_any_size(height: int, width: int, size: int) -> None:
    crop = square_crop(height, width, size, 0.875, "shorter_side_crop")
    short = int(size / 0.875)
    expected = tv._compute_resized_output_size((height, width), [short])
    assert [crop.resized_height, crop.resized_width] == expected
    assert crop.top == round((crop.resized_height - size) / 2.0)
    assert 0 <= crop.left < crop.right <= crop.resized_width
    crop.frame(height, width)


def test_frame_maps_a_marked_pixel_of_the_photo_to_its_canvas_cell() -> None:
    image = np.zeros((300, 500, 3), np.uint8)
    image[90:100, 200:210] = 255
    model = make(central_fraction=0.8)
    canvas, frame = model.prepare(image)
    y, x = np.unravel_index(int(canvas[0].argmax()), canvas.shape[1:])
    row = frame.top + (y + 0.5) / frame.input_height * (frame.bottom - frame.top)
    column = frame.left + (x + 0.5) / frame.input_width * (frame.right - frame.left)
    assert abs(row * 300 - 95) < 10
    assert abs(column * 500 - 205) < 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 32), (32, 1), (40, 41)])
def test_prepare_accepts_any_shape_of_photo(shape: tuple[int, int]) -> None:
    canvas, frame = make(central_fraction=0.875).prepare(np.full((*shape, 3), 77, np.uint8))
    assert canvas.shape == (3, 40, 40)
    assert canvas.unique().tolist() == [77]
    assert 0 <= frame.top < frame.bottom <= 1
    assert 0 <= frame.left < frame.right <= 1


def test_prepare_squash_sees_the_whole_photo() -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    image[:, 50:] = 200
    canvas, frame = make(resize="squash").prepare(image)
    assert (frame.top, frame.left, frame.bottom, frame.right) == (0, 0, 1, 1)
    assert canvas[:, :, :15].max() == 0
    assert canvas[:, :, 25:].min() == 200


def test_normalise_is_the_published_one_on_0_to_255_rgb() -> None:
    canvas = torch.tensor([123.68, 116.779, 103.939], dtype=torch.float64)[None, :, None, None]
    assert make().normalise(canvas).abs().max() < 0.01
    white = make().normalise(torch.full((1, 3, 1, 1), 255.0))
    expected = [(1 - m) / s for m, s in zip(CONFIG.mean, CONFIG.std, strict=True)]
    np.testing.assert_allclose(white.flatten(), expected, rtol=1e-6)


def test_trunk_small_strides_by_eight_whatever_its_depth() -> None:
    for channels in ((4, 4, 4, 4), (4, 4, 4, 4, 8, 8)):
        features = SmallTrunk(channels).eval()(torch.zeros(1, 3, 96, 96))
        assert features.shape == (1, channels[-1], 12, 12)
