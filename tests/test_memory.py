"""A worker's memory is bounded by a shard, whatever the dataset's size."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def peak(count: int, world: Path, checkpoint: Path, run: Path) -> int:
    """Kibibytes."""
    arguments = [str(count), str(world), str(checkpoint), str(run)]
    command = [sys.executable, "-m", "tests.memory_probe", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trunk", "way"), [("resnet18", "incremental"), ("vgg11", "incremental"), ("resnet18", "dense")]
)
def test_sweep_takes_the_memory_that_the_plan_states(trunk: str, way: str) -> None:
    command = [sys.executable, "-m", "tests.sweep_probe", trunk, "224", way]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured, stated = map(int, done.stdout.split())
    assert stated / 3 <= measured <= stated


@pytest.mark.slow
def test_worker_memory_does_not_grow_with_the_number_of_examples(
    world: Path, checkpoint: Path, tmp_path: Path
) -> None:
    few = peak(100, world, checkpoint, tmp_path / "few")
    many = peak(2000, world, checkpoint, tmp_path / "many")
    assert many <= 1.05 * few, f"{few / 1024:.0f} MiB at 100 examples, {many / 1024:.0f} at 2,000"
