"""One run under random kills. ``VQATLAS_CHAOS=60 pytest tests/test_chaos.py`` for the long form."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.verify import verify
from schemas.config import RunConfig
from tests import clusters
from tests.chaos import Chaos
from tests.clusters import Nodes
from tests.conftest import Recipe
from tests.runs import assert_same_run
from workers.datasets.shapes import Shapes

KILLS = int(os.environ.get("VQATLAS_CHAOS", "10"))
SCENES = 140
METHODS = {"attention": {}, "saliency": {}, "word_gradient": {}, "occlusion": {"grid": 8}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with clusters.nodes(3) as made:
        yield made


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    list(Shapes(root=root, scenes=SCENES, seed=3).examples())
    return root


def whole(recipe: Recipe, root: Path, executor: str) -> RunConfig:
    """420 examples in 140 shards."""
    return recipe(
        dataset={"name": "shapes", "root": str(root), "scenes": SCENES, "seed": 3},
        methods=METHODS,
        store={"shard_size": 3},
        resources={"executor": executor, "workers": 3, "device": "cpu", "engine": "plain"},
    )


@pytest.mark.slow
def test_run_under_random_kills_equals_an_undisturbed_one(
    cluster: Nodes, scenes: Path, recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    began = time.monotonic()
    file = clusters.recipe_file(whole(recipe, scenes, "ray"), tmp_path)
    chaos = Chaos(cluster, file, out, seed=KILLS)
    chaos.strike(KILLS)
    status = chaos.finish()
    print(json.dumps(chaos.report(began)))
    assert chaos.killed.total() == KILLS
    falsely = Run(out).failed_examples
    assert (status == 1) == (falsely > 0)
    print(f"images left out because kills had struck there twice: {falsely // 3}")
    assert stages.retry(out, ["resources.executor=local"]).failed_examples == 0
    stages.run(whole(recipe, scenes, "local"), tmp_path / "plain")
    assert len(Run(out).examples) == 3 * SCENES
    assert_same_run(tmp_path / "plain", out)
    verdict = verify(out)
    assert verdict.problems == 0, [check.first for check in verdict.checks]
