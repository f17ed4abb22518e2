"""Time to score importance maps against human maps: 600 examples x 10 maps x 3 annotators.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py [--examples 600] [--processes 2]

Per example: four maps of 448 x 448 pixels and one with 70 % zeros, three of 14 x 14, two of
16 x 16; three annotators' maps of 480 x 640, prepared once for the ten. Every annotator is a pair,
so 600 examples are 18,000 pairs. Wall time is that of the slowest process; CPU time is what a
machine that does nothing else would take. Map generation is excluded.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from scipy.ndimage import gaussian_filter

from workers.metrics.base import Metric
from workers.metrics.rank_correlation import RankCorrelation
from workers.metrics.tang_yuan import TangYuan

METRICS: tuple[Metric, ...] = (RankCorrelation(), TangYuan())
GRIDS = (14, 14, 14, 16, 16)
DISTINCT = 8
"""Examples drawn a process; they are scored in turn."""


def model_maps(rng: np.random.Generator) -> list[np.ndarray]:
    """Ten signed maps."""
    pixels = [rng.standard_normal((448, 448)).astype(np.float32) for _ in range(5)]
    pixels[-1][rng.random((448, 448)) < 0.7] = 0
    return pixels + [rng.standard_normal((side, side)).astype(np.float32) for side in GRIDS]


def human_map(rng: np.random.Generator) -> np.ndarray:
    """An 8-bit map with two blurred blobs on black."""
    blobs = np.zeros((480, 640))
    blobs[rng.integers(0, 480, 2), rng.integers(0, 640, 2)] = 1
    blobs = gaussian_filter(blobs, 40)
    return np.round(255 * blobs / blobs.max()).astype(np.float32)


def score_examples(metric: Metric, count: int, seed: int) -> tuple[float, float]:
    """Wall and CPU seconds to prepare and score ``count`` examples."""
    rng = np.random.default_rng(seed)
    drawn = [(model_maps(rng), [human_map(rng) for _ in range(3)]) for _ in range(DISTINCT)]
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(count):
        models, humans = drawn[i % DISTINCT]
        prepared = metric.prepare(models)
        for human in metric.prepare(humans):
            metric.score(prepared, [human])
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    share = -(-options.examples // options.processes)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for metric in METRICS:
            runs = [pool.submit(score_examples, metric, share, s) for s in range(options.processes)]
            wall, cpu = np.max([run.result() for run in runs], axis=0)
            print(
                f"{type(metric).__name__:16} {options.examples} examples x 10 maps x 3 annotators, "
                f"{options.processes} processes: {wall:.1f} s wall, {cpu:.1f} s CPU each; "
                f"{1000 * cpu / share / 30:.2f} ms CPU a pair"
            )


if __name__ == "__main__":
    main()
