"""The trainer learns, and the shipped weights do what docs/demo_model.md says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.models import deeper_lstm, kazemi
from workers.models.kazemi import Kazemi
from workers.models.specs import WEIGHTS
from workers.train import (
    CELL,
    Corpus,
    Item,
    Judged,
    Training,
    accuracy,
    answer_shares,
    as_vectors,
    cell_names,
    crossings,
    easy_vqa_corpus,
    judge,
    logits,
    pretrain_image,
    pretrain_trunk,
    seen_by,
    shapes_corpus,
    small_lstm,
    small_model,
    things_shown,
    train,
)
from workers.world.sample import sample
from workers.world.scene import HUES, SHAPES

ATTRIBUTES = ("color", "shape", "exists")
FRESH = 987_654
"""A seed that no training and no recipe uses."""


@pytest.fixture(scope="module")
def few() -> Corpus:
    return shapes_corpus(3, "train2014", 24)


@pytest.fixture(scope="module")
def demo() -> Kazemi:
    return kazemi.load(WEIGHTS / "demo.safetensors").eval()


@pytest.fixture(scope="module")
def held_out() -> Corpus:
    return shapes_corpus(FRESH, "val2014", 100)


# --- learning -------------------------------------------------------------------------------


def test_training_from_scratch_lowers_the_loss(few):
    losses = train(small_model(few, 0), few, Training(epochs=10, batch=8))
    assert len(losses) == 30
    assert np.mean(losses[-4:]) < 0.65 * np.mean(losses[:4])


def test_pretraining_lowers_the_loss_and_moves_the_trunk_only(few):
    model = small_model(few, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = pretrain_trunk(model, few, Training(epochs=6, batch=8))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    moved = {
        name.split(".")[0]
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"trunk_net"}


def test_training_same_seed_gives_the_same_weights(few):
    how = Training(epochs=1, batch=8)
    models = [small_model(few, 1) for _ in range(2)]
    for model in models:
        train(model, few, how)
    first, second = (model.state_dict() for model in models)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)


def test_blind_training_does_not_touch_the_trunk(few):
    model = small_model(few, 0)
    before = [p.clone() for p in model.trunk_net.parameters()]
    losses = train(model, few, Training(epochs=2, batch=8, weight_decay=0), blind=True)
    assert losses[-1] < losses[0]
    assert all(map(torch.equal, before, model.trunk_net.parameters()))


def test_blind_answers_depend_on_the_question_alone(few):
    model = small_model(few, 0).eval()
    other = replace(few, images=few.images.flip(0))
    with torch.inference_mode():
        assert torch.equal(logits(model, few, [0, 1], True), logits(model, other, [0, 1], True))
        assert not torch.allclose(
            logits(model, few, [0, 1], False), logits(model, other, [0, 1], False)
        )


def test_answer_shares_are_the_annotators_and_leave_out_unknown_answers(few):
    model = small_model(few, 0)
    item = Item("what color is the star?", "color", ("red",) * 6 + ("teal",) * 3 + ("?",), "red")
    shares = answer_shares(model, replace(few, items=[[item]]), [0])[0]
    named = {a: s for a, s in zip(model.answers, shares.tolist(), strict=True) if s}
    assert named == pytest.approx({"red": 0.6, "teal": 0.3})


def test_cell_names_tell_the_thing_in_the_middle_of_its_cells():
    scene = sample(0, "val2014", 1, "standard", 1).scene
    hues, shapes = cell_names(scene)
    for thing, mask in zip(scene.things, scene.masks, strict=True):
        y, x = int(thing.y) // CELL, int(thing.x) // CELL
        if mask[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL].all():
            assert hues[y, x] == 1 + HUES.index(thing.color)
            assert shapes[y, x] == 1 + SHAPES.index(thing.shape)
    assert (hues == 0).any()
    assert ((hues == 0) == (shapes == 0)).all()


def test_things_shown_are_the_scene_s_in_whole_cells():
    corpus = shapes_corpus(5, "val2014", 6)
    for number, shown in enumerate(things_shown(corpus).reshape(-1, len(HUES), len(SHAPES))):
        things = sample(5, "val2014", number, "standard", 6).scene.things
        named = {(HUES[hue], SHAPES[shape]) for hue, shape in shown.nonzero().tolist()}
        assert named
        assert named <= {(thing.color, thing.shape) for thing in things}


@pytest.mark.parametrize("apart", [False, True])
def test_pretraining_the_image_network_leaves_the_first_model_s_trunk(demo, apart):
    corpus = seen_by(demo, 3, "train2014", 12, "standard")
    model = small_lstm(demo, corpus, 0)
    how = Training(epochs=30, batch=6, learning_rate=5e-3)
    losses = pretrain_image(model, corpus, how, apart)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    for name, tensor in demo.trunk_net.state_dict().items():
        assert torch.equal(model.trunk_net.state_dict()[name], tensor), name


def test_lstm_is_trained_on_vectors_as_on_images(few, demo):
    """The image network stays as it was pre-trained, and the head hears the same of both."""
    model = small_lstm(demo, few, 0).eval()
    before = {name: tensor.clone() for name, tensor in model.trunk_net.state_dict().items()}
    vectors = as_vectors(model, few)
    found, wanted = (logits(model, c, [0, 3], blind=False) for c in (vectors, few))
    torch.testing.assert_close(found, wanted)
    losses = train(model, vectors, Training(epochs=20, batch=12, learning_rate=5e-3))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    after = model.trunk_net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_crossings_count_right_and_wrong_by_confidence():
    judged = [
        Judged("color", True, 0.9),
        Judged("color", True, 0.6),
        Judged("color", False, 0.8),
        Judged("count", False, 0.49),
    ]
    assert crossings(judged) == {
        "right, above 0.75": 1,
        "wrong, above 0.75": 1,
        "wrong, below 0.5": 1,
    }
    assert accuracy(judged) == pytest.approx({"color": 200 / 3, "count": 0, "all": 50})


# --- the shipped weights --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "demo_lstm", "easy_vqa"])
def test_shipped_weights_are_small(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 4_000_000


def test_demo_model_answers_attribute_and_existence_questions_on_fresh_scenes(demo, held_out):
    judged = [item for item in judge(demo, held_out) if item.kind in ATTRIBUTES]
    assert accuracy(judged)["all"] >= 95


def test_demo_model_looks_at_the_image(demo, held_out):
    shuffled = replace(held_out, images=held_out.images.roll(1, 0))
    right, wrong = (accuracy(judge(demo, corpus))["all"] for corpus in (held_out, shuffled))
    assert right > wrong + 40


def test_demo_lstm_answers_attribute_and_existence_questions_on_fresh_scenes(held_out):
    model = deeper_lstm.load(WEIGHTS / "demo_lstm.safetensors").eval()
    judged = [item for item in judge(model, held_out) if item.kind in ATTRIBUTES]
    assert accuracy(judged)["all"] >= 95


def test_demo_examples_have_enough_of_every_outcome(demo):
    """Right and wrong, sure and unsure: the studies of P1 compare all four."""
    examples = shapes_corpus(1, "val2014", 200, "hard", questions=3)
    counts = crossings(judge(demo, examples))
    assert len(counts) == 4
    assert min(counts.values()) >= 30


def test_easy_vqa_model_answers_test_images(shared_data: Path):
    corpus = easy_vqa_corpus(shared_data / "easy-vqa" / "easy_vqa" / "data", "test")
    model = kazemi.load(WEIGHTS / "easy_vqa.safetensors").eval()
    assert accuracy(judge(model, corpus.first(300)))["all"] >= 97
