"""What is kept of measurements, and the GPU's gather, which an interpreter runs on the CPU."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workers.sweep import machine

CPU = torch.device("cpu")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and a process that has measured nothing."""
    monkeypatch.setenv("VQATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would start."""
    monkeypatch.setattr(machine, "_KNOWN", {})
    monkeypatch.setattr(machine, "_NEW", {})


def test_number_is_measured_once_and_survives_the_process(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    assert machine.once("rate", CPU, lambda: 7.0) == 7
    assert machine.once("rate", CPU, lambda: 8.0) == 7
    machine.save()
    forget(monkeypatch)
    assert machine.once("rate", CPU, lambda: 9.0) == 7


def test_two_processes_add_to_one_file(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        forget(monkeypatch)
        machine.once(name, CPU, lambda: 1.0)
        machine.save()
    (path,) = fresh.glob("*.json")
    assert path.read_text() == '{"a": 1.0, "b": 1.0}'


@pytest.mark.parametrize("text", ["", "{", '{"rate": "fast"}', "[1]", "\x00"])
def test_spoilt_file_is_measured_again(
    text: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    machine.once("rate", CPU, lambda: 7.0)
    machine.save()
    (path,) = fresh.glob("*.json")
    path.write_text(text)
    forget(monkeypatch)
    assert machine.once("rate", CPU, lambda: 8.0) == 8


def test_folder_that_cannot_be_made_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQATLAS_CACHE", str(tmp_path / "file" / "cache"))
    forget(monkeypatch)
    assert machine.once("rate", CPU, lambda: 7.0) == 7
    machine.save()


def test_threads_and_version_are_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine.fingerprint(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert machine.fingerprint(CPU) != one
    assert torch.__version__ in one


def test_other_work_of_the_processor_does_not_count_for_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of several threads only the wall knows how long they took together."""
    for threads, clock in ((1, time.thread_time), (2, time.perf_counter)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert machine.clock(CPU) is clock


GATHER = """
import itertools, torch
from workers.sweep.gather import FILL
from workers.sweep.gather_triton import fill
g = torch.Generator().manual_seed(0)
types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
for dtype, skip, border in itertools.product(types, ((1, 1), (2, 2), (1, 3)), (0.0, -torch.inf)):
    clean = torch.randn(9, 11, 7, generator=g).to(dtype)
    changed = torch.randn(5, 3, 4, 7, generator=g).to(dtype)
    table = torch.randint(-3, 8, (5, 4), generator=g, dtype=torch.int32)
    ours, theirs = (torch.empty(5, 6, 5, 7, dtype=dtype) for _ in range(2))
    fill(ours, clean, changed, table, skip, border)
    FILL["cpu"](theirs, clean, changed, table, skip, border)
    assert torch.equal(ours, theirs), (dtype, skip, border)
    assert ours.isfinite().any() and not ours.isnan().any()
"""


def test_triton_gather_equals_the_cpu_one() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", GATHER],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
