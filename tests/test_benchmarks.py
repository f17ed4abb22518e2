"""Every benchmark starts from any folder, by the command that it states."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
START_ALL = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(script, end.code)
"""


def test_each_tells_how_it_is_used(tmp_path: Path) -> None:
    """In one process, because each imports the same libraries for seconds."""
    scripts = sorted(str(path) for path in BENCHMARKS.glob("*.py") if path.stem != "against_captum")
    command = [sys.executable, "-c", START_ALL, *scripts]
    where = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for script in scripts:
        assert f"usage: {Path(script).name}" in done.stdout
        assert f"{script} 0" in done.stdout
