"""The model of Kazemi and Elqursh on features from a file, in the place of a trunk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests import region_files as files
from tests.reference import kazemi as reference
from tests.test_huggingface import photo
from workers import catalog
from workers.check import check_model
from workers.errors import BadExample, UserError
from workers.methods.attention import Attention
from workers.methods.base import Scene, scores
from workers.methods.gradients import GradCam
from workers.methods.regions import RegionAttention, RegionGradient, RegionOcclusion
from workers.methods.words import WordGradient, dropped_logits
from workers.models.digest import weights_digest
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.kazemi_features import StoredKazemi, read_features
from workers.models.specs import KazemiSpec
from workers.models.trunks import TRUNKS

CPU = torch.device("cpu")
QUESTIONS = ("What is the colour of this dog?", "is this red?", "zebra")
WEIGHTS = {n.removeprefix("module."): t.numpy() for n, t in files.kazemi_weights().items()}
Copy = Callable[[], Path]


def build(section: dict[str, Any]) -> StoredKazemi:
    built = catalog.model_spec(catalog.Component(**section)).build(CPU)
    assert isinstance(built, StoredKazemi)
    return built


@pytest.fixture(scope="module")
def folder(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("kazemi")


@pytest.fixture(scope="module")
def model(folder: Path) -> StoredKazemi:
    return build(files.kazemi_section(folder))


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Files of a model, to be spoilt."""

    def make() -> Path:
        files.kazemi(tmp_path / "kazemi")
        return tmp_path / "kazemi"

    return make


def scene_of(model: StoredKazemi, batch: int = 32) -> Scene:
    seen = model.see(photo(), 42)
    asked = [model.tokenise(question) for question in QUESTIONS[:2]]
    return Scene(model, seen.canvas, asked, (1, 2), (0, 1), batch=batch, regions=seen.regions)


