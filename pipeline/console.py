"""What the user sees. Ray writes to the process's standard output behind our back; while a run is
on, that goes to a file and only this console reaches the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

console = Console(highlight=False)
"""Set to the real terminal also while ``quiet`` is in force."""


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send everything but the console to ``log``: file descriptors 1 and 2 of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    console.file = terminal
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        console.file = None  # type: ignore[assignment]  # back to whatever sys.stdout is
        terminal.close()
