"""Checks of models that write their answers, and new weights of models of Hugging Face."""

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import parse
from pipeline.studies.base import Evidence
from pipeline.studies.faithfulness import faithfulness
from pipeline.studies.summary import Bootstrap
from tests import hub, nets, region_files
from tests.reference import transformers as reference
from tests.test_checks import given, planted, scored, subject
from tests.test_huggingface import Checkpoints, build, photo
from tests.test_open_models import section
from workers.asked import ask
from workers.checks.curves import DeletionInsertion
from workers.checks.randomisation import NO_OTHER, Sanity
from workers.checks.stages import cascade
from workers.checks.stages import stages as stages_of
from workers.methods.base import Scene
from workers.methods.gradients import Saliency
from workers.models.base import OpenModel, VQAModel, Written
from workers.models.digest import weights_digest

COLOUR = (124.0, 117.0, 104.0)
QUESTIONS = [("what", "is", "it", "?"), ("is", "it", "red", "?")]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def recipe(checkpoints: Checkpoints, tmp_path: Path) -> Callable[..., dict]:
    """BLIP on a photo of the size that it takes, so that paint stays what it is."""
    Image.fromarray(small()).save(tmp_path / "photo.png")
    asked = [
        {"image_id": 1, "file": "photo.png", "question": " ".join(q), "answer": answer}
        for q, answer in zip(QUESTIONS, ("red", "two dogs"), strict=True)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(asked))

    def make(name: str = "blip", **sections: object) -> dict:
        return {
            "dataset": {"name": "photos", "root": str(tmp_path), "questions": "questions.json"},
            "model": section(name, checkpoints(name)),
            "methods": {"occlusion": {"grid": 2, "score": "log_probability"}, "saliency": {}},
            "resources": {"executor": "local", "engine": "plain"},
            **sections,
        }

    return make


def small() -> np.ndarray:
    return photo(36, 36)[2:34, 2:34]


