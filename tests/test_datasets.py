"""Readers: what real and made-up official files become, and the exact words for bad ones."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from schemas.limits import Limits
from workers.datasets.base import Dataset
from workers.datasets.easy_vqa import EasyVQA
from workers.datasets.folders import human_map_index, inside
from workers.datasets.official import AnnotationRecord, label
from workers.datasets.photos import Photos
from workers.datasets.vqa import VQA
from workers.datasets.vqa_cp import VQACP
from workers.errors import BadExample, UserError
from workers.images import decode

LIMITS = Limits()
SAME = "use questions and annotations of the same split and version"
MEND = "mend the record or set skip_bad"
Record = dict[str, Any]


def question(question_id: int, image_id: int = 42, **more: Any) -> Record:
    return {"question_id": question_id, "image_id": image_id, "question": "what is it?", **more}


def annotation(question_id: int, *answers: str, **more: Any) -> Record:
    given = [
        {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
        for i, a in enumerate(answers or ("cat",) * 10)
    ]
    return {"question_id": question_id, "answers": given, **more}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def picture(path: Path, mode: str = "RGB", shade: object = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 12), shade).save(path)  # type: ignore[arg-type]
    return path


def official(
    root: Path, questions: list[Any], annotations: list[Any] | None = None, **fields: Any
) -> VQA:
    """A VQA dataset of val2014 under ``root``, in the official envelopes."""
    (root / "images").mkdir(exist_ok=True)
    write(root / "q.json", {"data_subtype": "val2014", "questions": questions})
    if annotations is not None:
        write(root / "a.json", {"data_subtype": "val2014", "annotations": annotations})
        fields = {"annotations": Path("a.json"), **fields}
    return VQA(root=root, questions=Path("q.json"), **fields)


def refusal(dataset: Dataset) -> str:
    with pytest.raises(UserError) as caught:
        list(dataset.examples())
    return str(caught.value)


def ids(dataset: Dataset) -> list[int]:
    return [example.question_id for example in dataset.examples()]


# Real files


def test_vqa_real_v2_sample_with_trimmed_annotations_is_read(shared_data: Path) -> None:
    dataset = VQA(
        root=shared_data / "vqav2-mini" / "test_fixtures" / "vision",
        questions=Path("vqav2/questions.json"),
        annotations=Path("vqav2/annotations.json"),
        images=Path("images/vqav2"),
    )
    examples = list(dataset.examples())
    assert [e.question_id for e in examples] == [458752000, 458752001, 458752002]
    assert [e.truth for e in examples] == ["net", "pitcher", "orange"]
    assert [len(e.answers) for e in examples] == [10, 10, 10]
    assert {(e.question_type, e.answer_type) for e in examples} == {(None, None)}
    assert examples[0].question == "What is this photo taken looking through?"
    assert decode(examples[0].image, LIMITS).shape == (480, 640, 3)


@pytest.mark.parametrize(
    ("folder", "questions", "truths"),
    [
        ("vqav2-mini", "derived_val_questions.json", ["yes", "chopsticks"]),
        ("coco-mm-explain", "questions_from_notebook.json", [None] * 4),
    ],
)
def test_photos_real_coco_questions_are_read_as_they_are(
    shared_data: Path, folder: str, questions: str, truths: list[str | None]
) -> None:
    dataset = Photos(root=shared_data / folder, questions=Path(questions))
    examples = list(dataset.examples())
    assert [e.truth for e in examples] == truths
    assert [e.question_id for e in examples] == list(range(len(truths)))
    assert all(f"{e.image_id:012d}" in e.image for e in examples)
    assert all(decode(e.image, LIMITS).shape[1] == 640 for e in examples)


@pytest.fixture(scope="module")
def easy(shared_data: Path) -> Path:
    return shared_data / "easy-vqa" / "easy_vqa" / "data"


@pytest.mark.parametrize(
    ("split", "questions", "images", "yes_no"),
    [("test", 9_673, 1_000, 7_136), ("train", 38_575, 4_000, 28_407)],
)
def test_easy_vqa_real_counts_are_the_published_ones(
    easy: Path, split: str, questions: int, images: int, yes_no: int
) -> None:
    examples = list(EasyVQA(root=easy, split=split).examples())
    assert [e.question_id for e in examples] == list(range(questions))
    assert len({e.image for e in examples}) == images
    assert Counter(e.answer_type for e in examples)["yes/no"] == yes_no
    assert len({e.truth for e in examples}) == 13


def test_easy_vqa_selection_takes_the_same_questions_of_each_image(easy: Path) -> None:
    dataset = EasyVQA(root=easy, images=220, questions_per_image=3)
    examples = list(dataset.examples())
    assert list(dataset.examples()) == examples
    per_image = Counter(e.image_id for e in examples)
    assert sorted(per_image) == list(range(220))
    assert max(per_image.values()) == 3
    assert len(examples) >= 600
    everything = {e.question_id: e for e in EasyVQA(root=easy).examples()}
    assert all(everything[e.question_id] == e for e in examples)
    assert {e.answer_type for e in examples} == {"yes/no", "other"}


def test_easy_vqa_human_map_is_the_mask_of_the_shape(easy: Path) -> None:
    dataset = EasyVQA(root=easy, images=20, questions_per_image=1)
    for example in dataset.examples():
        (mask,) = dataset.human_maps(example)
        assert mask.dtype == np.float32
        assert set(np.unique(mask)) == {0, 1}
        image = decode(example.image, LIMITS)
        assert image[mask == 0].min() >= 230
        assert image[mask == 1].min(axis=1).max() < 230


# Official forms


def test_vqa_v1_multiple_choice_keeps_its_choices(tmp_path: Path) -> None:
    choices = [f"choice {i}" for i in range(18)]
    (example,) = official(tmp_path, [question(1, multiple_choices=choices)]).examples()
    assert example.choices == tuple(choices)


def test_vqa_test_split_without_annotations_has_no_truth(tmp_path: Path) -> None:
    (example,) = official(tmp_path, [question(1)]).examples()
    assert (example.answers, example.truth) == ((), None)


def test_vqa_full_annotation_passes_its_fields_on(tmp_path: Path) -> None:
    full = annotation(
        1,
        *["2"] * 9,
        "3",
        image_id=42,
        question_type="how many",
        answer_type="number",
        multiple_choice_answer="3",
    )
    (example,) = official(tmp_path, [question(1)], [full]).examples()
    assert example.truth == "3"
    assert (example.question_type, example.answer_type) == ("how many", "number")
    assert example.answers == ("2",) * 9 + ("3",)


def test_vqa_annotations_in_another_order_are_joined_by_id(tmp_path: Path) -> None:
    answers = {7: "dog", 3: "cat", 5: "cow"}
    dataset = official(
        tmp_path, [question(i) for i in (3, 5, 7)], [annotation(i, a) for i, a in answers.items()]
    )
    assert [(e.question_id, e.truth) for e in dataset.examples()] == [
        (3, "cat"),
        (5, "cow"),
        (7, "dog"),
    ]


@given(st.lists(st.sampled_from(["yes", "no", "maybe", "Yes"]), min_size=1, max_size=10))
def test_label_trimmed_annotation_has_most_common_answer_first_of_ties(answers: list[str]) -> None:
    found = label(TypeAdapter(AnnotationRecord).validate_python(annotation(1, *answers)))
    most = max(answers.count(a) for a in answers)
    assert found.truth == next(a for a in answers if answers.count(a) == most)
    assert found.answers == tuple(answers)
    assert found.answer_type is None


@given(
    more=st.fixed_dictionaries(
        {},
        optional={
            "image_id": st.just(42),
            "question_type": st.text(),
            "answer_type": st.sampled_from(["yes/no", "number", "other"]),
            "multiple_choice_answer": st.text(min_size=1),
            "coco_split": st.just("val2014"),
            "unheard_of": st.integers(),
        },
    )
)
def test_annotation_optional_and_unknown_fields_are_accepted(more: Record) -> None:
    found = label(TypeAdapter(AnnotationRecord).validate_python(annotation(1, "yes", **more)))
    assert found.truth == more.get("multiple_choice_answer", "yes")
    assert found.answer_type == more.get("answer_type")
    assert found.question_type == more.get("question_type")


def test_vqa_cp_plain_lists_take_each_image_from_its_own_split(tmp_path: Path) -> None:
    for split in ("train2014", "val2014"):
        picture(tmp_path / split / f"COCO_{split}_{42:012d}.jpg")
    questions = [question(1, coco_split="train2014"), question(2, coco_split="val2014")]
    write(tmp_path / "q.json", questions)
    write(tmp_path / "a.json", [annotation(1), annotation(2)])
    dataset = VQACP(
        root=tmp_path, questions=Path("q.json"), annotations=Path("a.json"), images=Path()
    )
    assert [Path(e.image).parent.name for e in dataset.examples()] == ["train2014", "val2014"]


def test_vqa_cp_question_without_coco_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "q.json", [question(1)])
    assert refusal(VQACP(root=tmp_path, questions=Path("q.json"), images=Path())) == (
        f"{tmp_path}/q.json: questions[0] (question_id 1): "
        f"field 'coco_split': Field required; {MEND}"
    )


@pytest.mark.parametrize(
    "name",
    [
        "val2014/COCO_val2014_000000000042.jpg",
        "val2014/COCO_val2014_000000000042.png",
        "COCO_val2014_000000000042.jpg",
        "val2014/000000000042.jpg",
        "000000000042.jpg",
    ],
)
def test_vqa_image_is_found_under_each_official_name(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "images" / name)
    (example,) = official(tmp_path, [question(1)]).examples()
    assert example.image == str(tmp_path / "images" / name)


def test_vqa_test_dev_images_are_those_of_test2015(tmp_path: Path) -> None:
    expected = picture(tmp_path / "images" / "test2015" / "COCO_test2015_000000000042.jpg")
    (example,) = official(tmp_path, [question(1)], split="test-dev2015").examples()
    assert example.image == str(expected)


def test_vqa_file_without_a_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "q.json", [question(1)])
    dataset = VQA(root=tmp_path, questions=Path("q.json"), images=Path())
    assert refusal(dataset) == (
        f"{tmp_path}/q.json: question_id 1: the file does not say which COCO split its images are "
        "of; set split, for instance to val2014"
    )


def test_vqa_limit_takes_the_first_and_checks_the_rest(tmp_path: Path) -> None:
    assert ids(official(tmp_path, [question(i) for i in range(5)], limit=2)) == [0, 1]
    broken = official(tmp_path, [question(0), question(0)], limit=1)
    assert "the same question_id" in refusal(broken)


# Human maps


def test_human_map_index_groups_by_question_in_annotator_order(tmp_path: Path) -> None:
    for name in ("420_2.png", "420_10.png", "420_1.png", "421_1.png", "readme.txt", "42.png"):
        (tmp_path / name).touch()
    index = human_map_index(tmp_path)
    assert {q: [Path(p).name for p in paths] for q, paths in index.items()} == {
        420: ["420_1.png", "420_2.png", "420_10.png"],
        421: ["421_1.png"],
    }


def test_vqa_human_maps_keep_constant_ones_and_their_own_size(tmp_path: Path) -> None:
    picture(tmp_path / "hat" / "420_1.png", "L", 0)
    picture(tmp_path / "hat" / "420_2.png", "RGB", (51, 51, 51))
    Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6)).save(
        tmp_path / "hat" / "420_3.png"
    )
    dataset = official(tmp_path, [question(420), question(421)], hat=Path("hat"))
    with_maps, without = dataset.examples()
    maps = dataset.human_maps(with_maps)
    assert [m.shape for m in maps] == [(12, 20), (12, 20), (5, 6)]
    assert [m.dtype for m in maps] == [np.float32] * 3
    assert (maps[0] == 0).all()
    np.testing.assert_allclose(maps[1], 0.2, atol=1e-6)
    assert dataset.human_maps(without) == []


def test_vqa_with_human_maps_only_leaves_other_questions_out(tmp_path: Path) -> None:
    picture(tmp_path / "hat" / "421_1.png", "L")
    questions = [question(i) for i in (420, 421, 422)]
    assert ids(official(tmp_path, questions, hat="hat", with_human_maps_only=True)) == [421]
    with pytest.raises(ValidationError, match="with_human_maps_only needs hat"):
        official(tmp_path, questions, with_human_maps_only=True)


def test_vqa_human_maps_of_other_questions_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "hat" / "99_1.png", "L")
    assert refusal(official(tmp_path, [question(420)], hat=Path("hat"))) == (
        f"{tmp_path}/hat: its maps of 1 questions match none of the 1 in {tmp_path}/q.json; "
        "VQA-HAT asks VQA v1 questions, vqahat_val those of val2014 and vqahat_train those of "
        "train2014"
    )


def test_vqa_human_maps_of_equal_numbers_in_the_other_version_are_refused(tmp_path: Path) -> None:
    """Question 4200001 is v2's second one about image 4200, and v1's about image 420000."""
    picture(tmp_path / "hat" / "4200001_1.png", "L")
    said = refusal(official(tmp_path, [question(4200001, 4200)], hat=Path("hat")))
    assert "question 4200001 is about image 4200, as VQA v2 counts" in said
    assert "about image 420000; give v1's questions, or no hat" in said
    (v1,) = official(tmp_path, [question(4200001, 420000)], hat=Path("hat")).examples()
    assert len(v1.human_maps) == 1


def test_vqa_human_map_folder_without_maps_is_refused(tmp_path: Path) -> None:
    assert refusal(official(tmp_path, [question(420)], hat=Path("hat"))) == (
        f"{tmp_path}/hat: no attention map named '{{question_id}}_{{k}}.png' in it; "
        "name the unpacked VQA-HAT folder"
    )


def test_vqa_truncated_human_map_is_a_bad_example_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "hat" / "420_1.png"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:20_000])
    dataset = official(tmp_path, [question(420)], hat=Path("hat"))
    (example,) = dataset.examples()
    with pytest.raises(BadExample) as caught:
        dataset.human_maps(example)
    assert str(caught.value).startswith(f"{path}: broken image (image file is truncated")


# Bad files


def test_vqa_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(VQA(root=tmp_path, questions=Path("none.json"))) == (
        f"{tmp_path}/none.json: cannot be read (No such file or directory); "
        "correct the path or download the file"
    )


def test_vqa_missing_image_folder_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(1)], images=Path("photos"))
    assert refusal(dataset) == (
        f"{tmp_path}/photos: no such folder of images; correct the field 'images'"
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.999])
def test_vqa_json_cut_off_is_refused_with_the_place(tmp_path: Path, share: float) -> None:
    dataset = official(tmp_path, [question(i) for i in range(20)])
    path = tmp_path / "q.json"
    text = json.dumps(json.loads(path.read_text()), indent=1)
    cut = text[: int(len(text) * share)]
    path.write_text(cut)
    line = len(cut.split("\n"))
    assert refusal(dataset) == (
        f"{path}: the JSON breaks off at byte {len(cut)}, line {line}: "
        "the file looks truncated; download it again"
    )


def test_vqa_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(1)])
    (tmp_path / "q.json").write_text("<html>Not found</html>")
    assert refusal(dataset) == (
        f"{tmp_path}/q.json: not JSON (expected value at line 1 column 1); download the file again"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"info": {}, "annotations": []}, "the keys ['info', 'annotations']"),
        ({"questions": {"1": "what?"}}, "the keys ['questions']"),
        ("what?", "'what?'"),
    ],
)
def test_vqa_file_without_a_list_of_questions_is_refused(
    tmp_path: Path, content: object, found: str
) -> None:
    dataset = official(tmp_path, [])
    path = write(tmp_path / "q.json", content)
    assert refusal(dataset) == (
        f"{path}: expected a list of questions, or an object with such a list under 'questions', "
        f"found {found}; name the official questions file"
    )


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (
            {"question_id": 7, "image_id": 42},
            "questions[1] (question_id 7): field 'question': Field required",
        ),
        (
            question(7, image_id="42"),
            "questions[1] (question_id 7): field 'image_id': "
            "Input should be a valid integer, got '42'",
        ),
        (
            question(-7),
            "questions[1]: field 'question_id': Input should be greater than or equal to 0, got -7",
        ),
        (
            question(2**63),
            "questions[1]: field 'question_id': Input should be less than or equal to "
            "9223372036854775807, got 9223372036854775808",
        ),
        (
            {**question(7), "question": None},
            "questions[1] (question_id 7): field 'question': "
            "Input should be a valid string, got None",
        ),
        (
            "what?",
            "questions[1]: field 'record': "
            "Input should be a dictionary or an instance of QuestionRecord, got 'what?'",
        ),
    ],
)
def test_vqa_malformed_question_is_refused_with_field_and_value(
    tmp_path: Path, record: Any, complaint: str
) -> None:
    dataset = official(tmp_path, [question(1), record])
    assert refusal(dataset) == f"{tmp_path}/q.json: {complaint}; {MEND}"


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (
            {"question_id": 1, "answers": [{"answer": "yes"}, {"answer_id": 2}]},
            "field 'answers.1.answer': Field required",
        ),
        (
            {"question_id": 1, "answers": []},
            "field 'answers': Tuple should have at least 1 item after validation, not 0, got []",
        ),
        (
            annotation(1, answer_type="colour"),
            "field 'answer_type': Input should be 'yes/no', 'number' or 'other', got 'colour'",
        ),
    ],
)
def test_vqa_malformed_annotation_is_refused_with_field_and_value(
    tmp_path: Path, record: Any, complaint: str
) -> None:
    dataset = official(tmp_path, [question(1)], [record])
    assert refusal(dataset) == (
        f"{tmp_path}/a.json: annotations[0] (question_id 1): {complaint}; {MEND}"
    )


def test_vqa_duplicate_question_id_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(5), question(6), question(5)])
    assert refusal(dataset) == (
        f"{tmp_path}/q.json: questions[2] (question_id 5): "
        "the same question_id as questions[0]; keep one of the two"
    )


def test_vqa_duplicate_annotation_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(5)], [annotation(5), annotation(5)])
    assert refusal(dataset) == (
        f"{tmp_path}/a.json: annotations[1] (question_id 5): "
        "the same question_id as annotations[0]; keep one of the two"
    )


def test_vqa_question_without_annotation_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(5), question(6)], [annotation(5)])
    assert refusal(dataset) == (
        f"{tmp_path}/q.json: questions[1] (question_id 6): "
        f"no annotation in {tmp_path}/a.json; {SAME}"
    )


def test_vqa_annotation_without_question_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(5)], [annotation(5), annotation(6)])
    assert refusal(dataset) == (
        f"{tmp_path}/a.json: annotations[1] (question_id 6): "
        f"no question in {tmp_path}/q.json; {SAME}"
    )


def test_vqa_annotation_of_another_image_is_refused(tmp_path: Path) -> None:
    dataset = official(tmp_path, [question(5, image_id=1)], [annotation(5, image_id=2)])
    assert refusal(dataset) == (
        f"{tmp_path}/a.json: annotations[0] (question_id 5): "
        f"image_id 2, but 1 in {tmp_path}/q.json; {SAME}"
    )


def test_vqa_missing_image_is_listed_and_a_bad_example_when_decoded(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "val2014" / "COCO_val2014_000000000042.jpg")
    present, missing = official(tmp_path, [question(1, 42), question(2, 43)]).examples()
    assert decode(present.image, LIMITS).shape == (12, 20, 3)
    with pytest.raises(BadExample) as caught:
        decode(missing.image, LIMITS)
    assert str(caught.value) == (
        f"{tmp_path}/images/val2014/COCO_val2014_000000000043.jpg: the image file is missing; "
        "download it or correct the images folder"
    )


def test_vqa_skip_bad_keeps_the_good_and_tells_the_rest_once(tmp_path: Path) -> None:
    questions = [
        question(1),
        {"question_id": 2, "image_id": 42},
        question(3),
        question(4),
        question(1),
        "?",
    ]
    annotations = [annotation(1), annotation(2), annotation(3, answer_type="colour")]
    dataset = official(tmp_path, questions, annotations, skip_bad=True)
    assert ids(dataset) == [1]
    bad = dataset.bad_records()
    assert [record.question_id for record in bad] == [2, 1, None, 3, 4]
    assert {record.file for record in bad} == {f"{tmp_path}/q.json", f"{tmp_path}/a.json"}
    assert bad[0].message == (
        f"{tmp_path}/q.json: questions[1] (question_id 2): field 'question': Field required; {MEND}"
    )


def test_vqa_sound_file_has_no_bad_records(tmp_path: Path) -> None:
    assert official(tmp_path, [question(1)], [annotation(1)], skip_bad=True).bad_records() == []


def test_easy_vqa_malformed_record_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "test" / "questions.json", [["what?", "red", 0], ["what?", "red"]])
    assert refusal(EasyVQA(root=tmp_path)) == (
        f"{path}: questions[1]: field '2': Field required; {MEND}"
    )


def test_easy_vqa_missing_image_is_a_bad_example_of_its_human_map(tmp_path: Path) -> None:
    write(tmp_path / "test" / "questions.json", [["what?", "red", 7]])
    dataset = EasyVQA(root=tmp_path)
    (example,) = dataset.examples()
    with pytest.raises(BadExample, match=r"images/7\.png: the image file is missing"):
        dataset.human_maps(example)


def test_dataset_unknown_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        VQA(root=tmp_path, questions=Path("q.json"), quesions="q.json")


# Paths


def photos(root: Path, file: str) -> Photos:
    write(root / "photos.json", [{"image_id": 1, "file": file, "question": "what is it?"}])
    return Photos(root=root, questions=Path("photos.json"))


def outside(where: str, path: str, root: Path, target: Path) -> str:
    return (
        f"{where}: {path!r} leads outside {root}, to {target}; "
        "move the file into that folder or name a folder that holds both"
    )


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image that no data file under ``tmp_path/root`` may reach."""
    (tmp_path / "root").mkdir()
    return picture(tmp_path / "secret.png")


