"""Models that write their answers: what is written, its probability, and a whole run of it."""

import json
import shutil
from collections.abc import Callable
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import parse
from pipeline.run import stored_config, stored_layout
from pipeline.single import explain
from schemas.shard import Task
from tests import hub
from tests.reference import transformers as reference
from tests.test_huggingface import Checkpoints, build, photo
from workers.asked import ask
from workers.check import check_model
from workers.errors import UserError
from workers.explain import Explainer
from workers.ledger import Ledger
from workers.methods.base import Maps, Scene
from workers.methods.occlusion import Occlusion
from workers.methods.token_attention import WordRelevance
from workers.methods.words import WordGradient, WordOcclusion
from workers.models.base import VQAModel, Written
from workers.models.chooser import NOTHING, REST

QUESTIONS = [("what", "is", "it", "?"), ("is", "it", "red", "?")]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def section(name: str, folder: Path, **options: object) -> dict[str, object]:
    return {
        "kind": "huggingface",
        "path": str(folder),
        "mode": "open",
        "longest_answer": 3,
        **options,
    }


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, VQAModel]:
    return {name: build(section(name, checkpoints(name))) for name in hub.WRITING}


@torch.no_grad()
def literally_greedy(name: str, folder: Path, image: np.ndarray, question: str) -> list[int]:
    """The likeliest token, three times, the whole text through the net anew each time."""
    picture = Image.fromarray(image)
    processor = hf.AutoProcessor.from_pretrained(folder)
    said: list[int] = []
    if name == "blip":
        net = hf.BlipForQuestionAnswering.from_pretrained(folder).eval()
        given = processor(picture, question, return_tensors="pt")
        seen = net.vision_model(given["pixel_values"])[0]
        states = net.text_encoder(given["input_ids"], encoder_hidden_states=seen)[0]
        text = net.config.text_config
        while len(said) < 3 and text.sep_token_id not in said:
            ids = torch.tensor([[text.bos_token_id, *said]])
            logits = net.text_decoder(ids, encoder_hidden_states=states).logits
            said.append(int(logits[0, -1].argmax()))
        return said
    net = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
    asked = reference.prompt(processor, question)
    given = processor(text=[asked], images=[picture], return_tensors="pt")
    given.pop("labels", None)
    end = processor.tokenizer.eos_token_id
    while len(said) < 3 and end not in said:
        whole = dict(given)
        behind = torch.tensor([said], dtype=torch.long)
        whole["input_ids"] = torch.cat([given["input_ids"], behind], 1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        for kind, value in (("token_type_ids", 1), ("mm_token_type_ids", 0)):
            if kind in given:
                whole[kind] = torch.cat([given[kind], torch.full_like(behind, value)], 1)
        said.append(int(net(**whole).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("name", hub.WRITING)
def test_what_is_written_is_the_likeliest_token_after_the_other(
    name: str, models: dict[str, VQAModel], checkpoints: Checkpoints
) -> None:
    model, image = models[name], photo()
    canvas, _ = model.prepare(image)
    for question, one in zip(QUESTIONS, model.write(canvas, QUESTIONS), strict=True):  # type: ignore[operator]
        wanted = literally_greedy(name, checkpoints(name), image, " ".join(question))
        assert list(one.tokens) == wanted
        assert one.answer


@pytest.mark.parametrize("name", hub.WRITING)
def test_probability_is_that_of_exactly_this_text(
    name: str, models: dict[str, VQAModel], checkpoints: Checkpoints
) -> None:
    """Whatever else is among the answers."""
    model, image = models[name], photo()
    canvas, _ = model.prepare(image)
    question = " ".join(QUESTIONS[0])
    literal = reference.blip if name == "blip" else reference.generative
    wanted = literal(checkpoints(name), image, question, ["red", "two dogs"])
    for answers in (["red", "two dogs"], ["red"], ["two dogs", "no", "red"]):
        bound = model.among([Written(answer) for answer in answers])  # type: ignore[operator]
        logits = bound.logits(canvas[None], [QUESTIONS[0]])[0]
        assert bound.answers == (*answers, REST)
        assert float(logits[answers.index("red")]) == pytest.approx(float(wanted[0]), abs=1e-4)
        torch.testing.assert_close(logits.softmax(-1), logits.exp(), rtol=1e-4, atol=1e-30)
        assert float(logits.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_certain_answer_leaves_the_rest_a_finite_logit(models: dict[str, VQAModel]) -> None:
    bound = models["blip"].among([Written("a"), Written("b")])  # type: ignore[operator]
    logits = torch.tensor([[0.0, -50.0], [-1e-9, -40.0], [-1.0, -2.0]], requires_grad=True)
    whole = bound.with_rest(logits)
    assert whole.isfinite().all()
    assert float(whole[2, 2].detach().exp()) == pytest.approx(1 - np.exp(-1) - np.exp(-2), rel=1e-5)
    (gradient,) = torch.autograd.grad(whole.sum(), logits)
    assert gradient.isfinite().all()


def test_truth_that_was_written_is_what_was_written(models: dict[str, VQAModel]) -> None:
    model = models["blip"]
    canvas, _ = model.prepare(photo())
    written = model.write(canvas, QUESTIONS)  # type: ignore[operator]
    same = ask(model, canvas, QUESTIONS, [written[0].answer, "red"])
    assert same.truths[0] == same.predictions[0]  # type: ignore[index]
    assert same.model.answers[same.truths[1]] == "red"  # type: ignore[index]
    ids = same.model.get_buffer("ids")[same.predictions[0]]  # type: ignore[index]
    assert [int(i) for i in ids if i >= 0] == list(written[0].tokens)
    assert model.open
    assert not same.model.open


def test_names_are_as_datasets_write_answers(models: dict[str, VQAModel]) -> None:
    model = models["llava"]
    spell = model.tokenizer.encode  # type: ignore[union-attr,operator]
    end = model.tokenizer.eos_token_id  # type: ignore[union-attr]
    for text, name in ((" Two  dogs.", "two dogs"), ("YES", "yes"), ("", NOTHING)):
        ids = [*spell(text, add_special_tokens=False), end]
        assert model._written(ids).answer == name  # type: ignore[operator]


@pytest.mark.parametrize("name", ["blip", "qwen2_vl"])
def test_neighbours_do_not_change_a_map(name: str, models: dict[str, VQAModel]) -> None:
    model = models[name]
    canvas, _ = model.prepare(photo())

    def drops(questions: list, truths: list) -> dict[tuple[int, str], np.ndarray]:
        own = ask(model, canvas, questions, truths)
        scene = Scene(
            own.model, canvas, questions, range(len(questions)), own.truths,
            written=own.predictions,
        )  # fmt: skip
        maps = Occlusion(grid=2, score="log_probability").explain(scene).arrays["drop"]
        return {(r.question, r.target): m for r, m in zip(scene.rows, maps, strict=True)}

    together = drops(QUESTIONS, ["red", "no"])
    alone = drops(QUESTIONS[:1], ["red"])
    assert set(together) == {(q, t) for q in (0, 1) for t in ("predicted", "truth")}
    for key, values in alone.items():
        np.testing.assert_allclose(together[key], values, rtol=1e-3, atol=1e-5)


def test_truth_that_another_question_wrote_is_one_answer_with_it(
    models: dict[str, VQAModel],
) -> None:
    """Twice among the answers it would count twice: the probabilities are still those of the texts,
    whoever wrote them, and so are those of a text that two questions are given."""
    model = models["blip"]
    canvas, _ = model.prepare(photo())
    written = model.write(canvas, QUESTIONS)  # type: ignore[operator]
    ended = Written("a tree", tuple(model.spelt("a tree")))  # type: ignore[operator]
    model = copy(model)
    said = dict(zip(QUESTIONS, [ended, written[1]], strict=True))
    model.write = lambda _, asked: [said[q] for q in asked]  # type: ignore[operator]
    alone = ask(model, canvas, QUESTIONS[:1], ["a dog"])
    own = ask(model, canvas, [*QUESTIONS, QUESTIONS[1]], ["a dog", "A  Tree", "a dog"])
    assert own.model.answers == ("a tree", written[1].answer, "a dog", REST)
    assert (own.predictions, own.truths) == ([0, 1, 1], [2, 0, 2])
    first, together = (
        one.model.logits(canvas[None], QUESTIONS[:1]).softmax(1)[0] for one in (alone, own)
    )
    torch.testing.assert_close(together[[0, 2]], first[:2])


def test_truth_that_was_written_in_another_spelling_is_what_was_written(
    models: dict[str, VQAModel],
) -> None:
    model = models["blip"]
    canvas, _ = model.prepare(photo())
    (written,) = model.write(canvas, QUESTIONS[:1])  # type: ignore[operator]
    own = ask(model, canvas, QUESTIONS[:1], [f"{written.answer.capitalize()}."])
    assert own.truths == own.predictions == [0]


@pytest.mark.parametrize("name", hub.WRITING)
def test_every_check_passes(name: str, models: dict[str, VQAModel]) -> None:
    assert [c for c in check_model(models[name]) if not c.passed] == []


@pytest.fixture
def recipe(checkpoints: Checkpoints, tmp_path: Path) -> Callable[..., dict]:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    asked = [
        {"image_id": 1, "file": "photo.png", "question": "what is it ?", "answer": "red"},
        {"image_id": 1, "file": "photo.png", "question": "is it red ?", "answer": "two dogs"},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(asked))

    def make(**sections: object) -> dict:
        return {
            "dataset": {"name": "photos", "root": str(tmp_path), "questions": "questions.json"},
            "model": section("blip", checkpoints("blip")),
            "methods": {"occlusion": {"grid": 2}, "relevance": {}, "word_gradient": {}},
            "resources": {"executor": "local", "engine": "plain"},
            **sections,
        }

    return make


def test_run_explains_what_was_written_and_what_was_given(
    recipe: Callable[..., dict], models: dict[str, VQAModel], tmp_path: Path
) -> None:
    runs = {}
    for size in (1, 2):
        config = parse(recipe(store={"shard_size": size}), "open")
        assert stages.run(config, tmp_path / f"run{size}").failed_examples == 0
        runs[size] = Run(tmp_path / f"run{size}")
    run = runs[2]
    canvas, _ = models["blip"].prepare(photo())
    questions = [tuple(q.split()) for q in run.examples.question]
    written = models["blip"].write(canvas, questions)  # type: ignore[operator]
    assert list(run.examples.prediction) == [one.answer for one in written]
    assert list(run.examples.truth) == ["red", "two dogs"]
    assert run.examples.truth_in_vocabulary.all()
    own = run.maps.set_index(["question_id", "method", "target"]).answer
    for example in run.examples.itertuples():
        for method in ("occlusion", "relevance"):
            assert own[example.question_id, method, "predicted"] == example.prediction
            assert own[example.question_id, method, "truth"] == example.truth
    assert (run.maps.status == "ok").all()
    for one, other in zip(run.fetch(run.maps), runs[1].fetch(runs[1].maps), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
    assert 0 < run.examples.confidence.max() < 1
    for row in run.words.itertuples():
        assert row.method == "word_gradient"
        assert [len(row.tokens)] == [len(row.sub_tokens)]
        assert set(row.sub_tokens) == {1}


def test_one_given_answer_is_explained(checkpoints: Checkpoints) -> None:
    model = section("blip", checkpoints("blip"))
    result = explain(model, photo(), "is it red ?", ["occlusion", "word_occlusion"], "two dogs")
    assert result.answer == "two dogs"
    assert result.prediction not in ("two dogs", REST)
    assert np.ptp(result.maps["occlusion"]["drop"]) > 0


def test_what_does_not_go_together_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(UserError, match="an open model writes its answers; leave out answers"):
        build(section("blip", checkpoints("blip"), answers=["yes", "no"]))
    with pytest.raises(UserError, match=r"has its own answers .*leave out answers and mode"):
        build(section("vilt", checkpoints("vilt")))


def test_model_of_a_recipe_file_explains_one_picture(
    recipe: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe()))
    monkeypatch.chdir(tmp_path)
    result = explain("recipe.yaml", photo(), "is it red ?", ["word_occlusion"])
    assert result.prediction != REST
    assert len(result.words["word_occlusion"]) == 4


def test_words_of_several_sub_tokens_say_of_how_many(models: dict[str, VQAModel]) -> None:
    model = models["blip"]
    canvas, _ = model.prepare(photo())
    question = model.tokenise("is it xylophonic ?")
    own = ask(model, canvas, [question], [None])
    scene = Scene(own.model, canvas, [question], [1], [None], written=own.predictions)
    for method in (WordGradient(), WordRelevance()):
        assert method.explain(scene).sub_tokens == [[1, 1, 10, 1]]


def test_answers_likelier_than_the_written_one_from_the_start_are_no_change(
    models: dict[str, VQAModel],
) -> None:
    """A model that is unsure: all other texts together outweigh what it wrote, everywhere."""
    canvas, _ = models["blip"].prepare(photo())
    own = ask(models["blip"], canvas, QUESTIONS, [None, "a tree"])
    scene = Scene(own.model, canvas, QUESTIONS, [1, 2], own.truths, written=own.predictions)
    clean = scene.output.logits
    assert clean.argmax(1).tolist() == [len(own.model.answers) - 1] * 2
    tops = Occlusion(grid=2).explain(scene).arrays["top_answer"]
    words = WordOcclusion().explain(scene).top_answers
    assert words is not None
    for q, written in enumerate(own.predictions or []):
        assert scene.top_answers(q, clean[q], clean[q : q + 1]).tolist() == [written]
        beaten = clean[q].clone()
        rivals = [a for a, logit in enumerate(clean[q]) if logit < clean[q, written]]
        beaten[rivals] = clean[q, written] + 1
        expected = rivals[:1] or [written]
        assert scene.top_answers(q, clean[q], beaten[None]).tolist() == expected
        for found in (tops[q].ravel(), words[q]):
            assert set(found.tolist()) <= {written, *rivals}


class AloneOnly(Occlusion):
    """Fails over more than one question."""

    def explain(self, scene: Scene) -> Maps:
        if len(scene.questions) > 1:
            raise MemoryError("two questions are too much")
        return super().explain(scene)


def refilled(explainer: Explainer, out: Path, retry: tuple[int, ...] | None = None) -> Ledger:
    """The run's only shard explained again, nothing of it written."""
    (shard,) = stored_layout(explainer.config, Run(out).store).shards
    task = Task(shard=shard, labels=tuple(sorted(explainer.methods)), retry=retry)
    ledger = Ledger(task, explainer.model, explainer.methods, explainer.targets)
    explainer.fill(ledger)
    return ledger


@pytest.fixture
def explained(
    recipe: Callable[..., dict], checkpoints: Checkpoints, tmp_path: Path
) -> tuple[Explainer, Path, Ledger]:
    """A run of two questions, answered differently and surely, about one photo; and the same once
    more, in memory."""
    folder, out = shutil.copytree(checkpoints("blip"), tmp_path / "sure"), tmp_path / "run"
    weights = load_file(folder / "model.safetensors")
    for name in ("weight", "bias"):
        weights[f"text_decoder.cls.predictions.transform.LayerNorm.{name}"] *= 1000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sections = recipe(model=section("blip", folder), methods={"occlusion": {"grid": 2}})
    asked = tmp_path / "questions.json"
    asked.write_text(asked.read_text().replace("is it red ?", "dog"))
    stages.run(parse(sections, "open"), out)
    explainer = Explainer(stored_config(out), str(out))
    return explainer, out, refilled(explainer, out)


def test_numbers_of_answers_do_not_depend_on_what_is_explained_together(
    explained: tuple[Explainer, Path, Ledger],
) -> None:
    explainer, out, whole = explained
    assert [e.prediction_index for e in whole.examples.values()] == [0, 1]
    changed = whole.arrays["occlusion", "top_answer"][:2] != np.arange(2)[:, None, None]
    assert all(0 < of_question.mean() < 1 for of_question in changed)
    for question in list(whole.examples):
        retried = refilled(explainer, out, (question,))
        assert retried.examples == whole.examples
        for key, values in whole.arrays.items():
            np.testing.assert_array_equal(retried.arrays[key], values, str(key))
    explainer.methods = {**explainer.methods, "occlusion": AloneOnly(grid=2)}
    alone = refilled(explainer, out)
    assert not alone.failures
    for key, values in whole.arrays.items():
        np.testing.assert_allclose(alone.arrays[key], values, rtol=1e-3, atol=1e-6)


def test_question_that_cannot_be_answered_takes_no_other_down(
    explained: tuple[Explainer, Path, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer, out, whole = explained
    generate = explainer.model.generate  # type: ignore[operator]

    def fails_at_dog(canvas: torch.Tensor, question: tuple[str, ...]) -> list[int]:
        if "dog" in question:
            raise RuntimeError("no room for a dog")
        return generate(canvas, question)

    monkeypatch.setattr(explainer.model, "generate", fails_at_dog)
    first, second = whole.examples
    ledger = refilled(explainer, out)
    (failure,) = ledger.failures
    assert (failure.question_id, failure.stage) == (second, "clean pass")
    assert failure.message == "no room for a dog"
    assert ledger.examples[second].status == "failed"
    assert ledger.examples[first].prediction == whole.examples[first].prediction
    assert all(m.status != "failed" for m in ledger.maps if m.question_id == first)
