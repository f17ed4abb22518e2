"""Models that see regions: their files, what they answer, and what explains them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.plan import check_capabilities
from pipeline.recipe import parse
from pipeline.single import explain
from tests import region_files as files
from tests.fuzz import pickles as hostile
from tests.reference import updn as reference
from tests.reference.metrics import rank_correlation
from tests.test_huggingface import photo
from workers import catalog
from workers.check import check_model
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.regions import RegionAttention, RegionGradient, RegionOcclusion, paint
from workers.methods.words import WordGradient
from workers.models.base import RegionModel
from workers.models.digest import weights_digest
from workers.models.pickles import read_plain
from workers.models.regions import RegionFeatures
from workers.models.tokenisers import updn as updn_words
from workers.store import Store

NAME = "COCO_val2014_{:012d}.png"
QUESTIONS = ("What's the colour, of this dog?", "Is this red?", "zebra", "the " * 20)
NUMBERS = {word: i for i, word in enumerate(files.WORDS)}
Copy = Callable[[], Path]


@pytest.fixture(scope="module")
def folder(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("updn")


@pytest.fixture(scope="module")
def model(folder: Path) -> RegionModel:
    return build(files.section(folder))


def build(section: dict[str, Any]) -> RegionModel:
    built = catalog.model_spec(catalog.Component(**section)).build(torch.device("cpu"))
    assert isinstance(built, RegionModel)
    return built


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Files of a model, to be spoilt."""

    def make() -> Path:
        files.updn(tmp_path / "updn")
        return tmp_path / "updn"

    return make


def scene_of(model: RegionModel, image_id: int = 42, batch: int = 4) -> Scene:
    seen = model.see(photo(), image_id)
    asked = [model.tokenise(question) for question in QUESTIONS[:2]]
    return Scene(model, seen.canvas, asked, (1, 2), (0, 1), batch=batch, regions=seen.regions)


# --- what it answers ------------------------------------------------------------------------------


def literal(image_id: int, question: str, features: np.ndarray | None = None) -> tuple:
    given = files.detected(image_id).features if features is None else features
    weights = {name: tensor.numpy() for name, tensor in files.updn_weights().items()}
    return reference.logits(weights, NUMBERS, given, question)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("image_id", files.IMAGES)
def test_updn_answers_and_attends_as_a_literal_forward_pass(
    model: RegionModel, image_id: int, question: str
) -> None:
    regions = model.regions(image_id, files.HEIGHT, files.WIDTH)
    found = model.answer(regions[None], [model.tokenise(question)])
    logits, attention = literal(image_id, question)
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-5, atol=1e-5)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention[0], attention, rtol=1e-5, atol=1e-6)
    assert np.ptp(logits) > 0.5


def test_updn_answers_follow_the_regions_and_the_question() -> None:
    answers = [literal(image, question)[0] for image in (1, 42) for question in QUESTIONS[:2]]
    assert min(np.abs(a - b).max() for i, a in enumerate(answers) for b in answers[:i]) > 0.04


def test_words_are_the_repositorys() -> None:
    found = updn_words("What's the dog's colour, red?")
    assert " ".join(found) == "what 's the dog 's colour red"


def test_every_check_of_a_model_passes(model: RegionModel) -> None:
    checks = check_model(model)
    assert [c for c in checks if not c.passed] == []
    assert "gradients flow" in {c.name for c in checks}


def test_absent_regions_have_no_influence(model: RegionModel) -> None:
    regions = model.regions(1, files.HEIGHT, files.WIDTH)
    more = torch.cat([regions, torch.zeros(3, regions.shape[1])])
    asked = [model.tokenise(QUESTIONS[0])]
    few, many = model.answer(regions[None], asked), model.answer(more[None], asked)
    torch.testing.assert_close(few.logits, many.logits)
    none = model.answer(torch.zeros_like(regions)[None], asked)
    assert none.logits.isfinite().all()
    assert none.attention is not None
    assert none.attention.abs().max() == 0


