"""MMF's Pythia: its files, what it answers, and what explains it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import region_files as files
from tests.reference import pythia as reference
from tests.test_huggingface import photo
from workers import catalog
from workers.check import check_model
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.regions import RegionAttention, RegionGradient, RegionOcclusion
from workers.methods.words import WordGradient, dropped_logits
from workers.models.digest import weights_digest
from workers.models.pythia import Pythia
from workers.models.region_model import by_row
from workers.models.regions import RegionFeatures
from workers.models.tokenisers import mmf

QUESTIONS = ("What's the colour, of this dog-red?", "Is this red?", "zebra", "the red " * 10)
Copy = Callable[..., Path]


def build(section: dict[str, Any]) -> Pythia:
    built = catalog.model_spec(catalog.Component(**section)).build(torch.device("cpu"))
    assert isinstance(built, Pythia)
    return built


@pytest.fixture(scope="module")
def folder(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("pythia")


@pytest.fixture(scope="module")
def model(folder: Path) -> Pythia:
    return build(files.pythia_section(folder))


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Files of a model, to be spoilt."""

    def make(grid: bool = False) -> Path:
        files.pythia(tmp_path / "pythia", grid)
        return tmp_path / "pythia"

    return make


def literal(
    question: str, kinds: Sequence[np.ndarray], grid: bool = False, padded: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    weights = {name: tensor.numpy() for name, tensor in files.pythia_weights(grid).items()}
    return reference.logits(weights, files.WORDS, kinds, question, padded)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("image_id", files.IMAGES)
def test_pythia_answers_and_attends_as_a_literal_forward_pass(
    model: Pythia, image_id: int, question: str
) -> None:
    regions = model.regions(image_id, files.HEIGHT, files.WIDTH)
    found = model.answer(regions[None], [model.tokenise(question)])
    logits, attention = literal(question, [files.detected(image_id).features])
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-5, atol=1e-5)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention[0], attention, rtol=1e-5, atol=1e-6)
    assert np.ptp(logits) > 0.5
    assert np.ptp(attention) > 0.01


@pytest.mark.parametrize("image_id", [1, 42])
def test_resnets_features_are_a_second_kind_of_regions(copy: Copy, image_id: int) -> None:
    folder = copy(grid=True)
    model = build(files.pythia_section(folder, grid_features=str(folder / "resnet152")))
    asked = [model.tokenise(question) for question in QUESTIONS[:2]]
    regions = model.regions(image_id, files.HEIGHT, files.WIDTH)
    together = model.answers_to_all(regions[None], asked)[0]
    for question, tokens, own in zip(QUESTIONS, asked, together, strict=False):
        cells = files.cells_of(image_id).reshape(-1, files.CHANNELS)
        logits, attention = literal(question, [files.detected(image_id).features, cells], grid=True)
        found = model.answer(regions[None], [tokens])
        np.testing.assert_allclose(found.logits[0], logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own, logits, rtol=1e-5, atol=1e-5)
        assert found.attention is not None
        np.testing.assert_allclose(found.attention[0], attention, atol=1e-6)
        assert attention.sum() == pytest.approx(2)
    np.testing.assert_allclose(regions[-1, :4], [2 / 3, 1 / 2, 1, 1])


def test_fewer_regions_are_as_mmfs_mask(copy: Copy) -> None:
    folder = copy()
    found = {1: files.detected(1, 3), 2: files.detected(2, 5)}
    path = files.write_tsv(folder / "adaptive.tsv", found)
    model = build(files.pythia_section(folder, features=str(path)))
    regions = model.regions(1, files.HEIGHT, files.WIDTH)
    assert regions.shape == (5, 4 + files.CHANNELS)
    answered = model.answer(regions[None], [model.tokenise(QUESTIONS[0])])
    logits, attention = literal(QUESTIONS[0], [found[1].features], padded=5)
    np.testing.assert_allclose(answered.logits[0], logits, rtol=1e-5, atol=1e-5)
    assert answered.attention is not None
    np.testing.assert_allclose(answered.attention[0], [*attention, 0, 0], atol=1e-6)


def test_words_are_mmfs() -> None:
    found = mmf("What's the dog-house's colour, 2 x red?")
    assert " ".join(found) == "what ' s the dog - house ' s colour 2 x red"


def test_every_check_of_a_model_passes(model: Pythia) -> None:
    assert [c for c in check_model(model) if not c.passed] == []


# --- what explains it -----------------------------------------------------------------------------


def scene_of(model: Pythia, batch: int = 4) -> Scene:
    seen = model.see(photo(), 42)
    asked = [model.tokenise(question) for question in QUESTIONS[:2]]
    return Scene(model, seen.canvas, asked, (1, 2), (0, 1), batch=batch, regions=seen.regions)


