"""The limits one input is read under: seconds, address space and resident memory."""

import faulthandler
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

SECONDS = 5
"""Of processor time, so that a busy machine fails no test; beyond it a reader hangs."""
STUCK = 120
"""Of wall time: what waits, or never comes back from C, ends the process with its traceback."""
MEMORY = 2**30
"""Bytes one input may add to what the process holds: the largest image allowed fits."""
SPACE = 4 * 2**30
"""Bytes of address space that all inputs of a test may add together: what one of them leaves behind
counts against the next, and no bomb takes the machine down."""
STATUS = Path("/proc/self/status")


def _ring(signum: int, frame: object) -> NoReturn:
    """No ``except OSError`` on the way swallows what pytest raises."""
    pytest.fail(f"not read within {SECONDS} s")


def ceiling() -> int:
    """Address space up to which a test may go from here."""
    return _bytes("VmSize") + SPACE


@contextmanager
def bounds(space: int) -> Iterator[None]:
    """Whatever happens inside ends within ``SECONDS`` and ``MEMORY``, or is an error."""
    before = signal.signal(signal.SIGPROF, _ring)
    faulthandler.dump_traceback_later(STUCK, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with _memory(space):
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _memory(space: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (space, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    held = _bytes("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    grown = _bytes("VmHWM") - held
    if grown > MEMORY:
        raise AssertionError(
            f"{grown / 2**20:.0f} MiB were added, {MEMORY / 2**20:.0f} is the limit"
        )


def _bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