def test_canvas_is_the_whole_photo_scaled_down(folder: Path) -> None:
    model = build(files.section(folder, longest=60))
    seen = model.see(photo(90, 120), 1)
    assert seen.canvas.shape == (3, 45, 60)
    assert (seen.frame.top, seen.frame.left, seen.frame.bottom, seen.frame.right) == (0, 0, 1, 1)
    assert model.see(photo(30, 42), 1).canvas.shape == (3, 30, 42)
    with pytest.raises(BadExample, match=r"none was given; give image_id"):
        model.see(photo())


@pytest.mark.parametrize("question", QUESTIONS)
def test_baseline0_answers_and_attends_as_a_literal_forward_pass(copy: Copy, question: str) -> None:
    folder, given = copy(), files.concatenating_weights()
    torch.save(given, folder / "model.pth")
    model, features = build(files.section(folder)), files.detected(42).features
    weights = {name: tensor.numpy() for name, tensor in given.items()}
    logits, attention = reference.concatenating(weights, NUMBERS, features, question)
    check_literal(model, question, logits, attention)


def check_literal(
    model: RegionModel, question: str, logits: np.ndarray, attention: np.ndarray
) -> None:
    regions = model.regions(42, files.HEIGHT, files.WIDTH)
    found = model.answer(regions[None], [model.tokenise(question)])
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-5, atol=1e-5)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention[0], attention, rtol=1e-5, atol=1e-6)
    assert np.ptp(attention) > 0.01
    assert np.ptp(logits) > 0.5


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What's the dog-colour of this red?", "what 's the dog colour of this red"),
        ('Isn\'t "this" $5 red.', "is not this dollar 5 red"),
    ],
)
def test_fork_answers_and_attends_as_a_literal_forward_pass(
    copy: Copy, question: str, words: str
) -> None:
    folder, given = copy(), files.fork_weights()
    torch.save({"epoch": 3, "model_state_dict": given}, folder / "model.pth")
    model, features = build(files.section(folder)), files.detected(42).features
    assert model.tokenise(question) == tuple(words.split())
    numbers = [NUMBERS.get(word, len(NUMBERS)) for word in words.split()]
    padded = [len(NUMBERS)] * (14 - len(numbers)) + numbers
    weights = {name: tensor.numpy() for name, tensor in given.items()}
    logits, attention = reference.forked(weights, padded, features)
    check_literal(model, question, logits, attention)
    assert attention.sum() == pytest.approx(2)
    assert [c for c in check_model(model) if not c.passed] == []


# --- files of features ----------------------------------------------------------------------------


@pytest.fixture
def images() -> dict[int, files.Detected]:
    return {image: files.detected(image) for image in files.IMAGES}


def test_all_formats_hold_the_same_regions(
    tmp_path: Path, images: dict[int, files.Detected]
) -> None:
    paths = [
        files.write_hdf5(tmp_path / "a36.hdf5", images),
        files.write_hdf5(tmp_path / "b36.h5", images, spatial=False),
        files.write_tsv(tmp_path / "c.tsv", images),
        files.write_tsv(tmp_path / "d.tsv", images, lxmert=True),
    ]
    sides = np.array([files.WIDTH, files.HEIGHT] * 2)
    for path in paths:
        features = RegionFeatures([path])
        assert (features.regions, features.channels) == (files.REGIONS, files.CHANNELS)
        for image, (boxes, values) in images.items():
            found = features.of(image, files.HEIGHT, files.WIDTH)
            np.testing.assert_allclose(found[:, :4], boxes / sides, atol=1e-6)
            np.testing.assert_array_equal(found[:, 4:], values)


def test_images_with_fewer_regions_end_in_rows_of_zeros(tmp_path: Path) -> None:
    found = {1: files.detected(1, 3), 2: files.detected(2, 5)}
    paths = [
        files.write_tsv(tmp_path / "adaptive.tsv", found),
        files.write_adaptive(tmp_path / "adaptive.hdf5", found),
    ]
    first, second = (RegionFeatures([path]).of(1, files.HEIGHT, files.WIDTH) for path in paths)
    torch.testing.assert_close(first, second)
    assert first.shape == (5, 4 + files.CHANNELS)
    assert first[3:].abs().max() == 0
    assert (first[:3, 2:4] > first[:3, :2]).all()