@pytest.mark.parametrize("batch", [1, 4])
def test_region_occlusion_is_the_literal_drop(model: Pythia, batch: int) -> None:
    scene, features = scene_of(model, batch), files.detected(42).features
    found = RegionOcclusion(score="logit").explain(scene).arrays["regions"]
    for row, own in zip(scene.rows, found, strict=True):
        question = QUESTIONS[row.question]
        clean = literal(question, [features])[0][row.answer]
        for r in range(files.REGIONS):
            less = literal(question, [np.delete(features, r, 0)])[0][row.answer]
            assert own[r] == pytest.approx(clean - less, abs=2e-5)
    assert np.ptp(found) > 0.01


def test_region_gradient_is_the_literal_difference(model: Pythia) -> None:
    scene, step = scene_of(model), 1e-6
    found = RegionGradient(reduction="sum").explain(scene).arrays["regions"]
    features = files.detected(42).features.astype(np.float64)
    for row, own in zip(scene.rows, found, strict=True):
        for r in range(files.REGIONS):
            ends = []
            for sign in (1, -1):
                moved = features.copy()
                moved[r] += sign * step
                ends.append(literal(QUESTIONS[row.question], [moved])[0][row.answer])
            assert own[r] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-3, abs=2e-4)
    assert np.ptp(found) > 0.01


def test_attention_and_words_are_explained(model: Pythia) -> None:
    scene, features = scene_of(model), files.detected(42).features
    attention = RegionAttention().explain(scene).arrays["regions"]
    for row, own in zip(scene.rows, attention, strict=True):
        wanted = literal(QUESTIONS[row.question], [features])[1]
        np.testing.assert_allclose(own, wanted, atol=1e-6)
    shorter = literal("is red?", [features])[0]
    np.testing.assert_allclose(dropped_logits(scene)[1][1], shorter, rtol=1e-5, atol=1e-5)


def test_word_gradient_is_the_literal_difference(model: Pythia) -> None:
    scene, step = scene_of(model), 1e-5
    weights = {name: tensor.numpy() for name, tensor in files.pythia_weights().items()}
    features = files.detected(42).features
    found = WordGradient().explain(scene).importances
    for row, own in zip(scene.rows, found, strict=True):
        question = QUESTIONS[row.question]
        for place, number in enumerate(reference.tokens(files.WORDS, question)[: len(own)]):
            embedding = weights["word_embedding.weight"][number].astype(np.float64)
            gradient = np.zeros_like(embedding)
            for channel in range(len(embedding)):
                ends = []
                for sign in (1, -1):
                    moved = embedding.copy()
                    moved[channel] += sign * step
                    given = (weights, files.WORDS, [features], question, 0, {place: moved})
                    ends.append(reference.logits(*given)[0][row.answer])
                gradient[channel] = (ends[0] - ends[1]) / (2 * step)
            assert own[place] == pytest.approx(np.linalg.norm(gradient), rel=2e-3, abs=2e-4)
    assert max(np.ptp(own) for own in found) > 0.01


# --- files ----------------------------------------------------------------------------------------


def test_folder_holds_the_regions_of_other_formats(tmp_path: Path) -> None:
    images = {image: files.detected(image, 4 + image % 3) for image in files.IMAGES}
    of_files = RegionFeatures([files.write_tsv(tmp_path / "a.tsv", images)])
    of_folder = RegionFeatures([files.write_folder(tmp_path / "fc6", images)])
    assert of_folder.regions == of_files.regions
    for image in images:
        given = (image, files.HEIGHT, files.WIDTH)
        torch.testing.assert_close(of_folder.of(*given), of_files.of(*given))
    before = of_folder.digest
    changed = images | {1: files.detected(2, 5)}
    assert RegionFeatures([files.write_folder(tmp_path / "fc6", changed)]).digest != before


def test_folder_without_boxes_says_how_to_write_them(tmp_path: Path) -> None:
    folder = files.write_folder(tmp_path / "fc6", {1: files.detected(1)})
    (folder / "COCO_val2014_000000000001_boxes.npy").unlink()
    with pytest.raises(BadExample, match=r"000001_boxes.npy is not there; MMF keeps boxes in"):
        RegionFeatures([folder]).of(1, files.HEIGHT, files.WIDTH)
    info = np.array({"bbox": np.zeros((6, 4))}, dtype=object)
    np.save(folder / "COCO_val2014_000000000001_info.npy", info)
    assert len(RegionFeatures([folder]).files[0].places) == 1


