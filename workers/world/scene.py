"""A scene: several coloured shapes on a textured ground, and the pixels where each is seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from schemas.base import Frozen

SIDE = 96
"""Height and width of every image in pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 135, 30),
    "yellow": (235, 212, 50),
    "green": (45, 165, 65),
    "teal": (25, 170, 170),
    "blue": (50, 85, 215),
    "purple": (140, 60, 190),
    "pink": (240, 125, 180),
}
"""A ring of hues: each colour's look-alikes are its two neighbours."""
HUES = tuple(COLORS)
SHAPES = ("circle", "square", "triangle", "cross", "star")


class Difficulty(Frozen):
    """How scenes are drawn and which questions are asked about them.

    ``small``, ``faint`` and ``alike`` are the shares of objects with that handicap, ``crowded`` is
    the share of scenes in which objects may hide one another.
    """

    things: tuple[int, int]
    """The fewest and the most objects of a scene."""
    small: float
    small_radius: tuple[float, float]
    faint: float
    faint_opacity: tuple[float, float]
    alike: float
    alike_blend: tuple[float, float]
    crowded: float
    least_visible: float
    """The share of every object's pixels that must stay in sight."""
    questions: dict[str, float]
    """Relative frequency of each kind of question."""


DIFFICULTIES = {
    "standard": Difficulty(
        things=(3, 6),
        small=0.12,
        small_radius=(5.5, 7.5),
        faint=0.08,
        faint_opacity=(0.4, 0.6),
        alike=0.1,
        alike_blend=(0.2, 0.4),
        crowded=0.25,
        least_visible=0.6,
        questions={"color": 3, "shape": 3, "exists": 3, "count": 2, "side": 1, "bigger": 1},
    ),
    "hard": Difficulty(
        things=(4, 6),
        small=0.25,
        small_radius=(4.0, 6.5),
        faint=0.25,
        faint_opacity=(0.15, 0.4),
        alike=0.25,
        alike_blend=(0.3, 0.48),
        crowded=0.6,
        least_visible=0.3,
        questions={"color": 2, "shape": 2, "exists": 2, "count": 3, "side": 4, "bigger": 1},
    ),
}


@dataclass(frozen=True)
class Thing:
    """One object: its names, its centre and radius in pixels, and what makes it hard to see."""

    color: str
    shape: str
    y: float
    x: float
    radius: float
    opacity: float = 1.0
    alike: str = ""
    """The neighbouring hue its colour leans to."""
    blend: float = 0.0
    """How far it leans: 0 is pure, at 0.5 it could be either."""
    visible: float = 1.0
    """The share of its pixels that no later object hides."""

    @property
    def rgb(self) -> np.ndarray:
        pure = np.array(COLORS[self.color], float)
        return pure + self.blend * (np.array(COLORS[self.alike or self.color], float) - pure)

    @property
    def clarity(self) -> float:
        """How plainly the outline is seen, 0..1: in sight, and large enough."""
        return self.visible * min(1.0, self.radius / 8)


@dataclass(frozen=True)
class Scene:
    """An image uint8 ``(y, x, 3)``, its things from back to front, and their visible pixels."""

    image: np.ndarray
    things: tuple[Thing, ...]
    masks: np.ndarray
    """bool ``(thing, y, x)``; disjoint, since a hidden pixel belongs to the thing in front."""

    def mask(self, indices: frozenset[int]) -> np.ndarray:
        """The pixels where any of these things is seen, bool ``(y, x)``."""
        return np.any(self.masks[sorted(indices)], axis=0)


def draw_scene(rng: np.random.Generator, difficulty: Difficulty) -> Scene:
    """Several objects, none of them hidden beyond ``least_visible``, on a textured ground."""
    fewest, most = difficulty.things
    things, masks = _place(rng, difficulty, count=int(rng.integers(fewest, most + 1)))
    canvas = _ground(rng)
    for thing, mask in zip(things, masks, strict=True):
        canvas[mask] += thing.opacity * (thing.rgb - canvas[mask])
    canvas += rng.normal(0, rng.uniform(2, 7), canvas.shape)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), things, masks)


def _place(
    rng: np.random.Generator, difficulty: Difficulty, count: int
) -> tuple[tuple[Thing, ...], np.ndarray]:
    """Objects one in front of the other; a place that would hide too much is drawn again."""
    least = difficulty.least_visible if rng.random() < difficulty.crowded else 1.0
    things: list[Thing] = []
    areas: list[int] = []
    masks = np.zeros((0, SIDE, SIDE), bool)
    while len(things) < count:
        thing = _thing(rng, difficulty)
        outline = _outline(thing)
        remaining = masks & ~outline
        if (remaining.sum((1, 2)) >= least * np.array(areas)).all():
            things.append(thing)
            areas.append(int(outline.sum()))
            masks = np.concatenate([remaining, outline[None]])
    shares = masks.sum((1, 2)) / np.array(areas)
    return tuple(
        replace(thing, visible=float(share)) for thing, share in zip(things, shares, strict=True)
    ), masks


def _thing(rng: np.random.Generator, difficulty: Difficulty) -> Thing:
    small, faint, alike = rng.random(3) < (difficulty.small, difficulty.faint, difficulty.alike)
    radius = rng.uniform(*(difficulty.small_radius if small else (8.0, 14.0)))
    y, x = rng.uniform(radius + 1, SIDE - radius - 2, 2)
    hue = int(rng.integers(len(HUES)))
    return Thing(
        color=HUES[hue],
        shape=SHAPES[rng.integers(len(SHAPES))],
        y=float(y),
        x=float(x),
        radius=float(radius),
        opacity=float(rng.uniform(*difficulty.faint_opacity)) if faint else 1.0,
        alike=HUES[(hue + rng.choice((-1, 1))) % len(HUES)],
        blend=float(rng.uniform(*difficulty.alike_blend)) if alike else 0.0,
    )


def _outline(thing: Thing) -> np.ndarray:
    """Every pixel of a shape, hidden or not: bool ``(y, x)``."""
    picture = Image.new("1", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    x, y, r = thing.x, thing.y, thing.radius
    match thing.shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=1)
        case "square":
            pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=1)
        case "triangle":
            pen.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=1)
        case "cross":
            pen.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=1)
            pen.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=1)
        case "star":
            pen.polygon(_star(x, y, r), fill=1)
    return np.asarray(picture)


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turn = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2, 0.42, 1.1) * radius
    return list(zip(x + reach * np.sin(turn), y - reach * np.cos(turn), strict=True))


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A muted plain, striped, checked or cloudy ground: float ``(y, x, 3)``."""
    base = rng.uniform(115, 235) + rng.uniform(-18, 18, 3)
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))](rng)
    return base + rng.uniform(6, 22) * pattern[..., None]


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((SIDE, SIDE))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return np.sign(np.sin(_ramp(rng) * 2 * np.pi / rng.uniform(6, 20)))


def _checks(rng: np.random.Generator) -> np.ndarray:
    tile = int(rng.integers(4, 13))
    y, x = np.indices((SIDE, SIDE)) // tile
    return np.where((y + x) % 2, 1.0, -1.0)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    blurred = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(2, 7))
    return blurred / np.abs(blurred).max()


def _slope(rng: np.random.Generator) -> np.ndarray:
    ramp = _ramp(rng)
    return ramp / np.abs(ramp).max()


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """Distance along a random direction from the centre, in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.indices((SIDE, SIDE)) - SIDE / 2
    return y * np.sin(angle) + x * np.cos(angle)


_PATTERNS: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
    _plain,
    _stripes,
    _checks,
    _clouds,
    _slope,
)