def test_regions_along_one_axis_need_their_ends(tmp_path: Path) -> None:
    path = files.write_adaptive(tmp_path / "adaptive.hdf5", {1: files.detected(1)})
    with h5py.File(path, "a") as file:
        file["pos_boxes"][0] = (0, 7)
    with pytest.raises(UserError, match=r"pos_boxes \[1, 2\] are no first and last rows of the 6"):
        RegionFeatures([path])


def test_several_files_are_one_and_strangers_are_refused(
    tmp_path: Path, images: dict[int, files.Detected]
) -> None:
    train = files.write_hdf5(tmp_path / "train36.hdf5", {1: images[1]})
    val = files.write_tsv(tmp_path / "val36.tsv", {42: images[42]})
    both = RegionFeatures([train, val])
    assert both.of(1, 90, 120).shape == both.of(42, 90, 120).shape
    assert both.digest != RegionFeatures([train]).digest
    with pytest.raises(UserError, match=r"train36.hdf5 and .*again.tsv both have image 1 and 0"):
        RegionFeatures([train, files.write_tsv(tmp_path / "again.tsv", {1: images[1]})])
    narrow = {9: files.Detected(images[1].boxes, images[1].features[:, :5].copy())}
    with pytest.raises(UserError, match=r"has 5 features a region, .* has 8"):
        RegionFeatures([train, files.write_tsv(tmp_path / "narrow.tsv", narrow)])


@pytest.mark.parametrize("kind", ["hdf5", "tsv"])
@pytest.mark.parametrize(
    ("box", "features", "message"),
    [
        ((10, 10, 10, 50), 1.0, r"image 1: 1 of 6 boxes .* first box 2: x 10 to 10, y 10 to 50"),
        ((50, 10, 20, 50), 1.0, "boxes are no rectangles inside the image"),
        ((10, 10, 130, 50), 1.0, "boxes are no rectangles inside the image"),
        ((-20, 10, 50, 50), 1.0, "boxes are no rectangles inside the image"),
        ((np.nan, 10, 50, 50), 1.0, "boxes are no rectangles inside the image"),
        ((10, 10, 50, 50), np.inf, r"image 1: 8 of 48 features are not finite"),
    ],
)
def test_regions_that_make_no_sense_are_the_examples_failure(
    kind: str, box: tuple, features: float, message: str, tmp_path: Path
) -> None:
    found = files.detected(1)
    found.boxes[2], found.features[2] = box, features
    path = tmp_path / f"bad.{kind}"
    if kind == "tsv":
        files.write_tsv(path, {1: found})
    else:
        files.write_hdf5(path, {1: found}, spatial=False)
    with pytest.raises(BadExample, match=message):
        RegionFeatures([path]).of(1, files.HEIGHT, files.WIDTH)


def test_box_that_a_detector_rounded_beyond_the_edge_is_cut(tmp_path: Path) -> None:
    found = files.detected(1)
    found.boxes[0] = (-0.3, 10, 120.4, 50)
    features = RegionFeatures([files.write_tsv(tmp_path / "a.tsv", {1: found})])
    assert features.of(1, files.HEIGHT, files.WIDTH)[0, [0, 2]].tolist() == [0, 1]


def test_photo_of_another_shape_and_unknown_images_are_refused(
    tmp_path: Path, images: dict[int, files.Detected]
) -> None:
    features = RegionFeatures([files.write_tsv(tmp_path / "a.tsv", images)])
    with pytest.raises(BadExample, match=r"detected in 120 x 90 pixels, the photo has 90 x 120"):
        features.of(1, 120, 90)
    assert features.of(1, 45, 60).shape == features.of(1, 90, 120).shape
    with pytest.raises(BadExample, match=r"image 5 is not among the 3 images of .*a.tsv"):
        features.of(5, 90, 120)


