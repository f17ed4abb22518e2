"""The embedded world as official files: VQA v1 questions and annotations, VQA-HAT maps, VQA-CP.

    python -m workers.world.files ROOT --train 300 --val 200 --seed 0

writes two splits and, out of them, one whose answer priors change.
"""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import typer
from filelock import FileLock
from PIL import Image
from pydantic import Field, ValidationError, model_validator

from schemas.base import Frozen
from workers.errors import UserError
from workers.world.annotators import attention_map
from workers.world.sample import STREAMS, Asked, Sample, sample

FIRST_IMAGE = {"train2014": 1, "val2014": 500_001}
"""Image ids of the splits never meet, as in COCO."""
MAPS = 3
"""Attention maps a question, as VQA-HAT has on its validation set."""
ENVELOPE = {
    "info": {
        "description": "Scenes of coloured shapes in the form of VQA v1.0.",
        "url": "",
        "version": "1.0",
        "year": 2024,
        "contributor": "VQAtlas",
        "date_created": "2024-01-01 00:00:00",
    },
    "data_type": "mscoco",
    "license": {
        "url": "https://creativecommons.org/publicdomain/zero/1.0/",
        "name": "CC0 1.0 Universal",
    },
}
VERSION = 1
"""Goes up when the same configuration would give other files."""
MINORITY = 5
"""In a split with changing priors every fifth question of an answer is on the other side."""

Record = dict[str, Any]


class WorldConfig(Frozen):
    """One split of the embedded world. The same configuration gives the same bytes."""

    split: Literal["train2014", "val2014"] = "val2014"
    scenes: int = Field(default=200, ge=1, le=100_000)
    questions_per_image: int = Field(default=3, ge=1, le=10)
    """Three, as in VQA v1."""
    seed: int = Field(default=0, ge=0)
    difficulty: Literal["standard", "hard"] = "standard"
    pairs: bool = False
    """Questions come two and two: the same answer about different objects. A scene that allows no
    such pair is drawn again."""
    exact: bool = False
    """One map a question, the exact mask of its evidence, in place of three annotators' maps."""

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.pairs and self.questions_per_image < 2:
            raise ValueError("pairs need questions_per_image of 2 or more")
        return self


class Marker(WorldConfig):
    """What the marker file of a split says."""

    version: int = VERSION

    def text(self) -> str:
        """As JSON; an option only where it is asked for, as in files older than the option."""
        options = {"pairs": self.pairs, "exact": self.exact}
        return self.model_dump_json(
            indent=1, exclude={name for name in options if not options[name]}
        )


class Places:
    """Where the official files of one split lie under a root."""

    def __init__(self, root: Path, split: str) -> None:
        self.questions = root / f"OpenEnded_mscoco_{split}_questions.json"
        self.annotations = root / f"mscoco_{split}_annotations.json"
        self.images = root / split
        self.hat = root / f"vqahat_{split.removesuffix('2014')}"
        self.marker = root / f"shapes_{split}.json"
        self.unfinished = root / f"shapes_{split}.unfinished.json"

    def image(self, image_id: int) -> Path:
        return self.images / f"COCO_{self.images.name}_{image_id:012d}.png"


def write_world(root: Path, config: WorldConfig) -> None:
    """The official files of one split; nothing to do where they are there already.

    A world of more scenes begins with those of a smaller one, so one that is there serves for fewer
    and grows to more: no file is taken away meanwhile. Renaming the marker comes last, so a writing
    that was interrupted is begun again. Several processes may call at once. ``UserError`` where the
    root holds another world or other data.
    """
    root.mkdir(parents=True, exist_ok=True)
    places = Places(root, config.split)
    with FileLock(root / ".shapes.lock"):
        there = _scenes(places.marker, config) if places.marker.exists() else 0
        if there >= config.scenes and not places.unfinished.exists():
            return
        if not there:
            _clear(places)
        config = config.model_copy(update={"scenes": max(there, config.scenes)})
        places.unfinished.write_text(Marker.model_validate(config.model_dump()).text())
        _write(places, config, there)
        places.unfinished.replace(places.marker)


def _scenes(path: Path, wanted: WorldConfig) -> int:
    """How many of the world's scenes are there; another world is refused."""
    try:
        found = Marker.model_validate_json(path.read_text())
    except ValidationError:
        raise UserError(
            f"{path}: not the marker of an embedded world; choose another root"
        ) from None
    old, new = found.model_dump(), Marker.model_validate(wanted.model_dump()).model_dump()
    differ = [key for key in old if key != "scenes" and old[key] != new[key]]
    if differ:
        there, asked = (", ".join(f"{k} {values[k]!r}" for k in differ) for values in (old, new))
        raise UserError(
            f"{path.parent}: holds a world with {there}, not {asked}; "
            "choose another root or delete the folder"
        )
    return found.scenes


