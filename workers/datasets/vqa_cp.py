"""VQA under changing priors: VQA's questions, split anew so that answer priors differ."""

from typing import ClassVar

from workers.datasets.official import QuestionRecord, record
from workers.datasets.vqa import VQA


@record
class ChangingPriorsQuestion(QuestionRecord):
    """A question that says which COCO split its image is of: each part draws on both."""

    coco_split: str


class VQACP(VQA):
    """VQA-CP v1 and v2 (Agrawal et al. 2018): ``vqacp_v2_test_questions.json`` and its kin.

    The files are plain lists; images lie in ``train2014/`` and ``val2014/``.
    """

    question_record: ClassVar[type[QuestionRecord]] = ChangingPriorsQuestion
