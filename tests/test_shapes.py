"""The embedded world: deterministic, official in form, exact in its masks, never too simple."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from workers.datasets.shapes import Shapes
from workers.datasets.vqa_cp import VQACP
from workers.errors import UserError
from workers.world.annotators import attention_map, label, views
from workers.world.files import WorldConfig, write_changing_priors, write_world
from workers.world.questions import KINDS, Count, Exists, Look, Side, ask, plain_view
from workers.world.sample import Sample, sample
from workers.world.scene import COLORS, DIFFICULTIES, Thing

SCENES = 40


@pytest.fixture(scope="module", params=["standard", "hard"])
def samples(request: pytest.FixtureRequest) -> list[Sample]:
    return [sample(7, "val2014", number, request.param, 6) for number in range(SCENES)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    for split in ("train2014", "val2014"):
        write_world(root, WorldConfig(split=split, scenes=SCENES, seed=5))
    write_changing_priors(root)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def things_of(*names: str) -> list[Thing]:
    """Things in a row from left to right, by "color shape"."""
    row = []
    for number, name in enumerate(names):
        color, shape = name.split()
        row.append(Thing(color, shape, y=48, x=15 + 20 * number, radius=9))
    return row


# --- scenes ---------------------------------------------------------------------------------


def test_scene_always_has_three_to_six_visible_things(samples):
    counts = {len(s.scene.things) for s in samples}
    assert counts in ({3, 4, 5, 6}, {4, 5, 6})
    assert all(mask.sum() >= 12 for s in samples for mask in s.scene.masks)


def test_scene_masks_are_disjoint_and_keep_the_promised_share(samples):
    for drawn in samples:
        assert drawn.scene.masks.sum(0).max() == 1
    shares = [thing.visible for s in samples for thing in s.scene.things]
    assert min(shares) >= 0.3
    assert min(shares) < 1 == max(shares)


def test_scene_pixels_show_their_thing_and_the_ground_elsewhere(samples):
    drawn = samples[0].scene
    for thing, mask in zip(drawn.things, drawn.masks, strict=True):
        ground = drawn.image[~drawn.masks.any(0)].mean(0)
        wanted = ground + thing.opacity * (thing.rgb - ground)
        assert np.abs(drawn.image[mask].mean(0) - wanted).max() < 40


def test_scene_of_the_hard_world_is_harder():
    def handicaps(difficulty: str) -> np.ndarray:
        things = [
            thing
            for number in range(SCENES)
            for thing in sample(1, "val2014", number, difficulty, 1).scene.things
        ]
        return np.mean(
            [[t.opacity < 1, t.blend > 0, t.radius < 8, t.visible < 1] for t in things], axis=0
        )

    assert (handicaps("hard") > 1.5 * handicaps("standard")).all()


# --- questions and their evidence -----------------------------------------------------------


def test_question_answer_does_not_depend_on_things_outside_the_evidence(samples):
    for drawn in samples:
        things = drawn.scene.things
        for asked in drawn.asked:
            relevant = asked.question.evidence(things)
            others_missed = [Look(t, noticed=i in relevant) for i, t in enumerate(things)]
            assert asked.question.answer(others_missed) == asked.exact


def test_question_answer_depends_on_the_evidence(samples):
    """Changing colour, shape and size of what matters changes most answers, of the rest none."""
    changed = Counter()
    for drawn in samples:
        things = drawn.scene.things
        for asked in drawn.asked:
            relevant = asked.question.evidence(things)
            other = [
                Look(
                    replace(t, color="none", shape="none", radius=(i + 1) * 1e-3)
                    if i in relevant
                    else t
                )
                for i, t in enumerate(things)
            ]
            changed[asked.question.answer(other) != asked.exact] += 1
    assert changed[True] > 0.5 * changed.total()


def test_question_mask_is_the_visible_pixels_of_the_evidence(samples):
    for drawn in samples:
        for asked in drawn.asked:
            relevant = asked.question.evidence(drawn.scene.things)
            wanted = np.zeros_like(asked.mask)
            for index in relevant:
                wanted |= drawn.scene.masks[index]
            assert np.array_equal(asked.mask, wanted)
            assert wanted.any()


def test_question_evidence_of_an_absent_thing_is_what_resembles_it():
    things = things_of("red circle", "blue square", "green star")
    assert Exists("red", "square").evidence(things) == {0, 1}
    assert Exists("pink", "cross").evidence(things) == {0, 1, 2}
    assert Exists("red", "circle").evidence(things) == {0}


def test_question_evidence_of_a_count_of_none_is_everything():
    things = things_of("red circle", "blue square", "red star")
    assert Count(color="red").evidence(things) == {0, 2}
    assert Count(shape="cross").evidence(things) == {0, 1, 2}


@pytest.mark.parametrize(("side", "answer"), [("left", "circle"), ("right", "star")])
def test_side_question_names_the_nearest_thing_on_that_side(side, answer):
    things = things_of("pink cross", "red circle", "blue square", "green star", "red cross")
    question = Side(2, side)
    assert question.text(things) == f"What is {side} of the blue square?"
    assert question.answer(plain_view(things)) == answer


def test_questions_read_as_english():
    things = things_of("orange circle", "blue cross", "green star")
    rng = np.random.default_rng(0)
    asked = {q.text(things) for q in ask(rng, things, dict.fromkeys(KINDS, 1.0), 200)}
    assert {
        "What color is the cross?",
        "What shape is the green thing?",
        "Is there an orange circle?",
        "Is there a blue circle?",
        "How many crosses are there?",
        "How many green things are there?",
        "How many things are there?",
        "Is the orange circle bigger than the blue cross?",
    } <= asked


def test_ask_balances_the_answers_of_a_kind():
    answers = Counter(
        asked.exact
        for number in range(150)
        for asked in sample(3, "val2014", number, "standard", 3).asked
        if asked.question.kind == "exists"
    )
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_sample_asks_different_questions_and_the_number_wanted(samples):
    for drawn in samples:
        assert len({asked.text for asked in drawn.asked}) == len(drawn.asked) == 6


# --- annotators -----------------------------------------------------------------------------


def test_annotators_disagree_where_things_are_hard_to_see_only():
    plain = things_of("red circle", "blue square", "green star")
    faint = [replace(t, opacity=0.2, alike="orange", blend=0.45) for t in plain]
    rng = np.random.default_rng(0)

    def colors(things: list[Thing]) -> Counter:
        return Counter(
            view[0].thing.color if view[0].noticed else "missed"
            for _ in range(50)
            for view in views(rng, things)
        )

    assert colors(plain)["red"] >= 498
    assert colors(faint)["orange"] > 50
    assert colors(faint)["missed"] > 50


def test_annotators_label_is_the_most_common_answer_and_mostly_exact(samples):
    exact = 0
    for drawn in samples:
        for asked in drawn.asked:
            assert len(asked.given) == 10
            assert asked.given.count(asked.label) == max(Counter(asked.given).values())
            exact += asked.label == asked.exact
    assert exact > 0.95 * 6 * SCENES


def test_annotators_tie_goes_to_the_exact_answer():
    things = things_of("red circle", "blue square", "green star")
    assert label(Exists("red", "circle"), things, ["no"] * 5 + ["yes"] * 5) == "yes"


def test_annotators_attention_map_lies_on_the_mask(samples):
    rng = np.random.default_rng(0)
    for drawn in samples[:20]:
        mask = drawn.asked[0].mask
        seen = attention_map(rng, mask)
        assert seen.dtype == np.uint8
        assert seen.max() == 255
        assert seen[mask].mean() > 3 * seen[~mask].mean()


# --- official files -------------------------------------------------------------------------


def test_world_same_configuration_gives_the_same_bytes(root, tmp_path):
    for split in ("train2014", "val2014"):
        write_world(tmp_path, WorldConfig(split=split, scenes=SCENES, seed=5))
    write_changing_priors(tmp_path)
    assert digests(tmp_path) == digests(root)


def test_world_another_seed_or_split_gives_other_scenes():
    images = {
        sample(seed, split, 0, "standard", 3).scene.image.tobytes()
        for seed in (0, 1)
        for split in ("train2014", "val2014")
    }
    assert len(images) == 4


def test_world_a_scene_does_not_depend_on_how_many_there_are(root, tmp_path):
    write_world(tmp_path, WorldConfig(scenes=2, seed=5))
    few = digests(tmp_path / "val2014")
    assert few == {name: digests(root / "val2014")[name] for name in few}


def test_world_files_have_every_official_field(root):
    questions = json.loads((root / "OpenEnded_mscoco_val2014_questions.json").read_text())
    annotations = json.loads((root / "mscoco_val2014_annotations.json").read_text())
    envelope = {"info", "data_type", "data_subtype", "license"}
    assert questions.keys() == envelope | {"task_type", "questions"}
    assert annotations.keys() == envelope | {"annotations"}
    assert questions["data_subtype"] == annotations["data_subtype"] == "val2014"
    assert questions["questions"][0].keys() == {"question_id", "image_id", "question"}
    for item in annotations["annotations"]:
        assert item.keys() == {
            "question_id",
            "image_id",
            "question_type",
            "answer_type",
            "multiple_choice_answer",
            "answers",
        }
        assert item["question_id"] // 10 == item["image_id"]
        assert item["answer_type"] in ("yes/no", "number", "other")
        assert [answer["answer_id"] for answer in item["answers"]] == list(range(1, 11))
        assert {a["answer_confidence"] for a in item["answers"]} <= {"yes", "maybe", "no"}


def test_world_is_read_by_the_official_reader_with_three_maps_an_example(root):
    dataset = Shapes(root=root, scenes=SCENES, seed=5)
    examples = list(dataset.examples())
    assert len(examples) == 3 * SCENES
    assert {e.question_type for e in examples} == {k.question_type for k in KINDS.values()}
    for number, example in enumerate(islice(examples, 30)):
        drawn = sample(5, "val2014", number // 3, "standard", 3)
        asked = drawn.asked[number % 3]
        assert (example.question, example.truth) == (asked.text, asked.label)
        assert example.answers == tuple(asked.given)
        assert np.array_equal(np.asarray(Image.open(example.image)), drawn.scene.image)
        maps = dataset.human_maps(example)
        assert len(maps) == 3
        assert all(m[asked.mask].mean() > 3 * m[~asked.mask].mean() for m in maps)


def test_world_is_written_once(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    list(Shapes(root=root, scenes=SCENES, seed=5).examples())
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before


def test_world_another_configuration_in_the_same_root_is_refused(root):
    with pytest.raises(UserError) as refusal:
        list(Shapes(root=root, scenes=7, seed=6).examples())
    assert str(refusal.value) == (
        f"{root}: holds a world with seed 5, not seed 6; choose another root or delete the folder"
    )


def test_world_of_more_scenes_begins_with_those_of_a_smaller_one(root, tmp_path):
    """Grown, or drawn at once, the files are the same; fewer are asked of a larger one."""
    few = list(Shapes(root=tmp_path, scenes=7, seed=5).examples())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(list(Shapes(root=tmp_path, scenes=SCENES, seed=5).examples())) == 3 * SCENES
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path) == contents(root)
    assert list(Shapes(root=tmp_path, scenes=7, seed=5).examples()) == few


def contents(root):
    files = {path.relative_to(root): path for path in root.rglob("*.[pj]*")}
    return {name: path.read_bytes() for name, path in files.items() if "val" in str(name)}


@pytest.mark.parametrize("lost", ["annotations", "questions", "val2014.json"])
def test_world_interrupted_while_it_grows_goes_on(root, tmp_path, monkeypatch, lost):
    """At either of its two files, or at the marker; whoever comes next, for however many."""
    write_world(tmp_path, WorldConfig(scenes=7, seed=5))
    replace = Path.replace

    def dies(path, target):
        if str(target).endswith((f"{lost}.json", lost)):
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path, WorldConfig(scenes=SCENES, seed=5))
    monkeypatch.undo()
    few = list(Shapes(root=tmp_path, scenes=3, seed=5).examples())
    assert [e.question_id for e in few] == [
        e.question_id for e in Shapes(root=root, scenes=3, seed=5).examples()
    ]
    assert len(list(Shapes(root=tmp_path, scenes=SCENES, seed=5).examples())) == 3 * SCENES
    assert contents(tmp_path) == contents(root)


def test_world_marker_that_is_none_is_refused(tmp_path):
    marker = tmp_path / "shapes_val2014.json"
    marker.write_text("{}x")
    with pytest.raises(UserError) as refusal:
        write_world(tmp_path, WorldConfig(scenes=2))
    assert str(refusal.value) == (
        f"{marker}: not the marker of an embedded world; choose another root"
    )


def test_world_of_other_data_is_not_overwritten(tmp_path):
    (tmp_path / "val2014").mkdir()
    with pytest.raises(UserError) as refusal:
        write_world(tmp_path, WorldConfig(scenes=2))
    assert str(refusal.value) == (
        f"{tmp_path / 'val2014'}: exists already and is not of an embedded world; "
        "choose another root"
    )


def test_world_interrupted_in_mid_write_is_written_again(tmp_path):
    config = WorldConfig(scenes=2, seed=5)
    write_world(tmp_path, config)
    whole = digests(tmp_path)
    (tmp_path / "shapes_val2014.json").rename(tmp_path / "shapes_val2014.unfinished.json")
    (tmp_path / "mscoco_val2014_annotations.json").unlink()
    write_world(tmp_path, config)
    assert digests(tmp_path) == whole


# --- changing priors ------------------------------------------------------------------------


def test_changing_priors_split_every_question_once_and_differ_by_type(root):
    sides = {
        side: list(
            VQACP(
                root=root,
                questions=Path(f"vqacp_v1_{side}_questions.json"),
                annotations=Path(f"vqacp_v1_{side}_annotations.json"),
                images=Path(),
            ).examples()
        )
        for side in ("train", "test")
    }
    ids = [e.question_id for examples in sides.values() for e in examples]
    assert len(ids) == len(set(ids)) == 2 * 3 * SCENES
    assert all(Path(e.image).exists() for examples in sides.values() for e in examples)

    def yes(side: str) -> float:
        given = Counter(e.truth for e in sides[side] if e.question_type == "is there a")
        return given["yes"] / given.total()

    assert abs(yes("train") - yes("test")) > 0.4


def test_palette_look_alikes_are_neighbours_on_the_ring():
    rng = np.random.default_rng(0)
    names = list(COLORS)
    for number in range(20):
        for thing in sample(int(rng.integers(100)), "val2014", number, "hard", 1).scene.things:
            gap = (names.index(thing.color) - names.index(thing.alike)) % len(names)
            assert gap in (1, len(names) - 1)
            assert 0 <= thing.blend <= DIFFICULTIES["hard"].alike_blend[1] < 0.5


# --- pairs ----------------------------------------------------------------------------------


def test_pairs_have_one_answer_and_different_things():
    drawn = [sample(7, "val2014", number, "standard", 4, pairs=True) for number in range(SCENES)]
    pairs = Counter()
    for one in drawn:
        things, (first, second, *others) = one.scene.things, one.asked
        assert first.exact == second.exact
        assert type(first.question) is type(second.question)
        assert not first.question.evidence(things) & second.question.evidence(things)
        assert not (first.mask & second.mask).any()
        assert len({asked.question for asked in one.asked}) == len(one.asked) == 4
        pairs[first.question.kind] += 1
        pairs["two"] += others[0].exact == others[1].exact
    assert min(pairs["color"], pairs["shape"], pairs["two"]) > 3


def test_pairs_change_nothing_where_they_are_not_asked_for(tmp_path):
    """The marker's bytes neither: a world that was written before the option is still known."""
    write_world(tmp_path, WorldConfig(scenes=1))
    assert set(json.loads((tmp_path / "shapes_val2014.json").read_text())) == {
        *("split", "scenes", "questions_per_image", "seed", "difficulty", "version")
    }
    plain = sample(0, "val2014", 0, "standard", 3)
    assert np.array_equal(plain.scene.image, Image.open(next(tmp_path.glob("val2014/*"))))
    with pytest.raises(UserError, match="pairs False, not pairs True"):
        write_world(tmp_path, WorldConfig(scenes=1, pairs=True))
    write_world(tmp_path / "pairs", WorldConfig(scenes=1, pairs=True))
    write_world(tmp_path / "pairs", WorldConfig(scenes=1, pairs=True))


def test_pairs_need_two_questions():
    with pytest.raises(ValidationError, match="pairs need questions_per_image of 2 or more"):
        WorldConfig(pairs=True, questions_per_image=1)


def test_exact_maps_are_the_masks_themselves(tmp_path):
    config = {"scenes": 2, "questions_per_image": 2, "pairs": True}
    exact = Shapes(root=tmp_path / "exact", exact=True, **config)
    for number, example in enumerate(exact.examples()):
        asked = sample(0, "val2014", number // 2, "standard", 2, pairs=True).asked[number % 2]
        (given,) = exact.human_maps(example)
        np.testing.assert_array_equal(given, asked.mask)
    annotated = Shapes(root=tmp_path / "annotated", **config)
    for mine, other in zip(exact.examples(), annotated.examples(), strict=True):
        assert (mine.question, mine.answers) == (other.question, other.answers)
        assert len(annotated.human_maps(other)) == 3
    with pytest.raises(UserError, match="exact True, not exact False"):
        list(Shapes(root=tmp_path / "exact", **config).examples())