def test_curve_of_a_given_text_is_its_literal_log_probability(
    recipe: Callable[..., dict], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Painted pictures one by one, through the processor, the text token by token."""
    check = {"grid": 2, "steps": 4, "draws": 1, "delete_with": COLOUR, "insert_into": COLOUR}
    config = parse(recipe(metrics={"deletion_insertion": check}), "open")
    assert stages.run(config, tmp_path / "run").failed_examples == 0
    assert stages.evaluate(tmp_path / "run").failed_examples == 0
    run = Run(tmp_path / "run")
    rows = run.metrics[run.metrics.metric == "deletion_auc"].set_index(["method", "target"])
    example = run.examples.iloc[0]
    own = run.maps[(run.maps.question_id == example.question_id) & (run.maps.target == "truth")]
    (drops,) = run.fetch(own[own.method == "occlusion"])
    painted, wanted = small(), []
    for cell in [None, *np.argsort(-drops.ravel(), kind="stable")]:
        if cell is not None:
            y, x = divmod(int(cell), 2)
            painted = painted.copy()
            painted[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = np.array(COLOUR)
        logits = reference.blip(checkpoints("blip"), painted, example.question, [example.truth])
        wanted.append(float(logits[0]))
    found = rows.loc[("occlusion", "truth")]
    found = found[found.question_id == example.question_id].iloc[0]
    np.testing.assert_allclose(found.points, wanted, atol=1e-4)
    area = sum(wanted[1:-1]) / 4 + (wanted[0] + wanted[-1]) / 8
    assert found.value == pytest.approx(area, abs=1e-4)
    assert "of a written text log_probability" in found.conventions


def test_every_check_of_an_open_model_is_computed_and_reported(
    recipe: Callable[..., dict], tmp_path: Path
) -> None:
    metrics = {
        "deletion_insertion": {"grid": 2, "steps": 2, "draws": 1},
        "max_sensitivity": {"draws": 1, "max_passes": 4},
        "sanity": {"sample": 1.0},
    }
    config = parse(recipe("llava", metrics=metrics), "open")
    stages.run(config, tmp_path / "run")
    assert stages.evaluate(tmp_path / "run").failed_examples == 0
    run = Run(tmp_path / "run")
    rows = run.metrics
    assert set(rows.status) <= {"ok", "degenerate_model"}
    kinds = {name.partition("_")[0] for name in rows.metric}
    assert kinds == {"deletion", "insertion", "max", "sanity"}
    for (_, method), own in rows.groupby(["question_id", "method"]):
        assert set(own.target) == {"predicted", "truth"}, method
    values = rows[rows.metric == "deletion_auc"].value.dropna()
    assert (values < 0).all()
    assert len(values)
    study = faithfulness(Evidence(run, Bootstrap(resamples=50)))
    (picture,) = [p for p in study.parts if p.name == "deletion_curves"]
    assert picture.figure.axes[0].get_ylabel() == "log-probability of the answer"  # type: ignore[union-attr]


def test_shards_change_no_curve(recipe: Callable[..., dict], tmp_path: Path) -> None:
    """Other questions of the image bring other texts, which are none of this one's business."""
    found = {}
    for size in (1, 2):
        metrics = {"deletion_insertion": {"grid": 2, "steps": 2, "draws": 1}}
        config = parse(recipe(metrics=metrics, store={"shard_size": size}), "open")
        stages.run(config, tmp_path / f"run{size}")
        stages.evaluate(tmp_path / f"run{size}")
        rows = Run(tmp_path / f"run{size}").metrics
        found[size] = rows.set_index(["question_id", "method", "target", "metric"]).value
    both = found[1].to_frame("a").join(found[2].rename("b"))
    assert len(both) == 2 * 4 * 2 * 6  # random and center are of every run
    np.testing.assert_allclose(both.a, both.b, rtol=1e-4, atol=1e-5)


class Planted(OpenModel):
    """Writes one text, whose log-odds are a black box's first logit."""

    def __init__(self, box: VQAModel) -> None:
        super().__init__()
        self.box, self.open, self.geometry = box, True, box.geometry

    prepare = nets.BlackBox.prepare
    tokenise = nets.BlackBox.tokenise
    known = nets.BlackBox.known

    def write(self, canvas: Tensor, questions: Sequence[tuple[str, ...]]) -> list[Written]:
        return [Written("red", (1, 0))] * len(questions)

    def spelt(self, answer: str) -> list[int]:
        return [*map(ord, answer), 0]

    def among(self, answers: Sequence[Written]) -> VQAModel:
        other = Planted(self.box)
        other.answers, other.open = ("red", "(another answer)"), False
        return other

    def logits(self, canvas: Tensor, questions: Sequence[tuple[str, ...]]) -> Tensor:
        odds = self.box.logits(canvas, questions)[:, :1]
        return nn.functional.logsigmoid(torch.cat([odds, -odds], 1))


def test_right_order_has_the_smallest_area_under_log_probabilities() -> None:
    """The curves of all orders of four cells; a text's probability falls with every cell's share
    of the odds."""
    black, share = planted()
    model = Planted(black.model)
    own = ask(model, black.canvas, black.questions, [None])
    scene = Scene(own.model, black.canvas, black.questions, (1,), own.truths, written=[0])
    check = DeletionInsertion(grid=2, steps=4, insert_into="gray")
    maps = [given(scene, np.argsort(order).reshape(2, 2)) for order in permutations(range(4))]
    areas = scored(check, scene, maps)
    best = scored(check, scene, [given(scene, share)])
    assert np.ptp(areas["deletion_auc"].values) > 0.01
    assert best["deletion_auc"].values[0] == pytest.approx(areas["deletion_auc"].values.min())
    assert best["insertion_auc"].values[0] == pytest.approx(areas["insertion_auc"].values.max())
    assert best["deletion_gain"].values[0] > 0
    asked = check.model_copy(update={"curve": "probability"})
    sure = scored(asked, scene, [given(scene, share)])["deletion_auc"].points
    logs = best["deletion_auc"].points
    assert sure is not None
    assert logs is not None
    np.testing.assert_allclose(np.log(sure[0]), logs[0], rtol=1e-9)


# --- weights drawn anew ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, VQAModel]:
    names = [*hub.FAMILIES, *hub.SEEING_REGIONS]
    made = {name: build(hub.section(name, checkpoints(name))) for name in names}
    return made | {"updn": build(region_files.section(checkpoints("updn")))}


NAMES = (*hub.FAMILIES, *hub.SEEING_REGIONS, "updn")


@pytest.mark.parametrize("name", NAMES)
def test_stages_cover_every_weight_once_and_draw_it_anew(
    name: str, models: dict[str, VQAModel]
) -> None:
    model = models[name]
    before = weights_digest(model)
    paths = [path for stage in stages_of(model) for path in stage.modules]
    own = [id(p) for path in paths for p in model.get_submodule(path).parameters()]
    tied = name in ("blip", "paligemma")  # the embeddings of words read the answers too
    assert set(own) == {id(p) for p in model.parameters()}
    assert len(own) == len(set(own)) + tied
    *_, (_, last) = cascade(model, seed=0, independent=False)
    for (path, weight), drawn in zip(model.named_parameters(), last.parameters(), strict=True):
        if weight.ndim > 1:
            assert not torch.equal(weight, drawn), path
    assert weights_digest(model) == before


def test_stages_of_a_language_model_go_from_the_answer_to_the_pixels(
    models: dict[str, VQAModel],
) -> None:
    assert [stage.name.removeprefix("net.") for stage in stages_of(models["idefics3"])] == [
        "lm_head",
        "model.text_model.layers.1",
        "model.text_model.layers.0",
        "model.text_model.embed_tokens",
        "model.connector.modality_projection.proj",
        "model.vision_model.encoder.layers.1",
        "model.vision_model.encoder.layers.0",
        "model.vision_model.embeddings",
    ]


def test_weights_that_no_rule_draws_keep_their_size(models: dict[str, VQAModel]) -> None:
    """ViLT's positions, which transformers leaves at zero."""
    *_, (_, last) = cascade(models["vilt"], 0, False)
    own, drawn = (m.net.vilt.embeddings.position_embeddings for m in (models["vilt"], last))  # type: ignore[union-attr]
    assert not torch.equal(own, drawn)
    assert float(drawn.std()) == pytest.approx(float(own.std()), rel=0.3)


def opened(
    checkpoints: Checkpoints, questions: Sequence[tuple[str, ...]], truths: Sequence[str | None]
) -> tuple[VQAModel, Scene]:
    model = build(section("blip", checkpoints("blip")))
    canvas, _ = model.prepare(small())
    own = ask(model, canvas, questions, truths)
    ids = range(1, len(questions) + 1)
    return model, Scene(
        own.model, canvas, questions, tuple(ids), own.truths, written=own.predictions
    )


def test_randomised_model_is_asked_about_the_same_text(checkpoints: Checkpoints) -> None:
    model, scene = opened(checkpoints, QUESTIONS, ["red", None])
    check, method = Sanity(), Saliency(reduction="sum")
    maps = [given(scene, values, i) for i, values in enumerate(method.explain(scene).arrays["map"])]
    maps = [m.__class__("saliency", method, m.row, 1, m.values) for m in maps]
    found = check.score(subject(model), scene, maps)
    (name, last) = [(s.name, m) for s, m in cascade(model, 0, False)][-1]
    bound = last.bound_like(scene.model)
    assert bound.answers == scene.model.answers
    assert torch.equal(bound.get_buffer("ids"), scene.model.get_buffer("ids"))
    other = Scene(bound, scene.canvas, QUESTIONS, (1, 2), scene.truths, written=scene.written)
    again = method.explain(other).arrays["map"]
    key = f"sanity_cascade_signed_{len(stages_of(model)):02d}_{name}"
    for value, a, b in zip(found[key].values, maps, again, strict=True):
        ranks = [np.argsort(np.argsort(m.ravel())) for m in (a.values, b)]
        assert value == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=0.01)
    assert abs(found[key].values).mean() < 0.5
    assert set(found["sanity_target_signed"].statuses) == {"ok"}


def test_image_with_one_text_has_no_other_to_explain(checkpoints: Checkpoints) -> None:
    """The rest, whose map is the text's with the sign turned, is none."""
    model, scene = opened(checkpoints, QUESTIONS[:1], [None])
    assert len(scene.model.answers) == 2
    method = Saliency(reduction="sum")
    (values,) = method.explain(scene).arrays["map"]
    found = Sanity().score(subject(model), scene, [given(scene, values)])
    assert found["sanity_target"].statuses == [NO_OTHER]
    assert found["sanity_noise"].statuses == ["ok"]