def _clear(places: Places) -> None:
    """Takes away what an interrupted writing left; ``UserError`` for data that is not ours."""
    content = [places.questions, places.annotations, places.images, places.hat]
    present = [path for path in content if path.exists()]
    if present and not places.unfinished.exists():
        raise UserError(
            f"{present[0]}: exists already and is not of an embedded world; choose another root"
        )
    for path in present:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(places: Places, config: WorldConfig, there: int) -> None:
    """The scenes behind those that are there, and all questions."""
    places.images.mkdir(exist_ok=True)
    places.hat.mkdir(exist_ok=True)
    questions = _kept(places.questions, "questions", config, there)
    annotations = _kept(places.annotations, "annotations", config, there)
    for number in range(there, config.scenes):
        drawn = sample(
            config.seed,
            config.split,
            number,
            config.difficulty,
            config.questions_per_image,
            config.pairs,
        )
        image_id = FIRST_IMAGE[config.split] + number
        Image.fromarray(drawn.scene.image).save(places.image(image_id))
        for index, asked in enumerate(drawn.asked):
            ids = {"question_id": image_id * 10 + index, "image_id": image_id}
            questions.append({**ids, "question": asked.text})
            annotations.append({**ids, **_annotation(asked)})
        _write_maps(places, config, number, drawn)
    envelope = {**ENVELOPE, "data_subtype": config.split}
    content = {"task_type": "Open-Ended", "questions": questions}
    _write_json(places.annotations, {**envelope, "annotations": annotations})
    _write_json(places.questions, {**envelope, **content})


def _kept(path: Path, key: str, config: WorldConfig, there: int) -> list[Record]:
    """A file's records of the scenes that are there."""
    end = FIRST_IMAGE[config.split] + there
    return [r for r in json.loads(path.read_text())[key] if r["image_id"] < end] if there else []


def _annotation(asked: Asked) -> Record:
    """Who agrees with a perfect onlooker is sure, the others say "maybe"."""
    return {
        "question_type": asked.question.question_type,
        "answer_type": asked.question.answer_type,
        "multiple_choice_answer": asked.label,
        "answers": [
            {
                "answer_id": number,
                "answer": answer,
                "answer_confidence": "yes" if answer == asked.exact else "maybe",
            }
            for number, answer in enumerate(asked.given, start=1)
        ],
    }


def _write_maps(places: Places, config: WorldConfig, number: int, drawn: Sample) -> None:
    rng = np.random.default_rng([config.seed, STREAMS[config.split], number, MAPS])
    first = (FIRST_IMAGE[config.split] + number) * 10
    for question_id, asked in enumerate(drawn.asked, start=first):
        exact = 255 * asked.mask.astype(np.uint8)
        left = [exact] if config.exact else [attention_map(rng, asked.mask) for _ in range(MAPS)]
        for k, values in enumerate(left, start=1):
            Image.fromarray(values).save(places.hat / f"{question_id}_{k}.png")


def _write_json(path: Path, content: object) -> None:
    """A reader sees the old file or the new one."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps(content, separators=(",", ":")))
    written.replace(path)


def write_changing_priors(root: Path) -> None:
    """VQA-CP v1 files (Agrawal et al. 2018) from the questions of both splits under a root.

    As there, questions are redistributed by type and answer; ours takes, within each question
    type, every other answer by frequency for training and leaves one question in five behind, so
    that no answer is unseen.
    """
    sides: dict[str, tuple[list[Record], list[Record]]] = {"train": ([], []), "test": ([], [])}
    for (_, rank), group in _groups(_records(root)).items():
        for number, (question, annotation) in enumerate(group):
            side = "train" if (rank % 2 == 0) != (number % MINORITY == 0) else "test"
            sides[side][0].append(question)
            sides[side][1].append(annotation)
    for side, (questions, annotations) in sides.items():
        for name, records in (("questions", questions), ("annotations", annotations)):
            _write_json(
                root / f"vqacp_v1_{side}_{name}.json",
                sorted(records, key=lambda record: record["question_id"]),
            )


def _records(root: Path) -> list[tuple[Record, Record]]:
    """Questions with their annotations, each with its ``coco_split``."""
    pairs: list[tuple[Record, Record]] = []
    for split in STREAMS:
        places, coco = Places(root, split), {"coco_split": split}
        questions = json.loads(places.questions.read_text())["questions"]
        annotations = json.loads(places.annotations.read_text())["annotations"]
        for question, annotation in zip(questions, annotations, strict=True):
            pairs.append(({**question, **coco}, {**annotation, **coco}))
    return pairs


def _groups(
    pairs: list[tuple[Record, Record]],
) -> dict[tuple[str, int], list[tuple[Record, Record]]]:
    """By question type and the rank of the answer in that type, the most frequent first."""
    keys = [(a["question_type"], a["multiple_choice_answer"]) for _, a in pairs]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question_type, answer in keys:
        counts[question_type][answer] += 1
    ranks = {
        (kind, answer): rank
        for kind, answers in counts.items()
        for rank, (answer, _) in enumerate(sorted(answers.items(), key=lambda x: (-x[1], x[0])))
    }
    groups: dict[tuple[str, int], list[tuple[Record, Record]]] = defaultdict(list)
    for key, pair in zip(keys, pairs, strict=True):
        groups[key[0], ranks[key]].append(pair)
    return groups


def main(root: Path, train: int = 300, val: int = 200, seed: int = 0) -> None:
    """Writes both splits of the standard world under ROOT, and the one with changing priors."""
    write_world(root, WorldConfig(split="train2014", scenes=train, seed=seed))
    write_world(root, WorldConfig(split="val2014", scenes=val, seed=seed))
    write_changing_priors(root)


if __name__ == "__main__":
    typer.run(main)