def test_feature_files_that_are_none_are_named(
    tmp_path: Path, images: dict[int, files.Detected]
) -> None:
    wrong = tmp_path / "a.hdf5"
    wrong.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        RegionFeatures([wrong])
    with pytest.raises(UserError, match=r"is no .hdf5, .h5 or .tsv file and no folder"):
        RegionFeatures([tmp_path / "a.npy"])
    with pytest.raises(UserError, match="cannot be read"):
        RegionFeatures([tmp_path / "a.tsv"])
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["features"] = np.zeros((2, 3))
    with pytest.raises(UserError, match=r"no dataset 'image_features' .* it has features \[2, 3\]"):
        RegionFeatures([tmp_path / "b.hdf5"])
    (tmp_path / "a.tsv").write_text("1\t2\t3\n")
    with pytest.raises(UserError, match=r"line 1 has 3 columns .* 6 or 10"):
        RegionFeatures([tmp_path / "a.tsv"])
    good = files.write_tsv(tmp_path / "b.tsv", images)
    good.write_text(good.read_text() * 2)
    with pytest.raises(UserError, match="line 4: image 1 is there twice"):
        RegionFeatures([good])
    good = files.write_tsv(tmp_path / "b.tsv", images)
    good.write_text(good.read_text().replace("A", "!", 1))
    with pytest.raises(BadExample, match=r"image 1: its \w+ are not base64"):
        RegionFeatures([good]).of(1, 90, 120)


def test_features_that_lie_in_another_file_are_not_followed(
    tmp_path: Path, images: dict[int, files.Detected]
) -> None:
    files.write_hdf5(tmp_path / "other.hdf5", images)
    path = files.write_hdf5(tmp_path / "a.hdf5", images)
    with h5py.File(path, "a") as file:
        del file["image_features"]
        file["image_features"] = h5py.ExternalLink("other.hdf5", "/image_features")
    with pytest.raises(UserError, match="no dataset 'image_features'"):
        RegionFeatures([path])


@pytest.mark.parametrize("kind", ["hdf5", "adaptive", "tsv"])
def test_flipped_bytes_are_named_or_harmless(
    kind: str, tmp_path: Path, images: dict[int, files.Detected]
) -> None:
    write = {"hdf5": files.write_hdf5, "adaptive": files.write_adaptive, "tsv": files.write_tsv}
    path = write[kind](tmp_path / f"a.{'tsv' if kind == 'tsv' else 'hdf5'}", images)
    whole, drawn, told = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        data = bytearray(whole)
        for place in drawn.integers(0, min(len(data), 3000), 3):
            data[place] = drawn.integers(256)
        path.unlink()  # an open file is not read anew
        path.write_bytes(data)
        try:
            features = RegionFeatures([path])
            for image in images:
                assert features.of(image, files.HEIGHT, files.WIDTH).isfinite().all()
        except (UserError, BadExample) as error:
            assert str(tmp_path) in str(error)
            told += 1
    assert told > 10


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"1": 0, "42": 3}, r"rows 0 to 2 of .*val36.hdf5 \(it has \(42, 3\)\)"),
        ({"one": 0}, "is not a mapping of image numbers"),
        ({"1": "0"}, "is not a mapping of image numbers"),
        ([1, 2], "is not a mapping of image numbers"),
        (None, r"there is none of val36_imgid2idx.json, val36_imgid2idx.pkl"),
    ],
)
def test_index_that_fits_no_rows_is_refused(index: object, message: str, copy: Copy) -> None:
    folder = copy()
    (folder / "val36_imgid2idx.pkl").unlink()
    if index is not None:
        (folder / "val36_imgid2idx.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        build(files.section(folder))


def test_index_as_json_is_the_same(copy: Copy, model: RegionModel) -> None:
    folder = copy()
    (folder / "val36_imgid2idx.pkl").unlink()
    index = {str(image): row for row, image in enumerate(files.IMAGES)}
    (folder / "val36_imgid2idx.json").write_text(json.dumps(index))
    other = build(files.section(folder, answers_file=str(folder / "label2ans.json")))
    assert torch.equal(other.regions(7, 90, 120), model.regions(7, 90, 120))
    assert other.answers == model.answers
    assert weights_digest(other) == weights_digest(model)


# --- pickles of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    given = [{"é": 1, "b": -(2**70), 3: (1.5, None, True, ())}, ["a", [], {}, "x" * 300]]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(given, protocol))
    assert read_plain(path, "") == given


def test_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"(lp0\n(dp1\nS'red'\np2\nI0\nsVno\np3\nI1\nsa(lp4\ng2\nag3\naa.")
    assert read_plain(path, "") == [{"red": 0, "no": 1}, ["red", "no"]]


