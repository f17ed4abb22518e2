"""VQA v1 and v2 on COCO images, open-ended and multiple-choice, with VQA-HAT's human maps."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from schemas.example import Example
from workers.datasets.base import Dataset, Report
from workers.datasets.folders import ImageFolder, human_map_index
from workers.datasets.official import Labelled, QuestionRecord, RecordFile, join
from workers.errors import UserError
from workers.place import Place

IMAGES_OF = {"test-dev2015": "test2015"}
"""The one split whose images go by another split's name."""


class VQA(Dataset):
    """Antol et al. 2015 (v1) and Goyal et al. 2017 (v2), as published on visualqa.org.

    Which version and task it is, the files say. v1's multiple choices go to ``Example.choices``.
    """

    question_record: ClassVar[type[QuestionRecord]] = QuestionRecord

    questions: Place
    """``OpenEnded_mscoco_val2014_questions.json``, ``v2_...`` or ``MultipleChoice_...``."""
    annotations: Place | None = None
    """``mscoco_val2014_annotations.json``, ``v2_...``; the test splits have none."""
    images: Place = Path("images")
    """The folder that holds the images, or a folder a COCO split."""
    split: str | None = None
    """COCO split of the images; read from the questions file where not given."""
    hat: Place | None = None
    """``vqahat_val`` or ``vqahat_train`` of VQA-HAT (Das et al. 2016); its questions are v1's."""
    with_human_maps_only: bool = False
    """Only questions that have a human map."""

    @model_validator(mode="after")
    def _maps_to_select_by(self) -> "VQA":
        if self.with_human_maps_only and self.hat is None:
            raise ValueError("with_human_maps_only needs hat, the folder of VQA-HAT maps")
        return self

    def read(self, report: Report) -> Iterator[Example]:
        joined, split = self._joined(report)
        images, named_in = ImageFolder(self.root / self.images), str(self.root / self.questions)
        maps = self._maps(joined)
        for item in joined:
            human_maps = maps.get(item.question.question_id, ())
            if human_maps or not self.with_human_maps_only:
                yield self._example(item, images, split, human_maps, named_in)

    def _joined(self, report: Report) -> tuple[list[Labelled], str | None]:
        """Checked records and the file's own split; the raw JSON is let go of."""
        questions = RecordFile.open(self.root / self.questions, "questions")
        annotations = None
        if self.annotations:
            annotations = RecordFile.open(self.root / self.annotations, "annotations")
        subtype = questions.envelope.get("data_subtype")
        split = self.split or (subtype if isinstance(subtype, str) else None)
        return join(questions, self.question_record, annotations, report), split

    def _maps(self, joined: list[Labelled]) -> dict[int, tuple[str, ...]]:
        if self.hat is None:
            return {}
        maps = human_map_index(self.root / self.hat)
        if maps.keys().isdisjoint(item.question.question_id for item in joined):
            raise UserError(
                f"{self.root / self.hat}: its maps of {len(maps)} questions match none of the "
                f"{len(joined)} in {self.root / self.questions}; VQA-HAT asks VQA v1 questions, "
                "vqahat_val those of val2014 and vqahat_train those of train2014"
            )
        for question in (item.question for item in joined if item.question.question_id in maps):
            number, image = question.question_id, question.image_id
            if number // 1000 == image != number // 10:  # the same numbers, of other images
                raise UserError(
                    f"{self.root / self.questions}: question {number} is about image {image}, as "
                    f"VQA v2 counts, and {self.root / self.hat} has maps of VQA v1's question of "
                    f"that number, about image {number // 10}; give v1's questions, or no hat"
                )
        return maps

    def _example(
        self,
        item: Labelled,
        images: ImageFolder,
        split: str | None,
        human_maps: tuple[str, ...],
        named_in: str,
    ) -> Example:
        question, label = item.question, item.label
        record = f"{named_in}: question_id {question.question_id}"
        split = question.coco_split or split
        if not split:
            raise UserError(
                f"{record}: the file does not say which COCO split its images are of; "
                "set split, for instance to val2014"
            )
        image = images.find(IMAGES_OF.get(split, split), question.image_id, record)
        return Example(
            question_id=question.question_id,
            image_id=question.image_id,
            image=image,
            question=question.question,
            answers=label.answers,
            truth=label.truth,
            question_type=label.question_type,
            answer_type=label.answer_type,
            choices=question.multiple_choices,
            human_maps=human_maps,
        )
