"""A fault at every write of a run, and what is left of it.

``VQATLAS_FAULTS=1 pytest tests/test_faults.py`` for every pair of a write and a fault;
``tests/test_bucket_faults.py`` has what only a bucket can do.
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

import pytest

from pipeline.verify import verify
from tests import faults
from tests.faults import DEATHS, ERRORS, SCENES, assert_between, contents
from tests.s3 import BUCKET
from workers.objects import Folder
from workers.store import Store

STEP = int(os.environ.get("VQATLAS_FAULTS", "0"))
"""Every so manieth pair is tried; 0 for a sample of them."""
REPOSITORY = Path(__file__).parents[1]


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


@pytest.mark.slow
def test_folder_with_a_fault_at_any_write_is_read_and_mended(tmp_path: Path) -> None:
    cases = disturbed(str(tmp_path), 61, tmp_path, SCENES)
    assert_mended(cases, (*DEATHS, *ERRORS), SCENES)


@pytest.mark.parametrize("scene", SCENES if STEP else SCENES[:1], ids=lambda scene: scene.name)
def test_bucket_whose_worker_dies_at_any_write_is_read_and_mended(
    scene: faults.Scene, endpoint: str, tmp_path: Path
) -> None:
    """Every request takes its time: one command unless more are asked for."""
    cases = disturbed(f"s3://{BUCKET}/deaths", 25, tmp_path, [scene])
    assert_mended(cases, DEATHS, [scene])


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
