"""Ten people who look at a scene, none of them perfectly: their answers and where they looked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.special import expit

from workers.world.questions import Look, Question, View, plain_view
from workers.world.scene import SHAPES, Thing

ANNOTATORS = 10


def views(rng: np.random.Generator, things: Sequence[Thing]) -> list[View]:
    """What each annotator makes of the scene; all questions about it are answered from it."""
    return [[_look(rng, thing) for thing in things] for _ in range(ANNOTATORS)]


def _look(rng: np.random.Generator, thing: Thing) -> Look:
    """Faint, small and half-hidden things are missed or mistaken, leaning hues named differently.

    Sizes are judged to about six percent and places to two pixels.
    """
    chance = rng.random(3)
    confused = 0.3 * (1 - thing.clarity) ** 2
    return Look(
        replace(
            thing,
            color=thing.alike if chance[0] < expit(14 * (thing.blend - 0.5)) else thing.color,
            shape=SHAPES[rng.integers(len(SHAPES))] if chance[1] < confused else thing.shape,
            radius=thing.radius * np.exp(rng.normal(0, 0.06)),
            y=thing.y + rng.normal(0, 2),
            x=thing.x + rng.normal(0, 2),
        ),
        noticed=bool(chance[2] >= 0.4 * (1 - thing.opacity * thing.clarity) ** 2),
    )


def answers(question: Question, views: Sequence[View]) -> list[str]:
    """Every annotator's answer to one question."""
    return [question.answer(view) for view in views]


def label(question: Question, things: Sequence[Thing], given: Sequence[str]) -> str:
    """The most common answer; a tie goes to the exact answer, then to the alphabet."""
    exact = question.answer(plain_view(things))
    counts = Counter(given)
    return min(counts, key=lambda answer: (-counts[answer], answer != exact, answer))


def attention_map(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """One annotator looking: the exact mask, shifted a little and blurred; uint8 ``(y, x)``."""
    shifted = ndimage.shift(mask.astype(float), rng.normal(0, 1.5, 2), order=1)
    blurred = ndimage.gaussian_filter(shifted, rng.uniform(2, 5))
    return np.round(255 * blurred / blurred.max()).astype(np.uint8)