@pytest.mark.parametrize("call", [*hostile.CALLS, *hostile.HARMLESS[2:], b"Pnumber\n"])
def test_pickle_that_names_anything_is_refused_uncalled(call: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dictionary.pkl"
    path.write_bytes(b"\x80\x02]" + call + b"a.")
    before = list(hostile.SUNG)
    with pytest.raises(UserError, match=r"dictionary.pkl: at byte \d+ its pickle has a step "):
        read_plain(path, "give another")
    assert before == hostile.SUNG


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a pickle, or damaged"),
        (b"\x80", "is not a pickle, or damaged"),
        (b"]", "is not a pickle, or damaged"),
        (b"PK\x03\x04", "is not a pickle, or damaged"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "claims a place 2147483647 in memory"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "is not a pickle, or damaged"),
    ],
)
def test_damaged_pickle_or_one_that_claims_memory_is_refused(
    data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_plain(path, "give another")


# --- checkpoints that do not fit ------------------------------------------------------------------


def respoilt(folder: Path, change: Callable[[dict], dict]) -> dict[str, Any]:
    torch.save(change(files.updn_weights()), folder / "model.pth")
    return files.section(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            files.without("weight_g"),
            r"v_att.v_proj.main.0.weight_g has shape None and .* \[10, 8\]",
        ),
        (
            files.without("classifier.main.3.weight"),
            r"no tensor 'classifier.main.3.weight' with 1",
        ),
        (files.without("q_net.main.0.bias"), r"lacks a tensor 'q_net.main.0.bias' of shape \[10\]"),
        (
            lambda w: {**w, "module.v_att.nonlinear.main.0.bias": torch.zeros(3)},
            r"a tensor 'v_att.nonlinear.main.0.bias' of shape \[3\], .* no place",
        ),
        (
            lambda w: {**w, "module.v_net.main.0.weight_v": torch.ones(10, 9)},
            r"val36.hdf5 has 8 features a region, .*model.pth was trained on 9",
        ),
        (
            lambda w: {**w, "module.q_net.main.0.weight_v": torch.ones(10, 11)},
            r"'q_net.main.0.weight' has shape \[10, 11\], the model needs \[10, 10\]",
        ),
        (
            lambda w: {**w, "module.w_emb.emb.weight": torch.ones(5, 5)},
            r"dictionary.pkl has 10 words, .*model.pth was trained with 4",
        ),
    ],
)
def test_checkpoint_that_does_not_fit_names_tensor_and_shapes(
    change: Callable[[dict], dict], message: str, copy: Copy
) -> None:
    with pytest.raises(UserError, match=message):
        build(respoilt(copy(), change))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("label2ans.pkl", ["yes", "no"], r"has 2 answers, the model has 4"),
        ("label2ans.pkl", ["a", "a", "b", "c"], "not a list of strings, each there once"),
        ("label2ans.pkl", {"a": 1}, "not a list of strings"),
        ("dictionary.pkl", [{"a": 1}, ["a"]], "does not number words from 0"),
        ("dictionary.pkl", ["a"], "does not number words from 0"),
        ("dictionary.pkl", [{1: 0}, [1]], "does not number words from 0"),
    ],
)
def test_vocabulary_that_does_not_fit_is_refused(
    name: str, content: object, message: str, copy: Copy
) -> None:
    folder = copy()
    (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        build(files.section(folder))


def test_one_scale_an_output_is_read_too(copy: Copy, model: RegionModel) -> None:
    def spread(weights: dict) -> dict:
        name = "module.q_net.main.0.weight"
        g, v = weights[f"{name}_g"], weights[f"{name}_v"]
        return {**weights, f"{name}_g": (g * v / v.norm()).norm(dim=1, keepdim=True)}

    other = build(respoilt(copy(), spread))
    regions, asked = model.regions(1, 90, 120)[None], [model.tokenise(QUESTIONS[0])]
    torch.testing.assert_close(other.logits(regions, asked), model.logits(regions, asked))


def test_features_are_part_of_the_model(copy: Copy, model: RegionModel) -> None:
    folder = copy()
    changed = {image: files.detected(image + (image == 7)) for image in files.IMAGES}
    files.write_hdf5(folder / "val36.hdf5", changed)
    assert weights_digest(build(files.section(folder))) != weights_digest(model)


# --- what explains it -----------------------------------------------------------------------------


def value(logits: np.ndarray, answer: int, score: str) -> float:
    if score == "logit":
        return float(logits[answer])
    p = np.exp(logits - logits.max())
    return float(p[answer] / p.sum())


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("how", ["remove", "zero"])
def test_region_occlusion_is_the_literal_drop(model: RegionModel, how: str, batch: int) -> None:
    scene = scene_of(model, batch=batch)
    maps = RegionOcclusion(how=how).explain(scene).arrays
    features = files.detected(42).features
    for row, found in zip(scene.rows, maps["regions"], strict=True):
        question = QUESTIONS[row.question]
        clean = value(literal(42, question)[0], row.answer, "probability")
        for r in range(files.REGIONS):
            rest = np.delete(features, r, 0) if how == "remove" else features.copy()
            if how == "zero":
                rest[r] = 0
            less = value(literal(42, question, rest)[0], row.answer, "probability")
            assert found[r] == pytest.approx(clean - less, abs=1e-6)
    assert len(scene.rows) > 2
    assert np.ptp(maps["regions"]) > 0.01


@pytest.mark.parametrize("reduction", ["l2_norm", "grad_x_input", "sum"])
def test_region_gradient_is_the_literal_difference(model: RegionModel, reduction: str) -> None:
    scene = scene_of(model)
    found = RegionGradient(reduction=reduction).explain(scene).arrays["regions"]
    features, step = files.detected(42).features.astype(np.float64), 1e-5
    for row, own in zip(scene.rows, found, strict=True):
        gradient = np.zeros_like(features)
        for place in np.ndindex(features.shape):
            ends = []
            for sign in (1, -1):
                moved = features.copy()
                moved[place] += sign * step
                ends.append(literal(42, QUESTIONS[row.question], moved)[0][row.answer])
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        wanted = {
            "l2_norm": np.sqrt((gradient**2).sum(1)),
            "grad_x_input": (gradient * features).sum(1),
            "sum": gradient.sum(1),
        }[reduction]
        np.testing.assert_allclose(own, wanted, rtol=2e-3, atol=2e-4)


def test_region_attention_is_the_models_own(model: RegionModel) -> None:
    scene = scene_of(model, batch=1)
    found = RegionAttention().explain(scene).arrays["regions"]
    for row, own in zip(scene.rows, found, strict=True):
        np.testing.assert_allclose(own, literal(42, QUESTIONS[row.question])[1], atol=1e-6)


def painted(values: np.ndarray, boxes: np.ndarray, grid: int, rule: str) -> np.ndarray:
    """Cell by cell, box by box."""
    shown = np.zeros((grid, grid))
    covers: dict[int, list[tuple[int, int]]] = {}
    for r, (x1, y1, x2, y2) in enumerate(boxes):
        if x2 <= x1 or y2 <= y1:
            continue
        columns = [x for x in range(grid) if x1 <= (x + 0.5) / grid < x2]
        rows = [y for y in range(grid) if y1 <= (y + 0.5) / grid < y2]
        columns = columns or [min(grid - 1, int((x1 + x2) / 2 * grid))]
        rows = rows or [min(grid - 1, int((y1 + y2) / 2 * grid))]
        covers[r] = [(y, x) for y in rows for x in columns]
    for y in range(grid):
        for x in range(grid):
            own = [r for r, at in covers.items() if (y, x) in at]
            if own and rule == "max":
                shown[y, x] = max(values[r] for r in own)
            elif own and rule == "mean":
                shown[y, x] = sum(values[r] for r in own) / len(own)
            elif own:
                shown[y, x] = sum(values[r] / len(covers[r]) for r in own)
    return shown


@pytest.mark.parametrize("rule", ["max", "mean", "sum_over_area"])
@pytest.mark.parametrize("grid", [2, 7, 28])
def test_painting_is_the_naive_loop(rule: str, grid: int) -> None:
    drawn = np.random.default_rng(grid)
    boxes = np.sort(drawn.random((9, 2, 2)) ** 2, 1).reshape(-1, 4)
    boxes[0], boxes[1], boxes[2] = 0, (0.9999, 0.2, 1, 0.2001), (0, 0, 1, 1)
    if grid == 28:
        boxes[2] = (0.5, 0.5, 0.6, 0.6)
    values = drawn.normal(size=(3, 9))
    found = paint(torch.from_numpy(values), torch.from_numpy(boxes), grid, rule)
    for own, wanted in zip(found, values, strict=True):
        np.testing.assert_allclose(own, painted(wanted, boxes, grid, rule), atol=1e-12)
        if rule == "sum_over_area":
            assert own.sum() == pytest.approx(wanted[1:].sum())


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path, folder: Path) -> Callable[..., Any]:
    """Two photos with three questions, and a human map for each."""
    (tmp_path / "images").mkdir()
    for number in (42, 7):
        Image.fromarray(photo(seed=number)).save(tmp_path / "images" / NAME.format(number))
    asked = {421: "Is this red?", 422: "What is this?", 71: "what colour?"}
    records = [
        {"question_id": number, "image_id": number // 10, "question": question}
        for number, question in asked.items()
    ]
    envelope = {"data_subtype": "val2014", "questions": records}
    (tmp_path / "questions.json").write_text(json.dumps(envelope))
    (tmp_path / "hat").mkdir()
    for number in asked:
        seen = np.random.default_rng(number).integers(0, 256, (9, 12), np.uint8)
        Image.fromarray(seen).save(tmp_path / "hat" / f"{number}_1.png")

    def make(**sections: Any) -> Any:
        data = {
            "dataset": {
                "name": "vqa",
                "root": str(tmp_path),
                "questions": "questions.json",
                "hat": "hat",
            },
            "model": files.section(folder),
            "methods": {
                "region_occlusion": {"paint": "sum_over_area", "grid": 14},
                "zeroed": {"method": "region_occlusion", "how": "zero"},
                "region_gradient": {},
                "region_attention": {},
                "word_occlusion": {},
            },
            "metrics": {"rank_correlation": {}},
            "store": {"shard_size": 2},
            "resources": {"executor": "local"},
        }
        return parse({**data, **sections}, "test recipe")

    return make


def test_run_over_photos_stores_regions_boxes_and_maps(
    recipe: Callable[..., Any], tmp_path: Path, model: RegionModel
) -> None:
    config = recipe()
    assert stages.run(config, tmp_path / "run").failed_examples == 0
    assert stages.evaluate(tmp_path / "run").failed_examples == 0
    run = Run(tmp_path / "run")
    one = run.maps[(run.maps.method == "region_occlusion") & (run.maps.question_id == 422)]
    (stored,) = run.fetch(one)
    assert stored.shape == (14, 14)
    group, row = Store(tmp_path / "run").arrays(), one.iloc[0]
    boxes = group["region_occlusion/boxes"][row.ordinal]
    values = group["region_occlusion/regions"][row.ordinal, row.target_index]
    np.testing.assert_allclose(boxes, model.regions(42, 90, 120)[:, :4])
    wanted = painted(values, boxes, 14, "sum_over_area")
    np.testing.assert_allclose(stored, wanted, atol=1e-6)
    assert len(run.words) == 3
    scored = run.metrics[run.metrics.metric == "rank_correlation"]
    (rho,) = scored[(scored.method == "region_occlusion") & (scored.question_id == 422)].value
    human = Image.open(tmp_path / "hat" / "422_1.png")
    assert rho == pytest.approx(rank_correlation(stored, np.asarray(human)))


def test_image_without_features_fails_alone(
    recipe: Callable[..., Any], tmp_path: Path, copy: Copy
) -> None:
    folder = copy()
    files.write_hdf5(folder / "val36.hdf5", {42: files.detected(42)})
    result = stages.run(recipe(model=files.section(folder)), tmp_path / "run")
    assert result.failed_examples == 1
    run = Run(tmp_path / "run")
    (message,) = set(run.failures.message)
    assert "image 7 is not among the 1 images" in message


@pytest.mark.parametrize("name", ["occlusion", "lime", "rise", "saliency", "integrated_gradients"])
def test_methods_of_pixels_are_refused(name: str, model: RegionModel) -> None:
    message = (
        f"methods.{name} changes the pixels, and they do not reach model UpDn: it sees regions"
    )
    with pytest.raises(UserError, match=message):
        check_capabilities(catalog.methods({name: {}}), model)


def test_metrics_that_paint_are_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    config = recipe(metrics={"max_sensitivity": {}})
    with pytest.raises(UserError, match=r"metrics.max_sensitivity changes the pixels, and they"):
        stages.run(config, tmp_path / "run")


def test_region_methods_need_regions() -> None:
    demo = catalog.model_spec(catalog.Component(name="demo")).build(torch.device("cpu"))
    with pytest.raises(UserError, match="region_occlusion needs regions, which model Kazemi"):
        check_capabilities(catalog.methods({"region_occlusion": {}}), demo)


def test_one_picture_is_explained_by_its_number(
    recipe: Callable[..., Any], tmp_path: Path, model: RegionModel
) -> None:
    recipe()
    file = tmp_path / "images" / NAME.format(42)
    named = explain(model, file, "is this red?")
    assert set(named.maps) == {"region_occlusion", "region_gradient", "region_attention"}
    assert named.image.shape == (90, 120, 3)
    given = explain(model, photo(seed=42), "is this red?", image_id=42)
    np.testing.assert_array_equal(
        given.maps["region_occlusion"]["map"], named.maps["region_occlusion"]["map"]
    )
    with pytest.raises(BadExample, match="give image_id"):
        explain(model, photo(), "is this red?")


def test_recipe_makes_paths_of_features_absolute(
    recipe: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    section = files.section(Path(), features=["val36.hdf5", "more.tsv"])
    options = recipe(model=section).model.options
    assert options["features"] == [str(folder / "val36.hdf5"), str(folder / "more.tsv")]
    assert options["dictionary"] == str(folder / "dictionary.pkl")


@pytest.mark.parametrize("reduction", ["l2_norm", "grad_x_input"])
def test_word_gradient_is_the_literal_difference(model: RegionModel, reduction: str) -> None:
    scene, step = scene_of(model), 1e-5
    found = WordGradient(reduction=reduction).explain(scene).importances
    weights = {name: tensor.numpy() for name, tensor in files.updn_weights().items()}
    features = files.detected(42).features
    for row, own in zip(scene.rows, found, strict=True):
        question = QUESTIONS[row.question]
        numbers = reference.tokens(NUMBERS, question)[-len(own) :]
        for place, number in enumerate(numbers):
            embedding = weights["module.w_emb.emb.weight"][number].astype(np.float64)
            gradient = np.zeros_like(embedding)
            for channel in range(len(embedding)):
                ends = []
                for sign in (1, -1):
                    moved = embedding.copy()
                    moved[channel] += sign * step
                    at = {place - len(own): moved}
                    logits, _ = reference.logits(weights, NUMBERS, features, question, at)
                    ends.append(logits[row.answer])
                gradient[channel] = (ends[0] - ends[1]) / (2 * step)
            wanted = {"l2_norm": np.linalg.norm(gradient), "grad_x_input": gradient @ embedding}
            assert own[place] == pytest.approx(wanted[reduction], rel=2e-3, abs=2e-4)
    assert max(np.ptp(own) for own in found) > 0.01
