"""A dataset full of bad examples: each fails by name, none takes its neighbours down."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import run as stages
from pipeline.dataset import Run
from tests.conftest import Recipe

GOOD = 1
SIDE = 64


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(noise)


def rotated(path: Path) -> None:
    """Stored lying on its side, to be turned upright by its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().resize((96, 48)).save(path, "JPEG", exif=exif)


def animated(path: Path) -> None:
    picture().save(path, "GIF", save_all=True, append_images=[picture(1), picture(2)])


def truncated(path: Path) -> None:
    picture().save(path, "PNG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype("u2")).save(
        path, "PNG"
    )


ACCEPTED: dict[str, Callable[[Path], None]] = {
    "plain": lambda path: picture().save(path, "PNG"),
    "16-bit": sixteen_bit,
    "CMYK": lambda path: picture().convert("CMYK").save(path, "JPEG"),
    "palette": lambda path: picture().convert("P").save(path, "PNG"),
    "grey-alpha": lambda path: picture().convert("LA").save(path, "PNG"),
    "EXIF rotation": rotated,
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated PNG": (truncated, "truncated"),
    "zero-byte JPEG": (lambda path: path.write_bytes(b"") and None, "empty"),
    "animated": (animated, "3 frames"),
    "1x1": (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "1 x 1"),
    "20,000x1": (lambda path: Image.new("RGB", (20_000, 1)).save(path, "PNG"), "20000"),
    "missing": (lambda path: None, "missing"),
}
QUESTIONS = {
    "empty": ("", "has 0 words"),
    "500 words": (" ".join(["red"] * 500), "has 500 words, the limit is 128"),
    "unknown words": ("zyx wvu tsr", "none of its 3 words in the model's vocabulary"),
}


def official(root: Path, makers: dict[str, Callable[[Path], None]]) -> dict[str, int]:
    """VQA v1 files with one image a maker and one good question each; name -> image id."""
    (root / "val2014").mkdir(parents=True)
    ids = {name: i for i, name in enumerate(makers, start=1)}
    for name, make in makers.items():
        make(root / "val2014" / f"COCO_val2014_{ids[name]:012d}.png")
    asked = [(10 * i, i, "what color is the circle?") for i in ids.values()]
    asked += [(10 * GOOD + k, GOOD, q) for k, (q, _) in enumerate(QUESTIONS.values(), start=1)]
    envelope = {"data_subtype": "val2014", "data_type": "mscoco"}
    questions = [{"question_id": i, "image_id": m, "question": q} for i, m, q in asked]
    answers = [{"answer_id": k, "answer": "heliotrope"} for k in range(1, 11)]
    annotations = [{"question_id": i, "image_id": m, "answers": answers} for i, m, _ in asked]
    write(root / "questions.json", {**envelope, "questions": questions})
    write(root / "annotations.json", {**envelope, "annotations": annotations})
    return ids


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture
def bad_run(folder: Path, recipe: Recipe) -> tuple[Run, dict[str, int]]:
    """A run over every kind of image and question, made once."""
    makers = {**ACCEPTED, **{name: make for name, (make, _) in REFUSED.items()}}
    ids = {name: i for i, name in enumerate(makers, start=1)}
    if not (folder / "run").exists():
        assert official(folder / "data", makers) == ids
        dataset = {
            "name": "vqa",
            "root": str(folder / "data"),
            "questions": "questions.json",
            "annotations": "annotations.json",
            "images": ".",
        }
        stages.run(recipe(dataset=dataset, store={"shard_size": 64}), folder / "run")
    return Run(folder / "run"), ids


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_image_is_explained_by_every_method(
    name: str, bad_run: tuple[Run, dict[str, int]]
) -> None:
    run, ids = bad_run
    question = 10 * ids[name]
    rows = run.maps[(run.maps.question_id == question) & (run.maps.target == "predicted")]
    assert len(rows) == 9
    assert set(rows.status) <= {"ok", "degenerate"}
    assert question not in set(run.failures.question_id)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_image_fails_with_its_file_and_reason(
    name: str, bad_run: tuple[Run, dict[str, int]]
) -> None:
    run, ids = bad_run
    (failure,) = run.failures[run.failures.image_id == ids[name]].to_dict("records")
    assert failure["stage"] == "decode"
    assert f"COCO_val2014_{ids[name]:012d}." in failure["message"]
    assert REFUSED[name][1] in failure["message"].lower().replace(",", "")


@pytest.mark.parametrize("name", QUESTIONS)
def test_bad_question_fails_and_spares_the_good_one_beside_it(
    name: str, bad_run: tuple[Run, dict[str, int]]
) -> None:
    run, _ = bad_run
    question = 10 * GOOD + list(QUESTIONS).index(name) + 1
    (failure,) = run.failures[run.failures.question_id == question].to_dict("records")
    assert failure["stage"] == "question"
    assert QUESTIONS[name][1] in failure["message"]
    assert set(run.maps[run.maps.question_id == question].status) == {"failed"}
    assert "failed" not in set(run.maps[run.maps.question_id == 10 * GOOD].status)


def test_answer_outside_the_vocabulary_leaves_no_truth_target(
    bad_run: tuple[Run, dict[str, int]],
) -> None:
    run, _ = bad_run
    good = run.examples[run.examples.status == "ok"]
    assert set(good.truth) == {"heliotrope"}
    assert not good.truth_in_vocabulary.astype(bool).any()
    assert set(run.maps.target) == {"predicted"}
    assert not good.correct.astype(bool).any()


def test_every_example_has_its_row(bad_run: tuple[Run, dict[str, int]]) -> None:
    run, ids = bad_run
    assert len(run.examples) == len(ids) + len(QUESTIONS)
    assert run.examples.question_id.is_unique
    assert set(run.examples[run.examples.status == "failed"].question_id) == set(
        run.failures.question_id
    )
