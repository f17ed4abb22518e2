"""Checkpoints of Hugging Face: loaded logits, what is refused, canvases and words."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from pipeline.recipe import parse
from tests import hub
from tests.reference import transformers as reference
from workers import catalog
from workers.check import check_model
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.methods.words import drop_each, dropped_logits
from workers.models.base import Tokens, VQAModel
from workers.models.digest import weights_digest
from workers.models.pixels import Pixels
from workers.models.tokens import called

CPU = torch.device("cpu")
QUESTION = "what is the colour of this dog ?"
Checkpoints = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, VQAModel]:
    return {name: build(hub.section(name, checkpoints(name))) for name in hub.FAMILIES}


def build(section: dict) -> VQAModel:
    return catalog.model_spec(catalog.Component(**section)).build(CPU)


def photo(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed)
    return drawn.integers(0, 256, (height // 6, width // 6, 3), np.uint8).repeat(6, 0).repeat(6, 1)


def expected(name: str, folder: Path, image: np.ndarray, question: str) -> torch.Tensor:
    """The logits by the family's documented use."""
    answers = list(hub.ANSWERS)
    if name == "vilt":
        return reference.vilt(folder, image, question)
    if name == "blip":
        return reference.blip(folder, image, question, answers)
    return reference.generative(folder, image, question, answers)


@pytest.mark.parametrize("name", hub.FAMILIES)
def test_logits_equal_an_independent_forward_pass(
    name: str, models: dict[str, VQAModel], checkpoints: Checkpoints
) -> None:
    model, image = models[name], photo()
    canvas, _ = model.prepare(image)
    found = model.logits(canvas[None], [model.tokenise(QUESTION)])[0]
    torch.testing.assert_close(
        found, expected(name, checkpoints(name), image, QUESTION), rtol=1e-5, atol=1e-5
    )
    assert found.shape == (len(hub.ANSWERS),)
    assert float(found.max() - found.min()) > 0.1


@pytest.mark.parametrize("name", hub.FAMILIES)
def test_painted_canvas_is_what_the_processor_would_make_of_a_painted_image(
    name: str, models: dict[str, VQAModel], checkpoints: Checkpoints
) -> None:
    model = models[name]
    canvas, _ = model.prepare(photo())
    canvas = canvas.round().clamp(0, 255)
    canvas[:, 8:24, 4:20] = torch.tensor([124.0, 117.0, 104.0])[:, None, None]
    painted = canvas.byte().permute(1, 2, 0).numpy()
    found = model.logits(canvas[None], [model.tokenise("is it red ?")])[0]
    wanted = expected(name, checkpoints(name), painted, "is it red ?")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", hub.FAMILIES)
def test_every_check_passes(name: str, models: dict[str, VQAModel]) -> None:
    assert [c for c in check_model(models[name]) if not c.passed] == []


