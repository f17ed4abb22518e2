"""LXMERT and VisualBERT: what they answer, what explains them, what is refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import hub
from tests import region_files as files
from tests.reference import transformers as reference
from tests.test_huggingface import photo, reconfigured, reweighted
from workers import catalog
from workers.check import check_model
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.regions import RegionGradient, RegionOcclusion
from workers.methods.words import WordGradient, dropped_logits
from workers.models.base import RegionModel
from workers.models.digest import weights_digest

NAMES = list(hub.SEEING_REGIONS)
QUESTIONS = ("what is the colour of this dog ?", "is it red ?")
Checkpoints = Callable[[str], Path]


def build(section: dict[str, Any]) -> RegionModel:
    built = catalog.model_spec(catalog.Component(**section)).build(torch.device("cpu"))
    assert isinstance(built, RegionModel)
    return built


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, RegionModel]:
    return {name: build(hub.section(name, checkpoints(name))) for name in NAMES}


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint to be spoilt."""
    return lambda name: Path(shutil.copytree(checkpoints(name), tmp_path / name))


def expected(
    name: str,
    folder: Path,
    question: str,
    found: files.Detected,
    kept: Sequence[int] = range(files.REGIONS),
) -> torch.Tensor:
    """Logits by the documented use of the class, on the regions that are kept."""
    features = found.features[list(kept)]
    boxes = found.boxes[list(kept)] / np.array([files.WIDTH, files.HEIGHT] * 2)
    return getattr(reference, name)(folder, boxes.astype(features.dtype), features, question)


@pytest.mark.parametrize("image_id", [1, 42])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_class_called_directly(
    name: str, image_id: int, models: dict[str, RegionModel], checkpoints: Checkpoints
) -> None:
    model = models[name]
    seen = model.regions(image_id, files.HEIGHT, files.WIDTH).expand(2, -1, -1)
    found = model.logits(seen, [model.tokenise(question) for question in QUESTIONS])
    for own, question in zip(found, QUESTIONS, strict=True):
        wanted = expected(name, checkpoints(name), question, files.detected(image_id))
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5)
    assert float(found.max() - found.min()) > 0.1
    assert model.answers == hub.ANSWERS


@pytest.mark.parametrize("name", NAMES)
def test_every_check_passes(name: str, models: dict[str, RegionModel]) -> None:
    assert [c for c in check_model(models[name]) if not c.passed] == []


def scene_of(
    model: RegionModel, batch: int, questions: tuple[str, str] = (QUESTIONS[0], QUESTIONS[1])
) -> Scene:
    seen = model.see(photo(), 42)
    asked = [model.tokenise(question) for question in questions]
    return Scene(model, seen.canvas, asked, (1, 2), (0, 1), batch=batch, regions=seen.regions)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_removed_region_is_one_that_was_never_there(
    name: str, batch: int, models: dict[str, RegionModel], checkpoints: Checkpoints
) -> None:
    scene = scene_of(models[name], batch)
    drops = RegionOcclusion(score="logit").explain(scene).arrays["regions"]
    for row, found in zip(scene.rows, drops, strict=True):
        asked = (name, checkpoints(name), QUESTIONS[row.question], files.detected(42))
        clean = expected(*asked)[row.answer]
        for r in range(files.REGIONS):
            kept = [i for i in range(files.REGIONS) if i != r]
            less = expected(*asked, kept)[row.answer]
            assert found[r] == pytest.approx(float(clean - less), abs=2e-5)
    assert np.ptp(drops) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_literal_difference(
    name: str, models: dict[str, RegionModel], checkpoints: Checkpoints
) -> None:
    scene, folder, step = scene_of(models[name], 4), checkpoints(name), 1e-5
    found = RegionGradient(reduction="sum").explain(scene).arrays["regions"]
    boxes, features = files.detected(42)
    row = scene.rows[0]
    for r in range(files.REGIONS):
        total = 0.0
        for c in range(files.CHANNELS):
            ends = []
            for sign in (1, -1):
                moved = features.astype(np.float64)
                moved[r, c] += sign * step
                given = files.Detected(boxes, moved)
                ends.append(expected(name, folder, QUESTIONS[row.question], given)[row.answer])
            total += float(ends[0] - ends[1]) / (2 * step)
        assert found[0, r] == pytest.approx(total, abs=1e-4)
    assert np.ptp(found) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_dropped_word_is_the_shorter_question(name: str, models: dict[str, RegionModel]) -> None:
    scene = scene_of(models[name], 3)
    logits = dropped_logits(scene)[1]
    shorter = models[name].logits(scene.seen, [("is", "red", "?")])[0]
    torch.testing.assert_close(logits[1], shorter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["l2_norm", "grad_x_input"])
@pytest.mark.parametrize("name", NAMES)
def test_word_gradient_is_autograds_at_the_embeddings(
    name: str, reduction: str, models: dict[str, RegionModel], checkpoints: Checkpoints
) -> None:
    questions = ("what zebra is it ?", QUESTIONS[1])
    scene = scene_of(models[name], 4, questions)
    found = WordGradient(reduction=reduction).explain(scene)
    assert found.sub_tokens is not None
    for row, own, parts in zip(scene.rows, found.importances, found.sub_tokens, strict=True):
        question = questions[row.question]
        assert sum(parts) == len(models[name].tokenizer(question)["input_ids"]) - 2
        values = reference.token_gradients(
            name, checkpoints(name), *seen_by_reference(), question, row.answer, reduction
        )
        ends = np.cumsum(parts)
        wanted = [sum(values[1 + end - n : 1 + end]) for end, n in zip(ends, parts, strict=True)]
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-6)
    assert max(max(parts) for parts in found.sub_tokens) > 1


