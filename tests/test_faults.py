"""A fault at every write of a run, on a folder and on a bucket, and what is left of it.

``VQATLAS_FAULTS=1 pytest tests/test_faults.py`` for every pair of a write and a fault.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.verify import verify
from tests import faults
from tests.conftest import Recipe
from tests.faults import DEATHS, ERRORS, SCENES, assert_between, contents
from tests.proxy import Fault, Proxy, Rule
from tests.runs import assert_same_run
from tests.s3 import BUCKET, reach, served
from workers.errors import UserError
from workers.objects import OUTAGE, Folder
from workers.store import Store

CHOSEN = ("run", "retry compacted", "compact again")
FEW = {"attention": {}, "word_gradient": {}}

REMOTE = [scene for scene in SCENES if os.environ.get("VQATLAS_FAULTS") or scene.name in CHOSEN]
"""What a bucket is tried with: every request takes its time."""
STEP = int(os.environ.get("VQATLAS_FAULTS", "0"))
"""Every so manieth pair is tried; 0 for a sample of them."""
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served() as url:
        yield url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's run leaves Ray's log in the working folder."""
    monkeypatch.chdir(tmp_path)


# --- files, and processes that die ---------------------------------------------------------------


def disturbed(
    place: str, step: int, folder: Path, scenes: Sequence[faults.Scene]
) -> list[dict[str, Any]]:
    """All cases of a place, by a process that can fork: it has no threads."""
    names = [scene.name for scene in scenes]
    command = [sys.executable, "-m", "tests.faults", place, str(STEP or step), *names]
    where = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_mended(
    cases: list[dict[str, Any]], faults: tuple[str, ...], scenes: Sequence[faults.Scene]
) -> None:
    assert [case for case in cases if case["mended"] != "mended"] == []
    assert {case["scene"] for case in cases} == {scene.name for scene in scenes}
    assert {case["fault"] for case in cases} == set(faults)
    for case in cases:
        assert (case["ended"] is None) == (case["fault"] in DEATHS), case


def test_folder_with_a_fault_at_any_write_is_read_and_mended(tmp_path: Path) -> None:
    cases = disturbed(str(tmp_path), 37, tmp_path, SCENES)
    assert_mended(cases, (*DEATHS, *ERRORS), SCENES)


def test_bucket_whose_worker_dies_at_any_write_is_read_and_mended(
    endpoint: str, tmp_path: Path
) -> None:
    cases = disturbed(f"s3://{BUCKET}/deaths", 25, tmp_path, REMOTE[:2])
    assert_mended(cases, DEATHS, REMOTE[:2])


# --- a bucket's own faults -----------------------------------------------------------------------

LASTING: tuple[Fault, ...] = ("500", "403", "silence", "reset", "answer lost")


@pytest.fixture(scope="module")
def proxied(endpoint: str) -> Iterator[Proxy]:
    """The same server, through a proxy; clients do not wait long."""
    with Proxy(endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        reach(patch, proxy.url)
        patch.setenv("VQATLAS_S3_TIMEOUT", "2")
        patch.setenv("VQATLAS_S3_RETRY", "0.5")
        yield proxy


@pytest.mark.parametrize("scene", REMOTE, ids=lambda scene: scene.name)
def test_bucket_that_fails_from_any_request_on_is_read_and_mended(
    scene: faults.Scene, proxied: Proxy, here: None
) -> None:
    root = f"s3://{BUCKET}/lasting/{scene.name.replace(' ', '-')}"
    before = faults.prepare(scene, root)
    faults.clone(root, f"{root}-after")
    proxied.begin(None)
    scene.act(f"{root}-after")
    writes, after = proxied.writes, contents(f"{root}-after")
    step = STEP or 1 + writes // 2
    turn = 2 * REMOTE.index(scene)  # the scenes' samples have each fault among them
    for number in range(1, writes + 1, step):
        for fault in LASTING if STEP else [LASTING[(turn + number // step) % len(LASTING)]]:
            place = f"{root}-{number}-{fault.replace(' ', '-')}"
            faults.clone(root, place)
            proxied.begin(Rule(fault, first=number, last=None))
            with pytest.raises((UserError, *OUTAGE)) as stopped:
                scene.act(place)
            proxied.begin(None)
            assert place in str(stopped.value)
            faults.mend(scene, place, before, after)


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


# --- readers beside a run ------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_reader_and_verify_beside_a_run_see_whole_rows(
    scene: faults.Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every so manieth write of a driver at work: its rows, and no false alarm."""
    before = faults.prepare(scene, str(tmp_path / "run"))
    faults.clone(str(tmp_path / "run"), str(tmp_path / "after"))
    scene.act(str(tmp_path / "after"))
    after = contents(str(tmp_path / "after"))
    looks = _look_on(monkeypatch, lambda: _assert_sound(tmp_path / "run", before, after))
    scene.act(str(tmp_path / "run"))
    monkeypatch.undo()
    assert next(looks) > 6
    assert contents(str(tmp_path / "run")) == after


def _look_on(monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> Iterator[int]:
    """Look after some of this thread's writes; counts them."""
    number, me, step = count(), threading.get_ident(), STEP or 6
    looking = threading.Lock()

    def watched(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            result = write(*arguments)
            own = threading.get_ident() == me and not looking.locked()
            if own and next(number) % step == 0:
                with looking:
                    look()
            return result

        return wrapped

    for name in faults.WRITES:
        monkeypatch.setattr(Folder, name, watched(getattr(Folder, name)))
    return number


def _assert_sound(root: Path, before: faults.Contents, after: faults.Contents) -> None:
    assert_between(contents(str(root)), before, after)
    if Store(root).exists:
        verdict = verify(root)
        assert verdict.problems == 0, [check.first for check in verdict.checks if check.problems]
