"""One image of the world with its questions and their answers, by seed, split and number."""

from dataclasses import dataclass

import numpy as np

from workers.world.annotators import answers, label, views
from workers.world.questions import Question, View, ask, plain_view
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


def sample(seed: int, split: str, number: int, difficulty: str, questions: int) -> Sample:
    """The ``number``-th image of a split; it does not depend on how many others there are."""
    rng = np.random.default_rng([seed, STREAMS[split], number])
    level = DIFFICULTIES[difficulty]
    scene = draw_scene(rng, level)
    seen = views(rng, scene.things)
    posed = ask(rng, scene.things, level.questions, questions)
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
