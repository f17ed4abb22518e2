"""Fixtures shared by all tests: real data, a small world, a small model and a Ray cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.executors.environment import prepare
from pipeline.recipe import parse
from schemas.config import RunConfig
from workers.datasets.shapes import Shapes
from workers.models import kazemi
from workers.models.kazemi import KazemiConfig
from workers.models.tokenisers import TOKENISERS
from workers.models.untrained import untrained

SHARED = Path(__file__).parents[2] / "shared" / "data"
METHODS = {
    "occlusion": {"grid": 4},
    "saliency": {},
    "guided_backprop": {},
    "deconvnet": {},
    "grad_cam": {},
    "guided_grad_cam": {},
    "attention": {},
    "word_occlusion": {},
    "word_gradient": {},
}
Recipe = Callable[..., RunConfig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests begin first, so that in the end no process waits long for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def own_measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the engine measures stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQATLAS_CACHE", str(tmp_path_factory.mktemp("measured")))
        yield


@pytest.fixture(scope="session", autouse=True)
def workers_at_work() -> Iterator[None]:
    """Ray's workers give way to all else, which here is tests that wait for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sample data beside the checkout."""
    return SHARED


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes of the embedded world, three questions each."""
    root = tmp_path_factory.mktemp("world")
    list(Shapes(root=root, scenes=8, seed=3).examples())
    return root


@pytest.fixture(scope="session")
def checkpoint(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that knows the world's words and answers and is not near-uniform."""
    examples = list(Shapes(root=world, scenes=8, seed=3).examples())
    words = sorted({w for e in examples for w in TOKENISERS["simple"](e.question)})
    config = KazemiConfig(
        trunk="small",
        channels=(8, 8, 16),
        image_size=48,
        central_fraction=1.0,
        embedding=8,
        state=16,
        attention=16,
        hidden=32,
        tokeniser="simple",
        words=tuple(words),
        answers=tuple(sorted({e.truth for e in examples if e.truth})[1:]),
    )
    model = untrained(config, seed=1)
    with torch.no_grad():
        model.classifier.lin2.weight.mul_(20)
        model.attention.x_conv.weight.mul_(20)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    kazemi.save(model, path)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint by its name, made once: a Hugging Face family's folder, or a file."""
    from tests.capabilities import MAKERS  # and transformers, which few tests need

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("hub") / name
            MAKERS[name](made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def recipe(world: Path, checkpoint: Path) -> Recipe:
    """A small recipe; keyword arguments replace its top-level sections."""

    def make(**sections: Any) -> RunConfig:
        data = {
            "dataset": {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3},
            "model": {"name": "kazemi", "checkpoint": str(checkpoint)},
            "methods": METHODS,
            "metrics": {"rank_correlation": {}, "tang_yuan": {"side": 56}},
            "store": {"shard_size": 7},
            "resources": {"executor": "local"},
        }
        return parse({**data, **sections}, "test recipe")

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session."""
    prepare(address=None)
    import ray  # reads its environment

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of a real S3 server, one for each file of tests."""
    from tests.s3 import served  # and its server, which few tests need

    with served() as url:
        yield url