def test_photos_relative_path_out_of_root_is_refused(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "root"
    expected = outside(f"{root}/photos.json: questions[0]", "../secret.png", root, secret)
    assert refusal(photos(root, "../secret.png")) == expected


def test_photos_absolute_path_out_of_root_is_refused(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "root"
    expected = outside(f"{root}/photos.json: questions[0]", str(secret), root, secret)
    assert refusal(photos(root, str(secret))) == expected


def test_photos_symlink_out_of_root_is_refused(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "root"
    (root / "dog.png").symlink_to(secret)
    expected = outside(f"{root}/photos.json: questions[0]", "dog.png", root, secret)
    assert refusal(photos(root, "dog.png")) == expected


def test_photos_symlink_in_a_subfolder_found_by_name_is_refused(
    tmp_path: Path, secret: Path
) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir()
    (root / "sub" / "dog.png").symlink_to(secret)
    assert f"leads outside {root}, to {secret}" in refusal(photos(root, "dog.png"))


def test_photos_path_out_of_root_is_refused_even_with_skip_bad(
    tmp_path: Path, secret: Path
) -> None:
    dataset = photos(tmp_path / "root", "../secret.png").model_copy(update={"skip_bad": True})
    assert "leads outside" in refusal(dataset)


def test_photos_empty_answer_is_no_label(tmp_path: Path) -> None:
    asked = {"image_id": 1, "file": "a.png", "question": "what is it?"}
    write(tmp_path / "photos.json", [{**asked, "answer": ""}, asked])
    one, two = Photos(root=tmp_path, questions=Path("photos.json")).examples()
    assert (one.truth, one.answers) == (two.truth, two.answers) == (None, ())


def test_photos_path_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refusal(photos(tmp_path, "a\0b")) == (
        f"{tmp_path}/photos.json: questions[0]: 'a\\x00b' is not a path (embedded null byte); "
        "correct it"
    )


def test_photos_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("b", "a"):
        picture(tmp_path / folder / "dog.png")
    assert refusal(photos(tmp_path, "dog.png")) == (
        f"{tmp_path}/photos.json: questions[0]: 2 files below {tmp_path} are named 'dog.png': "
        "a/dog.png, b/dog.png; give the path of the one meant"
    )
    (example,) = photos(tmp_path, "b/dog.png").examples()
    assert example.image == f"{tmp_path}/b/dog.png"


def test_photos_name_at_root_wins_over_a_deeper_one(tmp_path: Path) -> None:
    for path in ("dog.png", "a/dog.png"):
        picture(tmp_path / path)
    (example,) = photos(tmp_path, "dog.png").examples()
    assert example.image == f"{tmp_path}/dog.png"


def test_photos_missing_file_is_a_bad_example_when_decoded(tmp_path: Path) -> None:
    (example,) = photos(tmp_path, "dog.png").examples()
    with pytest.raises(BadExample, match=r"dog\.png: the image file is missing"):
        decode(example.image, LIMITS)


@pytest.mark.parametrize("split", ["../..", "x/../../images"])
def test_vqa_cp_split_out_of_the_image_folder_is_refused(tmp_path: Path, split: str) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "q.json", [question(1, coco_split=split)])
    reason = refusal(VQACP(root=tmp_path, questions=Path("q.json")))
    assert reason.startswith(f"{tmp_path}/q.json: question_id 1: ")
    assert f"leads outside {tmp_path}/images, to " in reason


def test_vqa_image_that_links_out_of_its_folder_is_refused(tmp_path: Path, secret: Path) -> None:
    images = tmp_path / "root" / "images" / "val2014"
    images.mkdir(parents=True)
    link = images / "COCO_val2014_000000000042.jpg"
    link.symlink_to(secret)
    assert refusal(official(tmp_path / "root", [question(1)])) == outside(
        f"{tmp_path}/root/q.json: question_id 1", str(link), images.parent, secret
    )


def test_vqa_image_folder_chosen_by_the_recipe_may_be_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "coco"
    picture(elsewhere / "COCO_val2014_000000000042.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (example,) = official(root, [question(1)], images=elsewhere).examples()
    assert Path(example.image).parent == elsewhere
    (root / "linked").symlink_to(elsewhere)
    (example,) = official(root, [question(1)], images=Path("linked")).examples()
    assert Path(example.image).parent == elsewhere


def test_human_map_that_links_out_of_its_folder_is_refused(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "root" / "1_1.png").symlink_to(secret)
    with pytest.raises(UserError, match="leads outside"):
        human_map_index(tmp_path / "root")


@pytest.mark.parametrize("path", ["a.png", "sub/../a.png", "./a.png", "link/a.png"])
def test_inside_path_that_stays_is_resolved(tmp_path: Path, path: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    assert inside(tmp_path, path) == tmp_path / "a.png"


@given(st.lists(st.sampled_from(["..", ".", "a", "b/c", "/", "/etc", "~"]), max_size=6))
def test_inside_any_path_is_below_root_or_refused(parts: list[str]) -> None:
    root = Path(__file__).parent
    try:
        found = inside(root, Path(*parts))
    except UserError:
        assert not (root / Path(*parts)).resolve().is_relative_to(root)
    else:
        assert found.is_relative_to(root)


def test_vqa_cp_split_with_a_name_too_long_for_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = write(tmp_path / "questions.json", [question(1, coco_split="a" * 5000)])
    assert "the folder cannot be listed (File name too long)" in refusal(
        VQACP(root=tmp_path, questions=path)
    )


def test_photos_file_in_a_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Its path could not be written into a row."""
    folder = tmp_path / "\udcff"
    folder.mkdir()
    picture(folder / "dog.png")
    message = refusal(photos(tmp_path, "dog.png"))
    assert "is not a path" in message
    message.encode()
