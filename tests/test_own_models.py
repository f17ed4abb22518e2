"""A model that a user brings: a class of their own, from its recipe to its maps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import explain
from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.jobs import Submission, copy_code, own_code
from pipeline.plan import make_plan
from tests.conftest import Recipe
from tests.own import classes
from workers import catalog
from workers.errors import UserError
from workers.methods.base import Scene
from workers.models.base import Capability, VQAModel
from workers.models.digest import weights_digest

CPU = torch.device("cpu")
BLACK_BOX = {
    "occlusion": {"grid": 4},
    "rise": {"masks": 20},
    "saliency": {},
    "guided_backprop": {},
    "word_occlusion": {},
}


def model(name: str, **arguments: object) -> VQAModel:
    section = {"kind": "python", "target": f"tests.own.classes:{name}", "arguments": arguments}
    return catalog.model_spec(catalog.Component(**section)).build(CPU)


def test_least_class_gives_its_own_logits_frozen_and_in_eval_mode() -> None:
    built = model("Least", seed=5)
    own = classes.Least(seed=5).eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    canvas, frame = built.prepare(image)
    assert canvas.shape == (3, 24, 24)
    assert (frame.left, frame.right, frame.image_width) == (0, 1, 60)
    expected = own.logits(canvas[None], ["what is this ?"])
    torch.testing.assert_close(built.logits(canvas[None], [("what", "is", "this", "?")]), expected)
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert built.provides == {Capability.LOGITS, Capability.GRADIENTS}
    assert built.answers == tuple(classes.ANSWERS)


def test_more_methods_unlock_more_capabilities() -> None:
    assert model("Plain").provides == {Capability.LOGITS}
    late = model("Late")
    assert late.provides == frozenset(
        {
            Capability.LOGITS,
            Capability.SPLIT,
            Capability.GRADIENTS,
            Capability.FEATURE_MAP,
            Capability.EMBEDDINGS,
            Capability.ATTENTION,
        }
    )
    assert (late.geometry.feature_height, late.geometry.glimpses) == (6, 1)
    assert late.geometry.glimpse_map == "mean"


def test_class_says_which_map_its_glimpses_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes.Late, "glimpse_map", "last", raising=False)
    assert model("Late").geometry.glimpse_map == "last"
    monkeypatch.setattr(classes.Late, "glimpse_map", "first")
    with pytest.raises(UserError, match=r"Late\.glimpse_map is 'first'; give one of mean, last"):
        model("Late")


def test_another_forward_pass_or_argument_is_another_model() -> None:
    digests = {weights_digest(model(name)) for name in ("Least", "Plain", "Late")}
    assert len(digests | {weights_digest(model("Least", seed=1))}) == 4


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("tests.own.missing:Model", {}, r"no module 'tests\.own\.missing' in .*VQATLAS_MODULES"),
        ("tests.own.classes:Leest", {}, r"no class 'Leest'; its classes .*Least, Plain, Late"),
        ("subprocess:Popen", {"args": "true"}, r"neither logits\(images, questions\) nor all of"),
        ("tests.own.classes:Unfinished", {}, r"it has head, trunk; still missing: words, encode"),
        ("tests.own.classes:Least", {"sed": 1}, r"cannot be made with .*constructor is Least\("),
        ("tests.own.classes:Silent", {}, r"answers has 0 entries"),
        (
            "tests.own.classes:Marked",
            {},
            r"words embeds 4 words of 'what is this', which its tokenise cuts into 3",
        ),
        (
            "tests.own.classes:Transposed",
            {},
            r"gave a Tensor of \[5, 1\] for 1 questions; give .* \[1, 5\]",
        ),
    ],
)
def test_what_is_missing_is_named(target: str, arguments: dict, message: str) -> None:
    section = {"name": "python", "target": target, "arguments": arguments}
    with pytest.raises(UserError, match=message):
        catalog.model_spec(catalog.Component(**section)).build(CPU)


@pytest.mark.parametrize("name", ["Least", "Late"])
def test_recipe_with_a_class_of_ones_own_becomes_maps(
    name: str, recipe: Recipe, tmp_path: Path
) -> None:
    late = {"grad_cam": {}, "attention": {}, "word_gradient": {}} if name == "Late" else {}
    config = recipe(
        model={"kind": "python", "target": f"tests.own.classes:{name}"},
        methods=BLACK_BOX | late,
        targets=["predicted"],
        resources={"executor": "local", "engine": "plain"},
    )
    assert config.model.name == "python"
    plan = make_plan(config, None)
    assert plan.passes == (1 + 16 + 20) * (plan.images if name == "Late" else plan.examples)
    result = stages.run(config, tmp_path / "run")
    assert result.failed_examples == 0
    run = Run(tmp_path / "run")
    assert set(run.maps.status) <= {"ok", "degenerate"}
    maps = run.maps[run.maps.method == "occlusion"]
    assert (maps.status == "ok").all()
    assert all(np.isfinite(m).all() and m.shape == (4, 4) for m in run.fetch(maps))


def test_gradients_of_a_black_box_equal_autograd() -> None:
    built = model("Least").double()
    asked = (("what", "colour"), ("is", "it", "red"))
    scene = Scene(built, torch.rand(3, 24, 24).double() * 255, asked, (1, 2), (0, 3), batch=1)
    maps = catalog.METHODS["saliency"]().explain(scene).arrays["map"]
    for row, found in zip(scene.rows, maps, strict=True):
        canvas = scene.canvas[None].clone().requires_grad_()
        built.logits(canvas, [asked[row.question]])[0, row.answer].backward()
        torch.testing.assert_close(torch.from_numpy(found), canvas.grad[0].abs().amax(0))


def test_explain_takes_a_section_with_a_class_of_ones_own() -> None:
    image = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    section = {"kind": "python", "target": "tests.own.classes:Late"}
    result = explain(section, image, "what is this", ["occlusion", "grad_cam", "word_occlusion"])
    assert result.frame.left > 0
    assert result.maps["grad_cam"]["map"].shape == (6, 6)
    assert len(result.words["word_occlusion"]) == 3


def test_job_on_a_cluster_takes_the_class_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.py").write_text("# their model")
    monkeypatch.chdir(tmp_path)
    section = {"name": "python", "target": "theirs.model:Least"}
    submission = Submission(out="s3://a/b", recipe={"model": section})
    shipped = copy_code(tmp_path / "shipped", own_code(submission))
    assert (shipped / "theirs" / "model.py").read_text() == "# their model"
    assert (shipped / "workers" / "explain.py").exists()
    installed = {"model": {"name": "python", "target": "torch.nn:Linear"}}
    assert own_code(Submission(out="s3://a/b", recipe=installed)) is None