def literal(
    question: str, features: np.ndarray, kept: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and attention, in float64, over the cells that are kept."""
    words = question.lower().removesuffix("?").split()
    numbers = [files.WORDS.index(w) + 1 if w in files.WORDS else 0 for w in words]
    seen = features.astype(np.float64)
    if kept is not None:
        seen = seen.reshape(len(seen), -1)[:, kept][:, None]
    return reference.forward({n: w.astype(np.float64) for n, w in WEIGHTS.items()}, seen, numbers)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("image_id", files.IMAGES)
def test_logits_and_attention_are_the_literal_ones(
    model: StoredKazemi, image_id: int, question: str
) -> None:
    seen = model.see(photo(), image_id)
    assert seen.regions is not None
    found = model.answer(seen.regions[None], [model.tokenise(question)])
    logits, attention = literal(question, files.grid(image_id))
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-5, atol=1e-5)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention[0], attention.mean(0).ravel(), atol=1e-6)
    assert np.ptp(logits) > 0.5


def test_logits_are_those_of_the_pixels_that_the_features_come_from(copy: Copy) -> None:
    folder = copy()
    torch.manual_seed(1)
    torch.save(TRUNKS["small"]((24, 32, 64, 96)).state_dict(), folder / "trunk.pth")
    whole = KazemiSpec(
        checkpoint=folder / "released.pth", trunk_checkpoint=folder / "trunk.pth", trunk="small"
    ).build(CPU)
    assert isinstance(whole, Kazemi)
    canvases = {n: whole.see(photo(seed=n)).canvas[None] for n in (3, 4)}
    grids = {n: whole.trunk(whole.normalise(c))[0].half().numpy() for n, c in canvases.items()}
    files.write_grids(folder / "resnet-14x14.h5", grids)
    model = build(files.kazemi_section(folder))
    asked = [whole.tokenise(question) for question in QUESTIONS]
    for number, canvas in canvases.items():
        seen = model.see(photo(seed=number), number)
        torch.testing.assert_close(seen.canvas, canvas[0])
        assert seen.regions is not None
        found = model.answers_to_all(seen.regions[None], asked)
        wanted = whole.answers_to_all(canvas, asked)
        assert float((found - wanted).abs().max()) < 2e-3 * float(wanted.abs().max())
        assert float(wanted.std()) > 0.1


def test_every_check_of_a_model_passes(model: StoredKazemi) -> None:
    checks = check_model(model)
    assert [c for c in checks if not c.passed] == []
    assert {"gradients flow", "parts agree"} <= {c.name for c in checks}


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("how", ["remove", "zero"])
def test_occlusion_takes_cell_by_cell_away(model: StoredKazemi, how: str, batch: int) -> None:
    scene, features = scene_of(model, batch), files.grid(42)
    method = RegionOcclusion(how=how, score="logit", grid=4)
    arrays = method.explain(scene).arrays
    for row, found in zip(scene.rows, arrays["regions"], strict=True):
        question = QUESTIONS[row.question]
        clean = literal(question, features)[0][row.answer]
        for cell in range(16):
            changed, kept = features.copy(), None
            if how == "zero":
                changed[:, cell // 4, cell % 4] = 0
            else:
                kept = np.delete(np.arange(16), cell)
            less = literal(question, changed, kept)[0][row.answer]
            assert found[cell] == pytest.approx(clean - less, abs=2e-5)
    assert np.ptp(arrays["regions"]) > 0.01
    # Each cell of the feature map is one of the stored map: row by row, nowhere two.
    np.testing.assert_array_equal(arrays["map"].reshape(-1, 16), arrays["regions"])


def test_gradients_and_grad_cam_are_the_features_own(model: StoredKazemi) -> None:
    scene = scene_of(model)
    sums = RegionGradient(reduction="sum", grid=4).explain(scene).arrays["regions"]
    cams = GradCam().explain(scene).arrays["signed"]
    seen = torch.from_numpy(files.grid(42).astype(np.float32))[None]
    for row, alpha, cam in zip(scene.rows, sums, cams, strict=True):
        features = seen.clone().requires_grad_()
        states = model.encode(model.words([scene.questions[row.question]]))
        logits = model.head(features, states).logits
        (gradient,) = torch.autograd.grad(logits[0, row.answer], features)
        np.testing.assert_allclose(alpha.reshape(4, 4), gradient[0].sum(0), rtol=1e-4, atol=1e-5)
        wanted = (gradient.mean((2, 3), keepdim=True) * seen)[0].sum(0)
        np.testing.assert_allclose(cam, wanted, rtol=1e-4, atol=1e-5)


def test_attention_is_one_by_both_methods(model: StoredKazemi) -> None:
    scene = scene_of(model)
    over_cells = Attention().explain(scene).arrays["map"]
    over_regions = RegionAttention(grid=4).explain(scene).arrays["map"]
    np.testing.assert_allclose(over_cells, over_regions, atol=1e-7)
    wanted = literal(QUESTIONS[0], files.grid(42))[1].mean(0)
    np.testing.assert_allclose(over_cells[0], wanted, atol=1e-6)


def test_words_are_explained(model: StoredKazemi) -> None:
    scene = scene_of(model)
    shorter = literal("what is colour of this dog?", files.grid(42))[0]
    np.testing.assert_allclose(dropped_logits(scene)[0][2], shorter, rtol=1e-5, atol=1e-5)
    found = WordGradient().explain(scene).importances
    for row, own in zip(scene.rows, found, strict=True):
        words = model.words([scene.questions[row.question]])
        words.embeddings.requires_grad_()
        logits = model.head(scene.features, model.encode(words)).logits
        value = scores(logits, torch.tensor([row.answer]), "logit")[0]
        (gradient,) = torch.autograd.grad(value, words.embeddings)
        np.testing.assert_allclose(own, gradient[0].norm(dim=-1), rtol=1e-4, atol=1e-6)


# --- what is refused ------------------------------------------------------------------------------


def test_image_that_is_not_there_is_an_examples_failure(model: StoredKazemi, folder: Path) -> None:
    with pytest.raises(BadExample, match=rf"image 5 is not among the 3 images of {folder}/resnet"):
        model.see(photo(), 5)
    with pytest.raises(BadExample, match="give image_id"):
        model.see(photo())


def test_features_that_are_not_finite_are_an_examples_failure(copy: Copy) -> None:
    folder = copy()
    with h5py.File(folder / "resnet-14x14.h5", "a") as file:
        file["features"][1, 3, 2, 1] = np.inf
    model = build(files.kazemi_section(folder))
    with pytest.raises(BadExample, match=r"image 42: 1 of 1536 features are not finite"):
        model.see(photo(), 42)
    assert model.see(photo(), 1).regions is not None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("features", np.zeros((3, 96, 4), np.float16), "no dataset 'features' of 4 axes"),
        ("features", np.zeros((3, 96, 4, 4), np.int8), "no dataset 'features' of 4 axes"),
        ("features", np.zeros((3, 96, 7, 4), np.float16), "has features of 96 x 7 x 4, the trunk"),
        ("features", np.zeros((3, 95, 4, 4), np.float16), "'small' gives 96 x 4 x 4 of 32 pixels"),
        ("ids", np.zeros((3, 1), np.int32), r"no dataset 'ids' of 1 axes; it has .*ids \[3, 1\]"),
        ("ids", np.zeros(3, np.float32), "no dataset 'ids'"),
        ("ids", np.array([1, 2], np.int32), "2 ids for features of 3 images"),
        ("ids", np.array([1, 2, 1], np.int32), "2 different ids for features of 3 images"),
    ],
)
def test_file_of_another_shape_is_refused(
    name: str, value: np.ndarray, message: str, copy: Copy
) -> None:
    folder = copy()
    with h5py.File(folder / "resnet-14x14.h5", "a") as file:
        del file[name]
        file[name] = value
    with pytest.raises(UserError, match=message) as caught:
        build(files.kazemi_section(folder))
    assert str(folder / "resnet-14x14.h5") in str(caught.value)


def test_features_that_lie_in_another_file_are_not_followed(copy: Copy) -> None:
    folder = copy()
    files.write_grids(folder / "other.h5", {1: files.grid(1)})
    with h5py.File(folder / "resnet-14x14.h5", "a") as file:
        del file["ids"]
        file["ids"] = h5py.ExternalLink("other.h5", "/ids")
    with pytest.raises(UserError, match="no dataset 'ids'"):
        build(files.kazemi_section(folder))


def test_several_files_are_one_and_part_of_the_model(copy: Copy, model: StoredKazemi) -> None:
    folder = copy()
    more = files.write_grids(folder / "test.h5", {9: files.grid(9)})
    both = build(
        files.kazemi_section(folder, features=[str(folder / "resnet-14x14.h5"), str(more)])
    )
    assert both.see(photo(), 9).regions is not None
    assert weights_digest(both) != weights_digest(model)


def test_other_weights_are_refused(copy: Copy) -> None:
    folder = copy()
    content = torch.load(folder / "released.pth", weights_only=True)
    content["weights"]["module.attention.v_conv.weight"] = torch.zeros(8, 95, 1, 1)
    torch.save(content, folder / "released.pth")
    with pytest.raises(
        UserError,
        match=r"v_conv.weight' has shape \[8, 95, 1, 1\], the model",
    ):
        build(files.kazemi_section(folder))


def test_features_take_the_trunks_place(folder: Path, tmp_path: Path) -> None:
    section = files.kazemi_section(folder)
    given = {"checkpoint": section["checkpoint"], "features": section["features"]}
    with pytest.raises(ValidationError, match="in place of trunk_checkpoint or random_seed"):
        KazemiSpec(**given, trunk_checkpoint=tmp_path / "trunk.pth")
    with pytest.raises(ValidationError, match="features go with checkpoint"):
        KazemiSpec(random_seed=1, features=section["features"])
    demo = Path(catalog.__file__).parent / "models" / "weights" / "demo.safetensors"
    with pytest.raises(UserError, match="has its own trunk; leave out features"):
        KazemiSpec(checkpoint=demo, features=section["features"]).build(CPU)


def test_flipped_bytes_are_named_or_harmless(tmp_path: Path) -> None:
    config = KazemiConfig(trunk="small", image_size=32, words=("red",), answers=("no", "yes"))
    path = files.write_grids(tmp_path / "a.h5", {image: files.grid(image) for image in (1, 42)})
    whole, drawn, told = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(80):
        data = bytearray(whole)
        for place in drawn.integers(0, 1500, 3):
            data[place] = drawn.integers(256)
        path.unlink()  # an open file is not read anew
        path.write_bytes(data)
        try:
            features = read_features([path], config)
            for image in features.files[0].places:
                assert features.of(image, 90, 120).isfinite().all()
        except (UserError, BadExample) as error:
            assert str(tmp_path) in str(error)
            told += 1
    assert told > 10
