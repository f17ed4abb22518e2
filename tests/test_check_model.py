"""``check-model``: what it finds in good and in careless models."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from pipeline.check import check
from pipeline.cli import main
from pipeline.console import console
from tests import nets
from tests.conftest import Recipe
from tests.own.classes import Careless, Late, Least
from workers.check import check_model
from workers.errors import UserError
from workers.models.base import VQAModel, freeze
from workers.models.own import OwnConfig, wrap


def failing(model: VQAModel) -> set[str]:
    return {check.name for check in check_model(model) if not check.passed}


def own(model: object) -> VQAModel:
    config = OwnConfig(target="tests:Model", arguments={}, source="")
    return wrap(model, config, torch.device("cpu"))


class Overwrites(Least):
    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        return super().logits(images.sub_(3), questions)


class Blind(Least):
    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        return super().logits(torch.zeros_like(images), questions)


class Deaf(Least):
    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        return super().logits(images, ["same"] * len(questions))


class Thawed(Least):
    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        self.train().requires_grad_()
        return super().logits(images, questions)


class Padded(Least):
    """Its words are averaged over the longest question of the batch."""

    def asked(self, questions: list[str]) -> Tensor:
        longest = max(len(question.split()) for question in questions)
        return super().asked(questions) / max(1, longest)


class Infinite(Least):
    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        return super().logits(images, questions) / 0


class TwoMinds(Late):
    """Its logits are not what its parts give."""

    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        features = self.trunk(self.normalise(images))
        return self.head(features, self.encode(*self.words(questions)))[0] + 1


class Unlit(Least):
    """Differentiable on paper; the gradient is zero everywhere."""

    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        return super().logits(images.round() + 0 * images, questions)


class OneSided(nn.Module):
    answers = ("yes", "no")
    image_size = 24

    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        raise RuntimeError("no engine")


@pytest.mark.parametrize("model", [nets.build("plain"), nets.black_box(), own(Late())])
def test_sound_models_pass_every_check(model: VQAModel) -> None:
    for name in ("tokenise", "known"):  # words that the nets' vocabulary has not are left out
        assert callable(getattr(model, name))
    if not hasattr(model, "own"):
        kept = type(model).tokenise
        model.tokenise = lambda q: tuple(t for t in kept(model, q) if model.known(t))
    assert failing(model) == set()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Careless, {"deterministic", "batch invariance", "empty question"}),
        (Overwrites, {"input kept"}),
        (Blind, {"image matters"}),
        (Deaf, {"question matters"}),
        (Padded, {"padding"}),
        (Infinite, {"finite logits"}),
        (TwoMinds, {"parts agree"}),
        (Unlit, {"gradients flow"}),
    ],
)
def test_each_fault_is_found_by_its_check(model: type, expected: set[str]) -> None:
    assert expected <= failing(own(model()))


def test_model_that_thaws_itself_is_found() -> None:
    model = own(Thawed())
    freeze(model)
    assert "eval mode" in failing(model)
    assert "frozen weights" in failing(model)


def test_what_a_model_raises_fails_the_check_it_raises_in() -> None:
    with pytest.raises(RuntimeError, match="no engine"):
        own(OneSided())
    careless = {c.name: c for c in check_model(own(Careless()))}
    assert careless["empty question"].found == "IndexError: list index out of range"
    assert "all padding" in careless["empty question"].remedy


def test_verdict_says_which_methods_run_and_why_others_do_not(recipe: Recipe) -> None:
    methods = {"occlusion": {"grid": 4}, "grad_cam": {}}
    section = {"kind": "python", "target": "tests.own.classes:Least"}
    verdict = check(recipe(model=section, methods=methods))
    assert all(c.passed for c in verdict.checks)
    outlooks = {m.label: m for m in verdict.methods}
    assert outlooks["occlusion"].reason is None
    assert outlooks["occlusion"].seconds > 10 * outlooks["center"].seconds > 0
    assert "needs feature_map, split" in str(outlooks["grad_cam"].reason)
    assert not verdict.sound  # the recipe asks for grad_cam
    assert check(recipe(model=section, methods={"saliency": {}})).sound


def test_command_prints_the_table_and_ends_with_one_if_anything_is_wrong(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "width", 160)

    def call(name: str) -> tuple[int, str]:
        section = {"name": "python", "target": f"tests.own.classes:{name}"}
        config = recipe(model=section, methods={"word_occlusion": {}}).model_dump(mode="json")
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
        arguments = ["run_pipeline.py", "check-model", str(tmp_path / "recipe.yaml")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    status, text = call("Least")
    assert status == 0
    assert "OwnModel: 5 answers, input 24 x 24" in text
    assert "provides gradients, logits" in text
    assert re.search(r"batch invariance +ok +batched and single differ by", text)
    status, text = call("Careless")
    assert status == 1
    assert re.search(r"deterministic +FAILS .* switch sampling and functional dropout off", text)


def test_fault_before_any_check_is_one_line() -> None:
    model = nets.black_box()

    def refuse(image: np.ndarray) -> None:
        raise UserError("no picture pleases it")

    model.prepare = refuse
    (only,) = check_model(model)
    assert (only.passed, only.found) == (False, "UserError: no picture pleases it")
