"""What is asked about a scene: six kinds of question, each answered from a list of things.

The same ``answer`` serves the exact scene and an annotator's imperfect view of it. ``evidence``
names the things an answer depends on: their visible pixels are the exact importance map.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import ClassVar

import numpy as np

from workers.world.scene import HUES, SHAPES, Thing

MARGIN = 4.0
"""How many pixels left or right a centre must lie to count as beside, not above or below."""


@dataclass(frozen=True)
class Look:
    """Something as seen: a thing, and whether the onlooker noticed it at all."""

    thing: Thing
    noticed: bool = True


View = Sequence[Look]


def plain_view(things: Sequence[Thing]) -> View:
    """What a perfect onlooker sees."""
    return [Look(thing) for thing in things]


@dataclass(frozen=True)
class Question(ABC):
    """A question about one scene; things are referred to by their index."""

    kind: ClassVar[str]
    question_type: ClassVar[str]
    """The opening words, as the official files classify questions."""
    answer_type: ClassVar[str]

    @classmethod
    @abstractmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Question"]:
        """Every question of this kind that has one clear meaning on this scene."""

    @abstractmethod
    def text(self, things: Sequence[Thing]) -> str: ...

    @abstractmethod
    def answer(self, view: View) -> str: ...

    @abstractmethod
    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        """Indices of the things whose pixels decide the answer."""


@dataclass(frozen=True)
class Color(Question):
    """What color is the X? Evidence: X."""

    kind = "color"
    question_type = "what color is the"
    answer_type = "other"
    index: int

    @classmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Color"]:
        return (cls(i) for i in _unique([thing.shape for thing in things]))

    def text(self, things: Sequence[Thing]) -> str:
        return f"What color is the {things[self.index].shape}?"

    def answer(self, view: View) -> str:
        return view[self.index].thing.color

    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        return frozenset({self.index})


@dataclass(frozen=True)
class Shape(Question):
    """What shape is the Y thing? Evidence: that thing."""

    kind = "shape"
    question_type = "what shape is the"
    answer_type = "other"
    index: int

    @classmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Shape"]:
        return (cls(i) for i in _unique([thing.color for thing in things]))

    def text(self, things: Sequence[Thing]) -> str:
        return f"What shape is the {things[self.index].color} thing?"

    def answer(self, view: View) -> str:
        return view[self.index].thing.shape

    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        return frozenset({self.index})


@dataclass(frozen=True)
class Exists(Question):
    """Is there a Z? Evidence: every Z; if there is none, whatever shares its color or its shape,
    since that is what must be ruled out; if there is none of those either, everything."""

    kind = "exists"
    question_type = "is there a"
    answer_type = "yes/no"
    color: str
    shape: str

    @classmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Exists"]:
        """Whatever shares at least one property with the scene, so that a glance does not do."""
        colors, shapes = {t.color for t in things}, {t.shape for t in things}
        for color, shape in product(HUES, SHAPES):
            if color in colors and shape in shapes:
                yield cls(color, shape)

    def text(self, things: Sequence[Thing]) -> str:
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"Is there {article} {self.color} {self.shape}?"

    def answer(self, view: View) -> str:
        return "yes" if any(look.noticed and self._is(look.thing) for look in view) else "no"

    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        named = _where(self._is(thing) for thing in things)
        near = _where(t.color == self.color or t.shape == self.shape for t in things)
        return named or near or frozenset(range(len(things)))

    def _is(self, thing: Thing) -> bool:
        return (thing.color, thing.shape) == (self.color, self.shape)


@dataclass(frozen=True)
class Count(Question):
    """How many Xs, how many Y things? Evidence: those counted; if there are none, everything."""

    kind = "count"
    question_type = "how many"
    answer_type = "number"
    color: str = ""
    shape: str = ""

    @classmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Count"]:
        yield cls()
        yield from (cls(color=color) for color in HUES)
        yield from (cls(shape=shape) for shape in SHAPES)

    def text(self, things: Sequence[Thing]) -> str:
        plural = "es" if self.shape == "cross" else "s"
        noun = f"{self.shape or 'thing'}{plural}"
        return f"How many {self.color + ' ' if self.color else ''}{noun} are there?"

    def answer(self, view: View) -> str:
        return str(sum(look.noticed and self._is(look.thing) for look in view))

    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        return _where(self._is(thing) for thing in things) or frozenset(range(len(things)))

    def _is(self, thing: Thing) -> bool:
        return self.color in ("", thing.color) and self.shape in ("", thing.shape)


@dataclass(frozen=True)
class Side(Question):
    """What is left or right of the X? The shape of the nearest thing on that side (centre to
    centre). Evidence: X and that thing."""

    kind = "side"
    question_type = "what is"
    answer_type = "other"
    index: int
    side: str

    @classmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Side"]:
        for index in _unique([(thing.color, thing.shape) for thing in things]):
            for side in ("left", "right"):
                question = cls(index, side)
                if question._neighbour(plain_view(things)) is not None:
                    yield question

    def text(self, things: Sequence[Thing]) -> str:
        return f"What is {self.side} of the {_name(things[self.index])}?"

    def answer(self, view: View) -> str:
        neighbour = self._neighbour(view)
        return "nothing" if neighbour is None else view[neighbour].thing.shape

    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        neighbour = self._neighbour(plain_view(things))
        return frozenset({self.index} if neighbour is None else {self.index, neighbour})

    def _neighbour(self, view: View) -> int | None:
        here = view[self.index].thing
        sign = 1 if self.side == "right" else -1
        beside = [
            (math.hypot(look.thing.x - here.x, look.thing.y - here.y), i)
            for i, look in enumerate(view)
            if look.noticed and sign * (look.thing.x - here.x) > MARGIN
        ]
        return min(beside)[1] if beside else None


@dataclass(frozen=True)
class Bigger(Question):
    """Is the A bigger than the B? Evidence: both."""

    kind = "bigger"
    question_type = "is the"
    answer_type = "yes/no"
    index: int
    other: int

    @classmethod
    def proposals(cls, things: Sequence[Thing]) -> Iterator["Bigger"]:
        named = _unique([(thing.color, thing.shape) for thing in things])
        return (cls(i, j) for i, j in permutations(named, 2))

    def text(self, things: Sequence[Thing]) -> str:
        first, second = _name(things[self.index]), _name(things[self.other])
        return f"Is the {first} bigger than the {second}?"

    def answer(self, view: View) -> str:
        return "yes" if view[self.index].thing.radius > view[self.other].thing.radius else "no"

    def evidence(self, things: Sequence[Thing]) -> frozenset[int]:
        return frozenset({self.index, self.other})


KINDS: dict[str, type[Question]] = {
    kind.kind: kind for kind in (Color, Shape, Exists, Count, Side, Bigger)
}


def same_answer_pairs(things: Sequence[Thing]) -> list[tuple[Question, Question]]:
    """Questions of one kind and one exact answer about different things: two shapes that have the
    same color, or two colors that have the same shape."""
    view = plain_view(things)
    return [
        pair
        for kind in (Color, Shape)
        for pair in combinations(kind.proposals(things), 2)
        if pair[0].answer(view) == pair[1].answer(view)
    ]


def ask_pairs(rng: np.random.Generator, things: Sequence[Thing], count: int) -> list[Question]:
    """At most ``count`` different questions, pair after pair."""
    pairs = same_answer_pairs(things)
    asked: list[Question] = []
    for number in rng.permutation(len(pairs)):
        if len(asked) + 2 <= count and not set(pairs[number]) & set(asked):
            asked += pairs[number]
    return asked


def ask(
    rng: np.random.Generator,
    things: Sequence[Thing],
    frequency: dict[str, float],
    count: int,
    first: Sequence[Question] = (),
) -> list[Question]:
    """Different questions about one scene, beginning with ``first``; within a kind every possible
    answer is as likely.

    Fewer than ``count`` only when the scene allows no more.
    """
    left = {
        kind: [question for question in KINDS[kind].proposals(things) if question not in first]
        for kind in frequency
    }
    asked = list(first)
    while len(asked) < count and any(left.values()):
        kinds = [kind for kind in frequency if left[kind]]
        weights = np.array([frequency[kind] for kind in kinds])
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        question = _by_answer(rng, left[kind], things)
        left[kind].remove(question)
        asked.append(question)
    return asked


def _by_answer(
    rng: np.random.Generator, proposals: list[Question], things: Sequence[Thing]
) -> Question:
    groups: dict[str, list[Question]] = {}
    for question in proposals:
        groups.setdefault(question.answer(plain_view(things)), []).append(question)
    group = groups[sorted(groups)[rng.integers(len(groups))]]
    return group[rng.integers(len(group))]


def _unique(names: Sequence[object]) -> list[int]:
    return [i for i, name in enumerate(names) if names.count(name) == 1]


def _where(flags: Iterator[bool]) -> frozenset[int]:
    return frozenset(i for i, flag in enumerate(flags) if flag)


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"
