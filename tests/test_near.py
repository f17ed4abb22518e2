"""A generative model's answers about painted images, read on from the clean one: the same numbers,
and how much is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from tests import hub
from tests.test_huggingface import Checkpoints, build, photo
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.models import near as near_module
from workers.models.base import Near
from workers.models.causality import _states, same_inputs
from workers.models.generative import Generative
from workers.models.near import NearPrompt
from workers.models.tokens import called
from workers.sweep.windows import Window, grid_windows, paint

QUESTIONS = [("is", "it", "red"), ("what", "is", "this", "?")]
CAUSAL = ("llava", "idefics3", "qwen2_vl")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("without_graph"),
]


@pytest.fixture
def without_graph() -> object:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, Generative]:
    names = (*CAUSAL, "paligemma")
    return {n: build(hub.section(n, checkpoints(n))) for n in names}  # type: ignore[misc]


def painted(canvas: Tensor, grid: int = 4) -> tuple[list[Window], Tensor]:
    windows = list(grid_windows(*canvas.shape[1:], grid))
    return windows, paint(canvas.round(), windows, canvas.new_tensor(124.0).expand_as(canvas))


def agree(found: Tensor, wanted: Tensor, clean: Tensor) -> None:
    assert float((wanted - clean).abs().max()) > 1e-2  # the paint matters
    torch.testing.assert_close(found, wanted, rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("asked", [QUESTIONS, QUESTIONS[:1]], ids=["two questions", "one"])
def test_painted_images_are_answered_as_by_whole_passes(
    name: str, asked: list, models: dict[str, Generative]
) -> None:
    model = models[name]
    canvas = model.prepare(photo(seed=3))[0].round()
    near = model.near(canvas, asked)
    assert isinstance(near, NearPrompt)
    windows, canvases = painted(canvas)
    for group in near.groups(windows):
        texts = [" ".join(question) for question in asked]
        alone = [model._scores(canvases[group], text, model.ids) for text in texts]
        clean = model.answers_to_all(canvas[None], asked)
        agree(near(canvases[group]), torch.stack(alone, 1), clean)


def test_tiles_that_are_not_painted_are_seen_once_and_what_is_before_is_read_once(
    models: dict[str, Generative],
) -> None:
    """Of a grid of 2 x 2 tiles and the thumbnail, a window inside the last tile changes two."""
    model = models["idefics3"]
    canvas = model.prepare(photo(96, 96))[0].round()
    near = model.near(canvas, QUESTIONS)
    length = near.clean.length  # type: ignore[attr-defined]
    starts = near.clean.image.unflatten(0, (5, 4))[:, 0].tolist()  # type: ignore[attr-defined]
    for window, tiles in ((Window(70, 90, 70, 90), [3, 4]), (Window(40, 56, 70, 90), [1, 3, 4])):
        one = paint(canvas, [window] * 2, torch.zeros_like(canvas))
        with called(model.net.model.vision_model) as seen, called(model.decoder) as read:
            near(one)
        assert [len(call["pixel_values"]) for call in seen] == [2 * len(tiles)]
        assert read[0]["inputs_embeds"].shape[:2] == (2, length - starts[tiles[0]])


@pytest.mark.parametrize("few", [1, 8])
def test_windows_of_a_group_change_nothing_before_their_tiles(
    few: int, models: dict[str, Generative], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_module, "FEW", few)
    model = models["idefics3"]
    for shape in ((96, 96), (90, 120), (60, 150)):
        canvas = model.prepare(photo(*shape))[0].round()
        near = model.near(canvas, QUESTIONS)
        windows, canvases = painted(canvas, 6)
        groups = near.groups(windows)
        assert sorted(number for group in groups for number in group) == list(range(36))
        assert all(len(group) >= few for group in groups[:-1])
        tiles = near.clean.tiles - 1  # type: ignore[attr-defined]
        assert few > 1 or len(groups) == tiles
        firsts = []
        for group in groups:
            changed = near._changed(model.seen(canvases[group]), len(group))  # type: ignore[attr-defined]
            firsts.append(int(changed.any(0).nonzero()[0]))
        assert firsts == sorted(firsts)
        assert few > 1 or firsts == list(range(tiles))


def test_grid_of_tiles_is_the_processors(models: dict[str, Generative]) -> None:
    model = models["idefics3"]
    rng = np.random.default_rng(0)
    for height, width in rng.integers(30, 200, (30, 2)).tolist():
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        made = model.processor.image_processor([[image]], return_row_col_info=True)
        assert model.tile_grid(height, width) == (made["rows"][0][0], made["cols"][0][0])


def test_read_on_from_a_later_token_is_wrong(models: dict[str, Generative]) -> None:
    class Late(NearPrompt):
        def _first(self, changed: Tensor) -> int:
            return super()._first(changed) + 4

    model = models["idefics3"]
    canvas = model.prepare(photo(seed=3))[0].round()
    _, canvases = painted(canvas)
    right, wrong = model.near(canvas, QUESTIONS), Late(model, canvas, QUESTIONS)
    assert float((right(canvases) - wrong(canvases)).abs().max()) > 1e-3


def test_prefix_that_sees_both_ways_is_read_whole(models: dict[str, Generative]) -> None:
    model = models["paligemma"]
    canvas = model.prepare(photo(seed=3))[0].round()
    near = model.near(canvas, QUESTIONS)
    assert type(near) is Near
    _, canvases = painted(canvas, 2)
    torch.testing.assert_close(near(canvases), model.answers_to_all(canvases, QUESTIONS))
    wrong = NearPrompt(model, canvas, QUESTIONS)(canvases)
    assert float((wrong - near(canvases)).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [*CAUSAL, "paligemma"])
def test_what_looks_ahead_is_known_in_every_precision(
    name: str, dtype: str, checkpoints: Checkpoints
) -> None:
    """Of a causal net nothing moves, to the last bit; half precision's noise hides what PaliGemma
    does, if only answers are compared."""
    model = build(hub.section(name, checkpoints(name), dtype=dtype))
    assert isinstance(model, Generative)
    assert model.shares == model.reads_on == (name != "paligemma")
    given = model.inputs(model.prepare(photo())[0][None], "is it red ?")
    length = given["input_ids"].shape[1]
    states = [_states(model.net, model.decoder, given, length - 9, sign) for sign in (1, -1)]
    apart = float((states[0] - states[1]).abs().max())
    assert apart == 0 if name != "paligemma" else apart > 0.1


def test_net_that_is_given_more_than_embeddings_is_not_read_on() -> None:
    embeddings, positions = torch.rand(1, 4, 3), torch.arange(4)[None]
    call = {"inputs_embeds": embeddings, "position_ids": positions, "use_cache": True}
    assert same_inputs(call, embeddings[:, :2], positions[:, :2])
    assert not same_inputs(call, embeddings[:, :2], None)
    assert not same_inputs(call, embeddings[:, :2], positions[:, :2] + 1)
    assert not same_inputs(call, embeddings[:, :2] + 0.1, positions[:, :2])
    deep = {**call, "deepstack_visual_embeds": [torch.rand(2, 3)]}
    assert not same_inputs(deep, embeddings[:, :2], positions[:, :2])
    assert same_inputs({**call, "deepstack_visual_embeds": None}, embeddings, positions)


def qwen3_vl(folder: Path) -> None:
    """Its language model adds features of an early vision layer to its own first layers."""
    names = ("vision_start", "vision_end", "image", "video")
    pads = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    given = {f"{name}_token": pad for name, pad in zip(names, pads, strict=True)}
    tokenizer = hub.byte_tokenizer(*pads, **given)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 8,
        "intermediate_size": 32,
        "out_hidden_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = hf.Qwen3VLConfig(
        text_config=hub.language(len(tokenizer)) | {"rope_parameters": rope},
        vision_config=vision,
        **{f"{n}_id": tokenizer.convert_tokens_to_ids(pad) for n, pad in given.items()},
    )
    images = hf.Qwen2VLImageProcessor(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    template = hub.CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    video = hf.Qwen3VLVideoProcessor(patch_size=8)
    processor = hf.Qwen3VLProcessor(images, tokenizer, video, chat_template=template)
    hub.save(folder, hf.Qwen3VLForConditionalGeneration(config), processor)


def test_net_whose_layers_are_given_features_too_shares_but_is_not_read_on(
    tmp_path: Path,
) -> None:
    qwen3_vl(tmp_path / "qwen3_vl")
    model = build(hub.section("qwen2_vl", tmp_path / "qwen3_vl"))
    assert isinstance(model, Generative)
    assert model.shares
    assert not model.reads_on
    canvas = model.prepare(photo(seed=3))[0].round()
    _, canvases = painted(canvas, 2)
    texts = [" ".join(question) for question in QUESTIONS]
    alone = torch.stack([model._scores(canvases, text, model.ids) for text in texts], 1)
    agree(model.near(canvas, QUESTIONS)(canvases), alone, alone[:1])
    wrong = NearPrompt(model, canvas, QUESTIONS)(canvases)
    assert float((wrong - alone).abs().max()) > 1e-2


def test_cache_that_forgets_is_made_again(tmp_path: Path) -> None:
    """Of a sliding window shorter than the prompt no beginning can be cut off."""
    hub.llava(tmp_path / "llava", window=48)
    model = build(hub.section("llava", tmp_path / "llava"))
    assert isinstance(model, Generative)
    assert model.reads_on
    canvas = model.prepare(photo(seed=3))[0].round()
    near = model.near(canvas, QUESTIONS)
    assert any(layer.is_sliding for layer in near.clean.cache.layers)  # type: ignore[attr-defined]
    _, canvases = painted(canvas)
    texts = [" ".join(question) for question in QUESTIONS]
    alone = torch.stack([model._scores(canvases, text, model.ids) for text in texts], 1)
    agree(near(canvases), alone, model.answers_to_all(canvas[None], QUESTIONS))


def test_image_of_another_shape_in_between_moves_no_position(
    models: dict[str, Generative],
) -> None:
    """Qwen-VL's net remembers how far positions are behind tokens from one call to the next."""
    model = models["qwen2_vl"]
    canvas, other = (model.prepare(photo(*shape))[0].round() for shape in ((90, 120), (120, 48)))
    near = model.near(canvas, QUESTIONS)
    _, canvases = painted(canvas, 2)
    before = near(canvases)
    delta = model.net.model.rope_deltas.clone()
    model.answers_to_all(other[None], QUESTIONS)
    assert not torch.equal(delta, model.net.model.rope_deltas)
    assert torch.equal(near(canvases), before)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_occlusion_keeps_the_order_of_its_windows(
    batch: int, models: dict[str, Generative]
) -> None:
    model = models["idefics3"]
    canvas = model.prepare(photo(seed=3))[0].round()
    scene = Scene(model, canvas, QUESTIONS, (1, 2), (None, None), batch=batch)
    found = Occlusion(grid=4, score="log_probability", patch="mean").explain(scene)
    windows = list(grid_windows(*canvas.shape[1:], 4))
    fill = canvas.mean((1, 2), keepdim=True).expand_as(canvas)
    for row, drops in zip(scene.rows, found.arrays["drop"], strict=True):
        one = [QUESTIONS[row.question]]
        clean = model.logits(canvas[None], one).log_softmax(-1)[0, row.answer]
        for window, drop in zip(windows, drops.ravel(), strict=True):
            logits = model.logits(paint(canvas, [window], fill), one)
            value = logits.log_softmax(-1)[0, row.answer]
            assert drop == pytest.approx(float(clean - value), abs=3e-5)