def test_arrays_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty has no files NAME"):
        (tmp_path / "empty").mkdir()
        RegionFeatures([tmp_path / "empty"])
    folder = files.write_folder(tmp_path / "fc6", {1: files.detected(1), 2: files.detected(2)})
    features = RegionFeatures([folder])
    np.save(folder / "COCO_val2014_000000000002.npy", np.zeros((6, 7), np.float32))
    with pytest.raises(BadExample, match=r"has shape \[6, 7\], its boxes \[6, 4\]"):
        features.of(2, files.HEIGHT, files.WIDTH)
    np.save(folder / "COCO_val2014_000000000002.npy", np.array({"a": 1}, dtype=object))
    with pytest.raises(BadExample, match="cannot be read as an array"):
        features.of(2, files.HEIGHT, files.WIDTH)
    np.save(folder / "thing.npy", np.zeros((6, 7)))
    with pytest.raises(UserError, match=r"thing.npy: what image it is of is not clear"):
        RegionFeatures([folder])
    cells = files.write_cells(tmp_path / "resnet152")
    features = RegionFeatures([cells])
    np.save(cells / "COCO_val2014_000000000042.npy", np.zeros((1, 3, 2, 8), np.float32))
    with pytest.raises(BadExample, match=r"has shape \[1, 3, 2, 8\], others \[2, 3, 8\]"):
        features.of(42, files.HEIGHT, files.WIDTH)


def test_flipped_bytes_are_named_or_harmless(tmp_path: Path) -> None:
    folder = files.write_folder(tmp_path / "fc6", {1: files.detected(1)})
    path = folder / "COCO_val2014_000000000001.npy"
    whole, drawn, told = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        data = bytearray(whole)
        for place in drawn.integers(0, len(data), 3):
            data[place] = drawn.integers(256)
        path.write_bytes(data)
        try:
            found = RegionFeatures([folder]).of(1, files.HEIGHT, files.WIDTH)
            assert found.isfinite().all()
        except (UserError, BadExample) as error:
            assert str(tmp_path) in str(error)
            told += 1
    assert told > 10


def test_older_names_and_a_bare_state_dict_are_the_same_model(copy: Copy, model: Pythia) -> None:
    folder, section = copy(), files.pythia_section
    weights = torch.load(folder / "pythia.pth", weights_only=True)["model"]
    older = {
        name.replace("encoders.0.lc", "encoders.0.module.lc"): t for name, t in weights.items()
    }
    torch.save({f"module.{name}": t for name, t in older.items()}, folder / "pythia.pth")
    (folder / "answers_vqa.txt").write_text("\n".join(files.ANSWERS))
    other = build(section(folder))
    assert weights_digest(other) == weights_digest(model)
    assert other.answers == ("<unk>", *files.ANSWERS)


# --- what is refused ------------------------------------------------------------------------------


def respoilt(folder: Path, change: Callable[[dict], dict]) -> dict[str, Any]:
    torch.save({"model": change(files.pythia_weights())}, folder / "pythia.pth")
    return files.pythia_section(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (files.without("fa_txt.layers.0.weight_g"), r"fa_txt.layers.0.weight_g has shape None and"),
        (
            files.without("linear_text.weight"),
            r"no tensor 'classifier.module.linear_text.weight' with 2",
        ),
        (
            files.without("conv1.bias"),
            r"lacks a tensor 'text_emb.*conv1.bias' of shape \[5\]",
        ),
        (
            lambda w: {**w, "text_embeddings.0.module.recurrent_unit.bias_hh_l1": torch.zeros(3)},
            r"a tensor 'text_embeddings.*_l1' of shape \[3\], which the model has no place for",
        ),
        (
            lambda w: {**w, "image_feature_encoders.0.lc.weight": torch.ones(7, 9)},
            r"val36.tsv has 8 features a region, .*pythia.pth was trained on 9",
        ),
        (
            lambda w: {**w, "word_embedding.weight": torch.ones(9, 5)},
            r"vocabulary_100k.txt has 10 words, .*pythia.pth was trained with 5",
        ),
        (
            lambda w: {**w, "classifier.module.linear_image.bias": torch.ones(9)},
            r"linear_image.bias' has shape \[9\], the model needs \[5\]",
        ),
        (lambda _: files.pythia_weights(grid=True), r"trained on 2 kinds of features, .* gives 1"),
    ],
)
def test_checkpoint_that_does_not_fit_names_tensor_and_shapes(
    change: Callable[[dict], dict], message: str, copy: Copy
) -> None:
    with pytest.raises(UserError, match=message):
        build(respoilt(copy(), change))


def test_lists_that_do_not_fit_are_refused(copy: Copy) -> None:
    folder = copy()
    (folder / "answers_vqa.txt").write_text("yes\nno\n")
    with pytest.raises(UserError, match=r"answers_vqa.txt has 2 answers, the model has 5"):
        build(files.pythia_section(folder))
    with pytest.raises(UserError, match=r"trained on 1 kinds of features, the recipe gives 2"):
        build(files.pythia_section(folder, grid_features=str(folder / "resnet152")))


def test_what_images_share_is_computed_once_and_the_same() -> None:
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 6, 3, generator=drawn).repeat(4, 1, 1)
    rows[1, 2], rows[3] = 0, torch.randn(6, 3, generator=drawn)
    seen: list[int] = []

    def doubled(values: torch.Tensor) -> torch.Tensor:
        seen.append(values.shape[:-1].numel())
        return torch.cat([values, 2 * values], -1)

    torch.testing.assert_close(by_row(doubled, rows), torch.cat([rows, 2 * rows], -1))
    assert seen == [6, 1 + 6]