@pytest.mark.parametrize("name", hub.FAMILIES)
def test_sweep_of_all_questions_equals_the_plain_loop(
    name: str, models: dict[str, VQAModel]
) -> None:
    model, asked = models[name], [("is", "it", "red"), ("what", "is", "this", "?")]
    canvas, _ = model.prepare(photo(seed=3))
    scene = Scene(model, canvas, asked, (1, 2), (0, None), batch=3)
    drops = Occlusion(grid=2, score="log_probability").explain(scene).arrays["drop"]
    gray = torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    _, height, width = canvas.shape
    for row, found in zip(scene.rows, drops, strict=True):
        one = [asked[row.question]]
        clean = model.logits(canvas[None], one).log_softmax(-1)[0, row.answer]
        for y in range(2):
            for x in range(2):
                painted = canvas.clone()
                rows = slice(y * height // 2, (y + 1) * height // 2)
                columns = slice(x * width // 2, (x + 1) * width // 2)
                painted[:, rows, columns] = gray
                value = model.logits(painted[None], one).log_softmax(-1)[0, row.answer]
                assert found[y, x] == pytest.approx(float(clean - value), abs=2e-5)


@pytest.mark.parametrize("name", ["vilt", "blip", "qwen2_vl"])
def test_dropped_word_is_the_shorter_question(name: str, models: dict[str, VQAModel]) -> None:
    model = models[name]
    canvas, _ = model.prepare(photo())
    words: Tokens = model.tokenise("is it xylophonic ?")
    assert words == ("is", "it", "xylophonic", "?")
    (logits,) = dropped_logits(Scene(model, canvas, [words], (1,), (None,)))
    assert len(logits) == 4
    shorter = model.logits(canvas[None], [("is", "it", "?")])[0]
    torch.testing.assert_close(logits[2], shorter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in hub.WRITING if n != "blip"])
@torch.no_grad()
def test_what_prompts_begin_with_is_read_once_for_all_questions(
    name: str, models: dict[str, VQAModel]
) -> None:
    """Not by PaliGemma, whose image tokens see the question."""
    model = models[name]
    canvas, _ = model.prepare(photo())
    canvases = torch.stack([canvas, 255 - canvas])
    asked = [("what", "is", "this"), ("is", "it", "red", "?"), ("what",)]
    together = model.answers_to_all(canvases, asked)
    alone = torch.cat([model.answers_to_all(canvases, [question]) for question in asked], 1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    assert model.shares == (name != "paligemma")
    if name == "paligemma":
        wrong = model._shared(canvases, [" ".join(q) for q in asked], model.ids)  # type: ignore[operator]
        assert float((wrong - alone).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["blip", "llava", "idefics3", "qwen2_vl"])
def test_image_is_seen_once_for_all_shorter_questions(
    name: str, models: dict[str, VQAModel]
) -> None:
    model = models[name]
    canvas, _ = model.prepare(photo())
    words: Tokens = ("what", "is", "this", "this")
    names = ("vision_model", "model.vision_tower", "model.vision_model", "model.visual")
    tower = next(m for n, m in model.net.named_modules() if n in names)  # type: ignore[union-attr]
    with called(tower) as seen:
        (logits,) = dropped_logits(Scene(model, canvas, [words], (1,), (None,)))
    assert len(seen) == 1
    for dropped, found in zip(drop_each(words), logits, strict=True):
        alone = model.logits(canvas[None], [dropped])[0]
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=3e-5)


def test_frame_of_a_centre_crop_is_where_the_photo_is_seen(models: dict[str, VQAModel]) -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[16:32, 64:80] = 255
    canvas, frame = models["llava"].prepare(image)
    assert (frame.left, frame.right, frame.top, frame.bottom) == (0.25, 0.75, 0, 1)
    bright = (canvas[0] > 128).nonzero()
    y, x = (bright.float().mean(0) + 0.5).tolist()
    assert frame.left + x / 32 * (frame.right - frame.left) == pytest.approx(72 / 128, abs=0.01)
    assert y / 32 == pytest.approx(24 / 64, abs=0.01)


CROPS = {
    "shortest edge": ({"size": {"shortest_edge": 24}}, (0, 0.25, 1, 0.75)),
    "both sides": ({"size": {"height": 32, "width": 48}}, (0.125, 0.25, 0.875, 0.75)),
    "as it is": ({"do_resize": False}, (0.3125, 0.40625, 0.6875, 0.59375)),
}


@pytest.mark.parametrize("name", CROPS)
def test_frame_is_that_of_the_crop_however_the_processor_resizes(name: str) -> None:
    options, wanted = CROPS[name]
    crop = {"height": 24, "width": 24}
    pixels = Pixels(hf.CLIPImageProcessor(**options, crop_size=crop), None, 512)
    rows, columns = np.arange(64)[:, None, None], np.arange(128)[None, :, None]
    image = np.concatenate(np.broadcast_arrays(rows * 3, columns, rows * 0), 2).astype(np.uint8)
    canvas, frame = pixels.prepare(image)
    assert (frame.top, frame.left, frame.bottom, frame.right) == wanted
    tall, wide = canvas[0, :, 0] / 3 / 64, canvas[1, 0] / 128
    assert tall[[0, -1]].tolist() == pytest.approx([frame.top, frame.bottom], abs=0.04)
    assert wide[[0, -1]].tolist() == pytest.approx([frame.left, frame.right], abs=0.04)


def test_crop_larger_than_the_photo_is_refused() -> None:
    processor = hf.CLIPImageProcessor(do_resize=False, crop_size={"height": 96, "width": 96})
    with pytest.raises(UserError, match="crops 96 x 96 pixels out of 64 x 128 and pads the rest"):
        Pixels(processor, None, 512).prepare(np.zeros((64, 128, 3), np.uint8))


@pytest.mark.parametrize(
    "name",
    ["vilt", "blip", "clip", "siglip", "gemma3", "llava", "chameleon", "emu3", "pixtral"],
)
def test_processor_that_resizes_makes_one_image(name: str) -> None:
    assert Pixels(PROCESSORS[name](), None, 512).whole


@pytest.mark.parametrize("name", ["janus", "padded_llava", "aria", "lfm2_vl"])
def test_photo_is_the_canvas_where_the_processor_pads_it_or_makes_patches(name: str) -> None:
    """Its frame would call the bars a part of the photo, and a table of patches an image."""
    pixels = Pixels(PROCESSORS[name](), None, 512)
    image = photo(120, 240)
    canvas, frame = pixels.prepare(image)
    assert not pixels.whole
    assert tuple(canvas.shape) == (3, 120, 240)
    assert (frame.top, frame.left, frame.bottom, frame.right) == (0, 0, 1, 1)
    given = pixels.values(canvas[None])["pixel_values"]
    torch.testing.assert_close(given, pixels.processor(image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("name", ["janus", "padded_llava"])
def test_square_photo_needs_no_bars(name: str) -> None:
    pixels = Pixels(PROCESSORS[name](), 96, 512)
    assert pixels.whole
    assert not pixels.varies


PROCESSORS: dict[str, Callable[[], Any]] = {
    "vilt": hf.ViltImageProcessor,
    "blip": hf.BlipImageProcessor,
    "clip": hf.CLIPImageProcessor,
    "siglip": hf.SiglipImageProcessor,
    "gemma3": hf.Gemma3ImageProcessor,
    "llava": hf.LlavaImageProcessor,
    "chameleon": hf.ChameleonImageProcessor,
    "emu3": hf.Emu3ImageProcessor,
    "pixtral": hf.PixtralImageProcessor,
    "janus": hf.JanusImageProcessor,
    "padded_llava": lambda: hf.LlavaImageProcessor(do_pad=True),
    "aria": hf.AriaImageProcessor,
    "lfm2_vl": hf.Lfm2VlImageProcessor,
}


def test_canvas_follows_the_photo_unless_a_size_is_given(
    models: dict[str, VQAModel], checkpoints: Checkpoints
) -> None:
    vilt = models["vilt"]
    assert vilt.geometry.varies
    assert vilt.prepare(photo(90, 120))[0].shape == (3, 48, 64)
    assert vilt.prepare(photo(120, 90))[0].shape == (3, 64, 48)
    qwen = models["qwen2_vl"]
    assert qwen.prepare(photo(30, 60))[0].shape == (3, 30, 60)
    for name, size in (("vilt", 48), ("qwen2_vl", 40)):
        squashed = build(hub.section(name, checkpoints(name), image_size=size))
        assert not squashed.geometry.varies
        assert squashed.prepare(photo(90, 120))[0].shape == (3, size, size)
    small = build(hub.section("qwen2_vl", checkpoints("qwen2_vl"), longest=32))
    assert small.prepare(photo(60, 90))[0].shape == (3, 21, 32)


def test_question_beyond_the_models_positions_is_a_bad_example(
    models: dict[str, VQAModel],
) -> None:
    with pytest.raises(BadExample, match=r"has 42 sub-tokens, the limit of this model is 24"):
        models["vilt"].tokenise("dog " * 40)
    assert not models["vilt"].known("猫")
    assert models["vilt"].known("xylophonic")


def test_candidates_prompt_and_processor_are_part_of_the_model(
    models: dict[str, VQAModel], checkpoints: Checkpoints
) -> None:
    folder = checkpoints("llava")
    other = [
        hub.section("llava", folder, answers=["no", "yes"]),
        hub.section("llava", folder, prompt="{question} Be brief."),
        hub.section("llava", folder, image_size=32),
    ]
    digests = {weights_digest(build(section)) for section in other}
    assert len(digests | {weights_digest(models["llava"])}) == 4


def test_answers_from_files(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("yes\nno\n\n")
    (tmp_path / "a.json").write_text('["yes", "no", "red"]')
    section = hub.section("blip", checkpoints("blip")) | {"answers": []}
    with pytest.raises(UserError, match="has entries that are empty"):
        build(section | {"answers_file": str(tmp_path / "a.txt")})
    (tmp_path / "a.txt").write_text("yes\nno\n")
    assert build(section | {"answers_file": str(tmp_path / "a.txt")}).answers == ("yes", "no")
    assert len(build(section | {"answers_file": str(tmp_path / "a.json")}).answers) == 3


def test_recipe_makes_the_path_of_a_folder_absolute(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints("blip")
    monkeypatch.chdir(folder.parent)
    data = {"dataset": "shapes", "methods": ["occlusion"]}
    here = parse(data | {"model": hub.section("blip", Path("blip"))}, "x").model
    assert here.options["path"] == str(folder)
    there = parse(data | {"model": hub.section("blip", Path("Salesforce/blip-vqa-base"))}, "x")
    assert there.model.options["path"] == "Salesforce/blip-vqa-base"


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A checkpoint to be spoilt."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(checkpoints(name), tmp_path / name))

    yield make


def reconfigured(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def reweighted(folder: Path, change: Callable[[dict], dict]) -> Path:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_partial_checkpoint_names_the_first_missing_tensors(copy: Callable[[str], Path]) -> None:
    folder = reweighted(
        copy("vilt"), lambda w: {k: v for k, v in w.items() if not k.startswith("classifier.3")}
    )
    with pytest.raises(UserError, match=r"2 tensors .* first 'classifier.3.bias' \[4\], "):
        build(hub.section("vilt", folder))


def test_renamed_tensor_names_what_is_there_instead(copy: Callable[[str], Path]) -> None:
    folder = reweighted(
        copy("blip"), lambda w: {k.replace("text_encoder", "encoder"): v for k, v in w.items()}
    )
    with pytest.raises(UserError, match=r"first 'text_encoder\..*; it has 'encoder\."):
        build(hub.section("blip", folder))


def test_misshapen_tensor_is_named_with_both_shapes(copy: Callable[[str], Path]) -> None:
    folder = reconfigured(copy("vilt"), id2label={str(i): f"answer {i}" for i in range(7)})
    with pytest.raises(UserError, match=r"'classifier.3.bias': \[4\] in the file, \[7\] by"):
        build(hub.section("vilt", folder))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("blip", {"architectures": ["BlipForConditionalGeneration"]}, "it writes captions"),
        ("blip", {"architectures": ["BlipForImageTextRetrieval"]}, "it matches images to text"),
        ("vilt", {"architectures": ["ViltForMaskedLM"]}, "give one of ViltForQuestionAnswering"),
        ("blip", {"model_type": "llama"}, "a text model, which sees no image. Known: vilt, blip"),
        ("blip", {"model_type": "git"}, "a git checkpoint"),
        ("blip", {"model_type": "resnet"}, "of a family that is not known. Known: .*qwen2_vl"),
        ("blip", {"model_type": None}, "config.json has no model_type"),
    ],
)
def test_checkpoint_that_answers_no_questions_is_refused(
    name: str, changes: dict, message: str, copy: Callable[[str], Path]
) -> None:
    folder = reconfigured(copy(name), **changes)
    with pytest.raises(UserError, match=message):
        build(hub.section(name, folder))


def test_files_that_are_missing_are_named(copy: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable config\.json"):
        build(hub.section("vilt", tmp_path))
    folder = copy("vilt")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"give model\.safetensors"):
        build(hub.section("vilt", folder))
    shutil.copytree(copy("blip"), tmp_path / "whole")
    (tmp_path / "whole" / "processor_config.json").unlink()
    with pytest.raises(UserError, match="processor"):
        build(hub.section("blip", tmp_path / "whole"))


def test_options_that_do_not_fit_are_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(UserError, match="writes its answers; give the candidates"):
        build(hub.section("blip", checkpoints("blip"), answers=[]))
    with pytest.raises(UserError, match="has its own answers"):
        build(hub.section("vilt", checkpoints("vilt"), answers=["yes", "no"]))
    with pytest.raises(UserError, match="257 candidates, the limit"):
        many = [str(i) for i in range(257)]
        build(hub.section("llava", checkpoints("llava"), answers=many))
    with pytest.raises(UserError, match="more than once"):
        build(hub.section("blip", checkpoints("blip"), answers=["no", "no"]))
    with pytest.raises(UserError, match="prompt"):
        build(hub.section("llava", checkpoints("llava"), prompt="What is it?"))


def with_extra(folder: Path, *names: str) -> None:
    """The checkpoint with tensors more."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {name: torch.zeros(2, 3) for name in names}, path, {"format": "pt"})


@pytest.mark.parametrize("name", [*hub.FAMILIES, *hub.SEEING_REGIONS])
def test_tensors_that_no_model_has_are_refused(
    name: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints(name), tmp_path / name))
    with_extra(folder, "head.weight", "more.bias", "embeddings.position_ids")
    told = r"has 2 tensors, first 'head.weight' \[2, 3\], 'more.bias' \[2, 3\], which the model"
    with pytest.raises(UserError, match=f"{name} {told}"):
        build(hub.section(name, folder))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("vilt", "vilt.embeddings.text_embeddings.position_ids"),
        ("blip", "text_encoder_m.embeddings.word_embeddings.weight"),
        ("blip", "itm_head.weight"),
        ("llava", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("lxmert", "cls.predictions.decoder.weight"),
        ("lxmert", "obj_predict_head.transform.dense.weight"),
        ("visual_bert", "cls.predictions.bias"),
    ],
)
def test_tensors_that_are_known_to_do_no_harm_are_left_out(
    name: str, extra: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints(name), tmp_path / name))
    plain = build(hub.section(name, folder))
    with_extra(folder, extra)
    model = build(hub.section(name, folder))
    assert weights_digest(model) == weights_digest(plain)
