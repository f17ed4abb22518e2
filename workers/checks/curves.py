"""Deletion and insertion: does the answer hang on the cells that a map calls important?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from workers.checks.base import Check, Explained, Passes, Subject
from workers.checks.parts import Cells, Parts, Regions
from workers.errors import BadExample
from workers.methods.base import ImageMethod, Row, Scene, Score, scores
from workers.metrics.base import DEGENERATE_MODEL, OK, Scores
from workers.models.base import Capability, VQAModel
from workers.sweep import patches

Order = np.ndarray
"""Numbers of parts, the most important first."""


class DeletionInsertion(Check):
    """The answer's probability while the most important cells are painted over one after another
    (deletion), or come back into a wholly painted image (insertion), and the areas under the two
    curves (Petsiuk, Das and Saenko 2018, "RISE", section 4.1 and algorithm 1).

    A good map has a small ``deletion_auc`` and a large ``insertion_auc``. Either is read against
    the same curve with the image's cells in random order: ``deletion_gain`` is random less
    deletion, ``insertion_gain`` insertion less random, so of both more is better and 0 is chance.
    Every ``_auc`` is the trapezoid's area over the fraction of cells, and has its curve beside it
    (``points``).

    As in the paper deletion paints gray and insertion starts from a blurred image. It goes pixel by
    pixel; here the map is first brought to a grid, because a map of 14 x 14 cells has no order
    of pixels. Cells of equal value follow in the image's first random order, not from the top
    left. A map that is constant on the grid has no order: ``degenerate_model``.

    Of a model of regions the regions are deleted and inserted in place of cells, by the map's own
    values of them; one that is deleted has features of zero, and insertion begins with all zero.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset()

    names: ClassVar[tuple[str, ...]] = (
        *("deletion_auc", "deletion_random_auc", "deletion_gain"),
        *("insertion_auc", "insertion_random_auc", "insertion_gain"),
    )
    grid: int = Field(16, ge=2)
    """Cells along each side."""
    steps: int = Field(16, ge=1)
    """Equal parts that the cells are painted in; a curve has one point more."""
    draws: int = Field(4, ge=1)
    """Random orders of an image; their curves are averaged."""
    values: Literal["signed", "absolute"] = "signed"
    """``signed``: evidence against the answer comes last. ``absolute`` as the agreement metrics."""
    curve: Literal["probability", "log_probability"] | None = None
    """What the curves are of. Where none is given the probability, and of a text that a model
    writes its logarithm: a text of some sub-tokens has a probability near 0 whatever is painted."""
    delete_with: patches.Patch = "gray"
    insert_into: patches.Patch = "blur"
    sigma: float = Field(patches.BLUR_SIGMA, gt=0)
    """Of a blur, in shorter sides of the input."""

    def conventions(self) -> str:
        written = "" if self.curve else "; of a written text log_probability"
        return (
            f"{self.curve or 'probability'}; {self.values} map, area down, bilinear up to "
            f"{self.grid}x{self.grid}, ties in random order; {self.steps} steps, trapezoid; "
            f"deleted with {self.delete_with}, inserted into {self.insert_into}; {self.draws} "
            f"random orders{written}; of regions their own values, features of zero"
        )

    def passes(self, methods: Mapping[str, ImageMethod], model: VQAModel) -> Passes:
        return Passes(1 + 2 + 2 * self.draws * (self.steps - 1), 2 * (self.steps - 1))

    def score(
        self, subject: Subject, scene: Scene, explained: Sequence[Explained]
    ) -> dict[str, Scores]:
        parts = Cells(scene, self.grid) if scene.regions is None else Regions(scene, self.grid)
        chance = self._random_orders(scene.canvas, parts.count)
        values = [self._values(parts, e) for e in explained]
        orders = [_ordered(own, chance[0]) for own in values]
        flat = np.array([np.ptp(own) == 0 for own in values])
        fractions = self._counts(parts.count) / parts.count
        results: dict[str, Scores] = {}
        for name, sign in (("deletion", -1), ("insertion", 1)):
            ways = self._ways(scene, parts, name, [*orders, *chance])
            rows = [e.row for e in explained]
            own = np.stack([ways.curve(row, i) for i, row in enumerate(rows)])
            means = {row: ways.mean(row, len(orders), len(chance)) for row in dict.fromkeys(rows)}
            by_chance = np.stack([means[row] for row in rows])
            results |= _areas(name, sign, fractions, own, by_chance, flat)
        return results

    def _values(self, parts: Parts, explained: Explained) -> np.ndarray:
        if not np.isfinite(explained.values).all():
            raise BadExample("a map holds values that are not finite; compute it again")
        if self.values == "absolute":
            explained = explained.magnitudes()
        return parts.values(explained)

    def _random_orders(self, canvas: Tensor, count: int) -> list[Order]:
        numbers = patches.generator(canvas, self.seed)
        return [numbers.permutation(count) for _ in range(self.draws)]

    def _counts(self, count: int) -> np.ndarray:
        """Parts that are gone, or back, at each of the curve's points."""
        return np.array([round(k * count / self.steps) for k in range(self.steps + 1)])

    def _ways(self, scene: Scene, parts: Parts, name: str, orders: Sequence[Order]) -> "_Ways":
        """Every image of every order through the model, equal ones once."""
        deleting, counts = name == "deletion", self._counts(parts.count)
        inner = counts[1:] if deleting else counts[:-1]
        seen = np.full((len(orders), len(inner), parts.count), deleting)
        for i, order in enumerate(orders):
            for k, count in enumerate(inner):
                seen[i, k, order[:count]] = not deleting
        packed, places = np.unique(
            np.packbits(seen, axis=-1).reshape(-1, (parts.count + 7) // 8),
            axis=0,
            return_inverse=True,
        )
        there = np.unpackbits(packed, axis=-1, count=parts.count).astype(bool)
        patch = self.delete_with if deleting else self.insert_into
        logits = parts.logits(there, patches.fill(scene.canvas, patch, self.sigma, self.seed))
        if not torch.isfinite(logits).all():
            raise BadExample(f"{name}: the model's logits on a painted image are not finite")
        score = self.curve or ("probability" if scene.written is None else "log_probability")
        return _Ways(scene, logits, places.reshape(seen.shape[:2]), deleting, score)


@dataclass(frozen=True)
class _Ways:
    """Logits of the painted images, and which of them each order passes through."""

    scene: Scene
    logits: Tensor
    """``(image, question, answer)``."""
    places: np.ndarray
    """``(order, step)`` -> image."""
    deleting: bool
    score: Score

    def curve(self, row: Row, order: int) -> np.ndarray:
        """The row's score along one order, the whole image's own at its end of it."""
        painted = self.logits[torch.from_numpy(self.places[order]), row.question]
        whole = self.scene.output.logits[row.question][None]
        logits = torch.cat([whole, painted] if self.deleting else [painted, whole]).double()
        answers = torch.full((len(logits),), row.answer, device=logits.device)
        return scores(logits, answers, self.score).cpu().numpy()

    def mean(self, row: Row, first: int, count: int) -> np.ndarray:
        """The mean curve of ``count`` orders."""
        return np.mean([self.curve(row, first + i) for i in range(count)], axis=0)


def _ordered(values: np.ndarray, among_equals: Order) -> Order:
    """Parts by falling value; equal ones as the other order has them."""
    rank = np.empty(len(values), int)
    rank[among_equals] = np.arange(len(values))
    return np.lexsort((rank, -values))


def _areas(
    name: str,
    sign: int,
    fractions: np.ndarray,
    own: np.ndarray,
    by_chance: np.ndarray,
    flat: np.ndarray,
) -> dict[str, Scores]:
    """Scores of curves ``(n, point)``; ``sign`` tells which way is better."""
    widths = np.diff(fractions)
    area, chance = ((c[:, 1:] + c[:, :-1]) @ widths / 2 for c in (own, by_chance))
    faults = {DEGENERATE_MODEL: flat}
    known = Scores.where(area, faults)
    curves = [None if constant else c.tolist() for c, constant in zip(own, flat, strict=True)]
    return {
        f"{name}_auc": Scores(known.values, known.statuses, curves),
        f"{name}_random_auc": Scores(chance, [OK] * len(chance), by_chance.tolist()),
        f"{name}_gain": Scores.where(sign * (area - chance), faults),
    }
