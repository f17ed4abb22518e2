"""Sanity checks: does a map depend on the model's weights, and on the answer it explains?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from workers.checks.base import (
    Check,
    Explained,
    Passes,
    Subject,
    distinct_rows,
    keeps_graph,
    lot,
    maps_again,
    own_maps,
    scene_like,
)
from workers.checks.stages import cascade, stages
from workers.methods.base import ImageMethod, Row, Scene
from workers.metrics.base import DEGENERATE_MODEL, Scores
from workers.models.base import Capability, VQAModel

DEGENERATE_OTHER = "degenerate_other"
"""The map it is compared with, of the randomised model or of the other answer, is constant."""
NOT_FINITE_OTHER = "not_finite_other"
NO_OTHER = "no_other_answer"


class Sanity(Check):
    """Spearman's rho of a map and the map that the same method makes for the same answer once the
    model's weights are drawn anew, stage after stage from the answer back to the pixels (Adebayo
    et al. 2018, "Sanity Checks for Saliency Maps", section 3). A map that stays as it was does not
    explain this model.

    ``sanity_cascade_<number>_<stage>`` compares magnitudes, as the agreement metrics do;
    ``sanity_cascade_signed_...`` the signed maps (the paper prints both); with ``independent`` one
    stage at a time has new weights (``sanity_independent_...``). The stages are those of
    ``workers/checks/stages.py``.

    ``sanity_target`` and ``sanity_target_signed``: with the map of the model as it is, for another
    answer chosen at random. It stands in for the paper's data randomisation test (section 4), which
    would train a model on shuffled labels. ``sanity_noise``: with noise on the map's own grid, the
    level that says nothing.

    Of a model that writes, the answer stays the text that was explained, and another is one of the
    image's other texts: where it has none the status is ``no_other_answer``.

    At the maps' own resolution, mean ranks for ties; of regions by their values. Approximate
    methods are made exact. A map, or its counterpart, that is constant has no rho:
    ``degenerate_model``, ``degenerate_other``.
    """

    names: ClassVar[tuple[str, ...]] = (
        *("sanity_cascade_*", "sanity_independent_*"),
        *("sanity_target", "sanity_target_signed", "sanity_noise"),
    )
    needs: ClassVar[frozenset[Capability]] = frozenset()
    sample: float = Field(0.1, gt=0, le=1)
    """As of every check: the part of the examples that is examined."""
    order: Literal["cascade", "independent"] = "cascade"
    max_passes: int = Field(256, ge=0)
    """Methods that cost more trunk passes an image are left out: each stage pays them again."""

    def conventions(self) -> str:
        return "Spearman at the map's own resolution, average ranks; weights by reset_parameters()"

    def applies(self, method: ImageMethod, model: VQAModel) -> bool:
        return method.passes(model.geometry) <= self.max_passes

    def passes(self, methods: Mapping[str, ImageMethod], model: VQAModel) -> Passes:
        each = 1 + sum(method.passes(model.geometry) for method in methods.values())
        return Passes((len(stages(model)) + 1) * each, 0)

    def score(
        self, subject: Subject, scene: Scene, explained: Sequence[Explained]
    ) -> dict[str, Scores]:
        exact = [replace(e, method=e.method.exact()) for e in explained]
        own = own_maps(scene, exact)
        noises = [_noise(e, values, self.seed) for e, values in zip(exact, own, strict=True)]
        noise = {"sanity_noise": rho(np.abs, own, noises)}
        rows = distinct_rows(exact)
        results = noise | self._targets(subject, scene, exact, rows)
        for number, (name, model) in enumerate(self._models(subject), start=1):
            bound = model.bound_like(scene.model)
            other = scene_like(scene, rows, model=bound, gradients=keeps_graph(exact))
            again = maps_again(other, exact, rows)
            prefix, suffix = f"sanity_{self.order}", f"_{number:02d}_{name}"
            results[prefix + suffix] = rho(np.abs, own, again)
            results[f"{prefix}_signed{suffix}"] = rho(np.asarray, own, again)
        return results

    def _models(self, subject: Subject) -> list[tuple[str, VQAModel]]:
        def draw() -> list[tuple[str, VQAModel]]:
            drawn = cascade(subject.model, self.seed, self.order == "independent")
            return [(stage.name, model) for stage, model in drawn]

        return subject.once(("cascade", self.seed, self.order), draw)

    def _targets(
        self, subject: Subject, scene: Scene, explained: Sequence[Explained], rows: Sequence[Row]
    ) -> dict[str, Scores]:
        """Against the maps for other answers."""
        answers, ids = len(scene.model.answers) - scene.model.rest, scene.question_ids
        none = {NO_OTHER: np.full(len(explained), answers < 2)}
        others = [_other(row, ids[row.question], answers, self.seed) for row in rows]
        asked = scene_like(scene, others, engine=subject.engine, gradients=keeps_graph(explained))
        own, again = own_maps(scene, explained), maps_again(asked, explained, rows)
        return {
            "sanity_target": rho(np.abs, own, again, none),
            "sanity_target_signed": rho(np.asarray, own, again, none),
        }


def rho(
    view: Callable[[np.ndarray], np.ndarray],
    maps: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    known: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Spearman's rho of each pair, of what ``view`` makes of the maps; ``known`` are faults that
    a pair has whatever the maps are."""
    from scipy.stats import rankdata  # here: it takes a second, of every worker

    finite = np.array([bool(np.isfinite(b).all()) for b in others])
    pairs = [
        (view(a).ravel(), view(b if ok else np.zeros_like(b)).ravel())
        for a, b, ok in zip(maps, others, finite, strict=True)
    ]
    faults = {
        **(known or {}),
        DEGENERATE_MODEL: np.array([np.ptp(a) == 0 for a, _ in pairs], bool),
        NOT_FINITE_OTHER: ~finite,
        DEGENERATE_OTHER: np.array([np.ptp(b) == 0 for _, b in pairs], bool),
    }
    values = np.array([_correlation(rankdata(a), rankdata(b)) for a, b in pairs])
    return Scores.where(values, faults)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale else 0.0


def _other(row: Row, question_id: int, answers: int, seed: int) -> Row:
    """The row for another answer, each as likely; it hangs on question, answer and seed alone."""
    step = 1 + int(lot(question_id, seed + 1) * (answers - 1))
    return Row(row.question, row.target, (row.answer + step) % answers)


def _noise(explained: Explained, values: np.ndarray, seed: int) -> np.ndarray:
    """Uniform noise of the map's shape; not the noise of the ``random`` baseline."""
    return np.random.default_rng([seed, explained.question_id, 1]).random(values.shape)
