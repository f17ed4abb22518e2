"""Occlusion of one image, 16 x 16 cells, three questions, two targets each: ours and Captum's.

    python benchmarks/occlusion.py [--repeats 3] [--questions 3] [--trunk resnet18] [--pixels 224]

Captum's Occlusion explains one question and one target at a time, each with 257 passes of the
model, so it is called six times; its ``perturbations_per_eval`` is the fastest of several. Ours is
one sweep from an empty scene. ``--record`` writes the figures to RESULTS.md.
"""

import numpy as np
from against_captum import QUESTIONS, Asked, in_turn, kazemi, options, report, scene, timed
from captum import attr

from workers.methods.base import Row, Scene
from workers.methods.occlusion import Occlusion
from workers.models.kazemi import Kazemi
from workers.sweep.windows import grid_windows, paint

GRID = 16
PERTURBATIONS = (1, 4, 8, 16, 32, 64)


def ours(model: Kazemi, questions: int) -> np.ndarray:
    return Occlusion(grid=GRID).explain(scene(model, QUESTIONS[:questions])).arrays["drop"]


def captum_row(asked: Scene, row: Row, per_eval: int, grid: int = GRID) -> np.ndarray:
    """Captum's map of one question and target at the pixels, ``(y, x)``."""
    model = Asked(asked.split, asked.questions[row.question])
    side = asked.model.geometry.input_height
    grey = paint(asked.canvas, grid_windows(side, side, 1), Occlusion().patch)
    window = (3, side // grid, side // grid)
    return (
        attr.Occlusion(lambda pixels: model(pixels).softmax(1))
        .attribute(
            asked.pixels,
            window,
            strides=window,
            baselines=asked.split.normalise(grey),
            target=row.answer,
            perturbations_per_eval=per_eval,
        )[0, 0]
        .numpy()
    )


def captum(asked: Scene, per_eval: int) -> np.ndarray:
    return np.stack([captum_row(asked, row, per_eval) for row in asked.rows])


def fastest_setting(asked: Scene) -> int:
    """Of ``perturbations_per_eval``, on a 8 x 8 grid."""

    def cost(per_eval: int) -> float:
        runs = [timed(lambda: captum_row(asked, asked.rows[0], per_eval, 8)) for _ in range(2)]
        return min(seconds for seconds, _ in runs)

    return min(PERTURBATIONS, key=cost)


def main() -> None:
    chosen = options(__doc__, repeats=3)
    model = kazemi(chosen.trunk, chosen.pixels)
    asked = scene(model, QUESTIONS[: chosen.questions])
    per_eval = fastest_setting(asked)
    pairs = in_turn(
        lambda: ours(model, chosen.questions), lambda: captum(asked, per_eval), chosen.repeats
    )
    side = chosen.pixels // GRID
    difference = np.abs(np.kron(pairs.ours, np.ones((1, side, side))) - pairs.theirs).max()
    notes = [
        f"{chosen.trunk}, {chosen.pixels} px, {GRID} x {GRID} cells, {chosen.questions} questions, "
        f"{len(asked.rows)} maps; Captum at `perturbations_per_eval={per_eval}`, its fastest of "
        f"{', '.join(map(str, PERTURBATIONS))}",
        f"largest difference of a drop in probability: {difference:.1e}; largest drop "
        f"{np.abs(pairs.ours).max():.1e}",
    ]
    title = f"Occlusion, {chosen.trunk}, {chosen.pixels} px, questions: {chosen.questions}"
    report(title, pairs, notes, chosen.record)


if __name__ == "__main__":
    main()
