"""Occlusion of one image, 16 x 16 cells, three questions, two targets each: ours and Captum's.

    python benchmarks/occlusion.py [--repeats 3] [--questions 3] [--trunk resnet18] [--pixels 224]

Captum's Occlusion explains one question and one target at a time, each with 257 passes of the
model, so it is called six times. Ours is one sweep from an empty scene. Each side has the fastest
of several batch sizes, Captum's being ``perturbations_per_eval``. ``--record`` writes the figures
to RESULTS.md.
"""

from collections.abc import Callable

import numpy as np
from against_captum import QUESTIONS, Asked, in_turn, kazemi, options, report, scene, timed
from captum import attr

from workers.methods.base import Row, Scene
from workers.methods.occlusion import Occlusion
from workers.models.kazemi import Kazemi
from workers.sweep.windows import grid_windows, paint

GRID = 16
BATCHES = (1, 4, 8, 16, 32, 64)


def ours(model: Kazemi, questions: int, batch: int, grid: int = GRID) -> np.ndarray:
    asked = scene(model, QUESTIONS[:questions], batch=batch)
    return Occlusion(grid=grid).explain(asked).arrays["drop"]


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


def fastest(run: Callable[[int], object]) -> int:
    """The batch size with which ``run`` takes least time."""

    def cost(batch: int) -> float:
        return min(timed(lambda: run(batch))[0] for _ in range(2))

    return min(BATCHES, key=cost)


def main() -> None:
    chosen = options(__doc__, repeats=3)
    model = kazemi(chosen.trunk, chosen.pixels)
    asked = scene(model, QUESTIONS[: chosen.questions])
    per_eval = fastest(lambda batch: captum_row(asked, asked.rows[0], batch, GRID // 2))
    batch = fastest(lambda batch: ours(model, chosen.questions, batch, GRID // 2))
    pairs = in_turn(
        lambda: ours(model, chosen.questions, batch),
        lambda: captum(asked, per_eval),
        chosen.repeats,
    )
    side = chosen.pixels // GRID
    difference = np.abs(np.kron(pairs.ours, np.ones((1, side, side))) - pairs.theirs).max()
    notes = [
        f"{chosen.trunk}, {chosen.pixels} px, {GRID} x {GRID} cells, {chosen.questions} questions, "
        f"{len(asked.rows)} maps; batches of {batch} (ours) and {per_eval} (Captum), "
        f"each the fastest of {', '.join(map(str, BATCHES))}",
        f"largest difference of a drop in probability: {difference:.1e}; largest drop "
        f"{np.abs(pairs.ours).max():.1e}",
    ]
    title = f"Occlusion, {chosen.trunk}, {chosen.pixels} px, questions: {chosen.questions}"
    report(title, pairs, notes, chosen.record)


if __name__ == "__main__":
    main()
