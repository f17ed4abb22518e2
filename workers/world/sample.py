"""One image of the world with its questions and their answers, by seed, split and number."""

from dataclasses import dataclass

import numpy as np

from workers.world.annotators import answers, label, views
from workers.world.questions import (
    Question,
    View,
    ask,
    ask_pairs,
    plain_view,
    same_answer_pairs,
)
from workers.world.scene import DIFFICULTIES, Scene, draw_scene

STREAMS = {"train2014": 0, "val2014": 1}
"""Splits draw from separate random streams: no scene of one is ever in the other."""


@dataclass(frozen=True)
class Asked:
    """A question on a scene, what ten annotators said, and the pixels that matter."""

    question: Question
    text: str
    given: list[str]
    """Every annotator's answer."""
    label: str
    """The most common answer."""
    exact: str
    """The answer of a perfect onlooker, mostly the same."""
    mask: np.ndarray
    """Visible pixels of the evidence: bool ``(y, x)``."""


@dataclass(frozen=True)
class Sample:
    """A scene with the questions asked about it."""

    scene: Scene
    asked: list[Asked]


def sample(
    seed: int, split: str, number: int, difficulty: str, questions: int, pairs: bool = False
) -> Sample:
    """The ``number``-th image of a split; it does not depend on how many others there are.

    With ``pairs`` its questions come two and two, as far as the scene allows: the same answer
    about different things. A scene that does not allow one pair is drawn again.
    """
    rng = np.random.default_rng([seed, STREAMS[split], number])
    level = DIFFICULTIES[difficulty]
    scene = draw_scene(rng, level)
    while pairs and not same_answer_pairs(scene.things):
        scene = draw_scene(rng, level)
    seen = views(rng, scene.things)
    first = ask_pairs(rng, scene.things, questions) if pairs else []
    posed = ask(rng, scene.things, level.questions, questions, first)
    return Sample(scene, [_answered(question, scene, seen) for question in posed])


def _answered(question: Question, scene: Scene, seen: list[View]) -> Asked:
    given = answers(question, seen)
    return Asked(
        question=question,
        text=question.text(scene.things),
        given=given,
        label=label(question, scene.things, given),
        exact=question.answer(plain_view(scene.things)),
        mask=scene.mask(question.evidence(scene.things)),
    )
