"""One picture through the Python function: the same maps as a whole run gives."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import explain
from pipeline import run as stages
from pipeline.dataset import Run
from tests.conftest import METHODS, Recipe
from workers.errors import UserError


@pytest.mark.parametrize("position", [0, 7])
def test_explain_equals_the_run_over_the_dataset(
    position: int, recipe: Recipe, checkpoint: Path, tmp_path: Path
) -> None:
    stages.run(recipe(), tmp_path / "run")
    run = Run(tmp_path / "run")
    example = run.examples.iloc[position]
    result = explain(str(checkpoint), example.image, example.question, METHODS)
    assert (result.prediction, list(result.tokens)) == (example.prediction, list(example.tokens))
    assert result.confidence == pytest.approx(example.confidence, rel=1e-5)
    own = run.maps[(run.maps.question_id == example.question_id) & (run.maps.target == "predicted")]
    own = own[own.method.isin(METHODS)]
    assert len(own) == len(result.maps)
    for method, stored in zip(own.method, run.fetch(own), strict=True):
        values = next(iter(result.maps[method].values()))
        scale = max(float(np.abs(stored).max()), 1e-9)
        np.testing.assert_allclose(values, stored, rtol=0, atol=5e-5 * scale)


def test_explain_of_another_answer_explains_that_one(world: Path, checkpoint: Path) -> None:
    image = sorted((world / "val2014").glob("*.png"))[0]
    question = "what color is the circle?"
    own = explain(str(checkpoint), image, question, ["grad_cam", "word_occlusion"])
    other = next(a for a in ("yes", "no", "2") if a != own.prediction)
    asked = explain(str(checkpoint), image, question, ["grad_cam", "word_occlusion"], answer=other)
    assert (asked.answer, asked.prediction) == (other, own.prediction)
    assert own.probability == own.confidence == asked.confidence > asked.probability > 0
    assert not np.allclose(asked.maps["grad_cam"]["signed"], own.maps["grad_cam"]["signed"])


def test_explain_takes_an_array_and_a_models_section(checkpoint: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    model = {"name": "kazemi", "checkpoint": str(checkpoint)}
    result = explain(model, image, "is there a red circle?", ["occlusion"])
    assert result.image.shape == (48, 48, 3)
    assert result.maps["occlusion"]["drop"].shape == (16, 16)
    assert result.frame.left > 0


def test_explain_by_an_unknown_method_lists_the_known_ones(world: Path, checkpoint: Path) -> None:
    image = sorted((world / "val2014").glob("*.png"))[0]
    with pytest.raises(UserError, match=r"unknown name 'guessing'\. Available: occlusion"):
        explain(str(checkpoint), image, "is there a red circle?", ["guessing"])


GRAY = np.zeros((60, 90), np.uint8)
PICTURE = np.zeros((60, 90, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "question", "device", "message"),
    [
        (
            PICTURE / 255,
            "is it red?",
            "cpu",
            r"array of float64, shape \(60, 90, 3\)",
        ),
        (GRAY, "is it red?", "cpu", r"of gray np.stack\(\[x\] \* 3, -1\)"),
        (PICTURE, 5, "cpu", "the question is 5, a int: give a text"),
        (PICTURE, "is it red?", "gpu", "device 'gpu' is unknown: give auto, cpu, cuda or cuda:N"),
    ],
)
def test_explain_says_what_it_wants(
    image: np.ndarray, question: str, device: str, message: str, checkpoint: Path
) -> None:
    with pytest.raises(UserError, match=message):
        explain(str(checkpoint), image, question, "saliency", device=device)


def test_explain_takes_methods_as_a_recipe_has_them(checkpoint: Path) -> None:
    given = ("saliency", ["saliency"], {"saliency": None}, {"saliency": {}})
    found = [explain(str(checkpoint), PICTURE, "is it red?", methods) for methods in given]
    for result in found:
        assert list(result.maps) == ["saliency"]
