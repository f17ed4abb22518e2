"""A bucket that refuses, breaks off or says nothing, for good or now and then, and what is left.

``VQATLAS_FAULTS=1 pytest tests/test_bucket_faults.py`` for every pair of a request and a fault.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.verify import verify
from tests import faults
from tests.conftest import Recipe
from tests.faults import SCENES, contents
from tests.proxy import Fault, Proxy, Rule
from tests.runs import assert_same_run
from tests.s3 import BUCKET, reach
from tests.test_faults import STEP
from workers.errors import UserError
from workers.objects import OUTAGE

pytestmark = pytest.mark.slow
FEW = {"attention": {}, "word_gradient": {}}
LASTING: tuple[Fault, ...] = ("500", "403", "silence", "reset", "answer lost")
SAMPLES: dict[str, tuple[Fault, ...]] = {
    "run": ("500", "403", "silence"),
    "retry compacted": ("reset", "answer lost"),
}
"""Command -> the faults at its first, middle and last writes: every request takes its time."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's run leaves Ray's log in the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def proxied(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The same server, through a proxy; clients do not wait long, on a busy machine long enough."""
    with Proxy(endpoint) as proxy:
        reach(monkeypatch, proxy.url)
        monkeypatch.setenv("VQATLAS_S3_TIMEOUT", "3")
        monkeypatch.setenv("VQATLAS_S3_RETRY", "0.5")
        yield proxy


@pytest.mark.parametrize("name", [scene.name for scene in SCENES] if STEP else SAMPLES)
def test_bucket_that_fails_from_any_request_on_is_read_and_mended(
    name: str, proxied: Proxy, here: None
) -> None:
    (scene,) = (scene for scene in SCENES if scene.name == name)
    root = f"s3://{BUCKET}/lasting/{scene.name.replace(' ', '-')}"
    before = faults.prepare(scene, root)
    faults.clone(root, f"{root}-after")
    proxied.begin(None)
    scene.act(f"{root}-after")
    writes, after = proxied.writes, contents(f"{root}-after")
    chosen = LASTING if STEP else SAMPLES[name]
    step = STEP or 1 + writes // len(chosen)
    for turn, number in enumerate(range(1, writes + 1, step)):
        for fault in chosen if STEP else chosen[turn : turn + 1]:
            place = f"{root}-{number}-{fault.replace(' ', '-')}"
            faults.clone(root, place)
            proxied.begin(Rule(fault, first=number, last=None))
            with pytest.raises((UserError, *OUTAGE)) as stopped:
                scene.act(place)
            proxied.begin(None)
            assert place in str(stopped.value)
            faults.mend(scene, place, before, after)
            faults.remove(place)


@pytest.mark.parametrize("fault", ["500", "reset", "answer lost"])
def test_bucket_that_fails_every_other_request_is_asked_again(
    fault: Fault, endpoint: str, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly every write is refused once, or its answer lost, and nobody notices."""
    monkeypatch.setattr("workers.objects.PAUSE", 0.01)
    scene = SCENES[2]
    root = f"s3://{BUCKET}/passing/{fault.replace(' ', '-')}"
    with Proxy(endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        reach(patch, proxy.url)
        proxy.begin(Rule(fault, first=1, last=None, every=2))
        faults.prepare(scene, root)
        scene.act(root)
        assert proxy.writes > 100
        proxy.begin(None)
        seen = contents(root)
        assert verify(root).problems == 0
    plain = str(Path.cwd() / "plain")
    faults.prepare(scene, plain)
    scene.act(plain)
    assert seen == contents(plain)


def test_run_on_a_bucket_that_fails_now_and_then_equals_one_on_disk(
    endpoint: str, recipe: Recipe, here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole pipeline, with a model: run, evaluate, extend, retry, compact, verify."""
    monkeypatch.setattr("workers.objects.PAUSE", 0.01)
    place, folder = f"s3://{BUCKET}/whole", tmp_path / "run"
    narrow, wide = recipe(methods={"attention": {}}), recipe(methods=FEW)
    with Proxy(endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        reach(patch, proxy.url)
        proxy.begin(Rule("500", first=1, last=None, every=3, reads=True))
        for root in (place, folder):
            stages.run(narrow, root)
            stages.evaluate(root)
            assert stages.compact(root)["maps"] == 4
            stages.run(wide, root)
            assert stages.retry(root, whole=[1]).tasks == 2
            stages.evaluate(root)
        proxy.begin(None)
        verdict = verify(place, sample=4)
        assert verdict.problems == 0, [check.first for check in verdict.checks]
        assert_same_run(folder, place)
        key = ["question_id", "method", "target", "metric", "annotator", "value"]
        mine, theirs = (
            Run(root).metrics[key].sort_values(key[:5], ignore_index=True)
            for root in (folder, place)
        )
        pd.testing.assert_frame_equal(mine, theirs)


def test_outage_while_maps_are_evaluated_is_no_examples_fault(
    endpoint: str, recipe: Recipe, here: None
) -> None:
    """Everything but reading a map goes on."""
    place = f"s3://{BUCKET}/evaluated"
    with Proxy(endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        reach(patch, proxy.url)
        patch.setenv("VQATLAS_S3_RETRY", "0.3")
        stages.run(recipe(methods={"attention": {}}, store={"shard_size": 64}), place)
        proxy.begin(Rule("500", first=1, last=None, reads=True, only="/c.0."))
        with pytest.raises(UserError, match=r"evaluate stopped: .* does not answer as it should"):
            stages.evaluate(place)
        proxy.begin(None)
        assert stages.evaluate(place).failed_examples == 0