def seen_by_reference() -> tuple[np.ndarray, np.ndarray]:
    """Boxes as fractions and features of image 42, in float64."""
    boxes, features = files.detected(42)
    sides = np.array([files.WIDTH, files.HEIGHT] * 2)
    return (boxes / sides).astype(np.float64), features.astype(np.float64)


def test_only_lxmert_knows_where_regions_lie(models: dict[str, RegionModel]) -> None:
    for name, knows in (("lxmert", True), ("visual_bert", False)):
        regions = models[name].regions(1, files.HEIGHT, files.WIDTH)
        moved = regions.clone()
        moved[:, :4] = torch.tensor([0.0, 0.0, 0.1, 0.1])
        asked = [models[name].tokenise(QUESTIONS[0])] * 2
        there, elsewhere = models[name].logits(torch.stack([regions, moved]), asked)
        assert (float((there - elsewhere).abs().max()) > 1e-3) == knows


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_partial_checkpoint_names_the_first_missing_tensors(
    name: str, copy: Callable[[str], Path]
) -> None:
    last = {"lxmert": "answer_head.logit_fc.3", "visual_bert": "cls"}[name]
    folder = reweighted(
        copy(name), lambda w: {k: v for k, v in w.items() if not k.startswith(last)}
    )
    with pytest.raises(UserError, match=rf"2 tensors .* first '{last}.bias' \[4\], "):
        build(hub.section(name, folder))


@pytest.mark.parametrize("name", NAMES)
def test_weights_as_they_were_published_are_read(
    name: str, copy: Callable[[str], Path], models: dict[str, RegionModel]
) -> None:
    folder = copy(name)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert weights_digest(build(hub.section(name, folder))) == weights_digest(models[name])
    torch.save({"a": photo}, folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"pytorch_model.bin is damaged, or holds more than tensors"
    ):
        build(hub.section(name, folder))
    first = sorted(weights)[0]
    torch.save({k: v for k, v in weights.items() if k != first}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"first '{first}'"):
        build(hub.section(name, folder))


def test_configuration_of_2020_is_read(
    copy: Callable[[str], Path], models: dict[str, RegionModel]
) -> None:
    """As unc-nlp/lxmert-vqa-uncased has it beside sizes; a list of words is all its tokeniser."""
    layers = {"cross_encoder": 2, "language": 1, "vision": 1}
    task = {"task_mask_lm": True, "task_qa": True, "visual_loss_normalizer": 6.67}
    old = {"return_dict": False, "use_cache": False, "layer_norm_eps": 1e-12}
    folder = reconfigured(copy("lxmert"), num_hidden_layers=layers, **task, **old)
    words = models["lxmert"].tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = build(hub.section("lxmert", folder))
    regions, asked = model.regions(1, files.HEIGHT, files.WIDTH)[None], [("Is", "it", "red", "?")]
    expected = models["lxmert"].logits(regions, asked)
    torch.testing.assert_close(model.logits(regions, asked), expected)


def test_options_that_do_not_fit_are_refused(
    copy: Callable[[str], Path], checkpoints: Checkpoints
) -> None:
    section = hub.section("lxmert", checkpoints("lxmert"))
    with pytest.raises(
        UserError, match=r"is a lxmert model, which sees regions; give model.features"
    ):
        build(section | {"features": []})
    for option in ({"answers": ["yes", "no"]}, {"image_size": 32}, {"mode": "open"}):
        with pytest.raises(UserError, match=rf"leave out model.{next(iter(option))}"):
            build(hub.section("visual_bert", checkpoints("visual_bert"), **option))
    with pytest.raises(UserError, match="is a vilt model, which sees pixels; leave out"):
        build(hub.section("vilt", checkpoints("vilt"), features=section["features"]))
    with pytest.raises(UserError, match=r"does not name its 4 answers; give model.answers_file"):
        build({key: value for key, value in section.items() if key != "answers_file"})
    folder = copy("lxmert")
    (folder / "label2ans.json").write_text(json.dumps(["yes", "no"]))
    with pytest.raises(UserError, match=r"label2ans.json has 2 answers, the model has 4"):
        build(hub.section("lxmert", folder))
    wider = reconfigured(copy("visual_bert"), visual_embedding_dim=9)
    with pytest.raises(UserError, match=r"'visual_bert.*': \[16, 8\] in the file, \[16, 9\] by"):
        build(hub.section("visual_bert", wider))


def test_checkpoint_that_answers_no_questions_is_refused(copy: Callable[[str], Path]) -> None:
    folder = reconfigured(copy("lxmert"), architectures=["LxmertForPreTraining"])
    with pytest.raises(UserError, match="give one of LxmertForQuestionAnswering"):
        build(hub.section("lxmert", folder))


def test_question_beyond_the_models_positions_is_a_bad_example(
    models: dict[str, RegionModel],
) -> None:
    with pytest.raises(BadExample, match=r"has 42 sub-tokens, the limit of this model is 24"):
        models["lxmert"].tokenise("dog " * 40)


def test_features_of_another_detector_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("visual_bert")
    found = files.detected(1)
    narrow = {1: files.Detected(found.boxes, found.features[:, :5].copy())}
    files.write_tsv(folder / "narrow.tsv", narrow)
    section = hub.section("visual_bert", folder, features=str(folder / "narrow.tsv"))
    with pytest.raises(UserError, match=r"has 5 features a region, .* was trained on 8"):
        build(section)
