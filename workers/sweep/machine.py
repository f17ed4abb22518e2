"""What was measured on this machine, kept between processes: a small JSON file of numbers.

A file that cannot be read is as good as none: everything in it can be measured again.
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

Numbers = dict[str, float]
_NUMBERS = TypeAdapter(Numbers)
WAIT, SHORT = 5e-3, 50
"""On a GPU runs are timed together until they take so many seconds, or are so many."""


def folder() -> Path:
    """``VQATLAS_CACHE``, or the user's cache folder."""
    given = os.environ.get("VQATLAS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vqatlas"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.machine())


def fingerprint(device: torch.device) -> str:
    """The processor or GPU, the threads used and PyTorch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()} {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def _file(device: torch.device) -> Path:
    digest = hashlib.sha256(fingerprint(device).encode()).hexdigest()[:16]
    return folder() / f"measured-{digest}.json"


_KNOWN: dict[Path, Numbers] = {}
"""What this process has read or measured."""
_NEW: dict[Path, Numbers] = {}
"""What it has not written yet."""


def once(key: str, device: torch.device, measure: Callable[[], float]) -> float:
    """A number measured on this device the first time it is asked for. ``save`` keeps it."""
    path = _file(device)
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        key += " tf32"
    if path not in _KNOWN:
        _KNOWN[path] = _read(path)
    known = _KNOWN[path]
    if key not in known:
        known[key] = _NEW.setdefault(path, {})[key] = measure()
    return known[key]


def save() -> None:
    """Add what is new to the files; readers see an old file or a new one. Where a folder cannot be
    written, the next process measures again."""
    for path, numbers in _NEW.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
                json.dump({**_read(path), **numbers}, file)
            Path(file.name).replace(path)
        except OSError:
            continue
    _NEW.clear()


def _read(path: Path) -> Numbers:
    try:
        return _NUMBERS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The fastest of a few runs, after one that is not counted. Short ones on a GPU are timed many
    together: waiting for it takes time too."""
    run()
    now = clock(device)

    def timed(count: int) -> float:
        start = now()
        for _ in range(count):
            run()
        return (now() - start) / count

    count = 1 if device.type == "cpu" else max(1, min(SHORT, int(WAIT / timed(1))))
    return min(timed(count) for _ in range(repeats))


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds on the wall, of a GPU when it has done its work; of one thread those that it ran,
    whatever else the processor did meanwhile."""
    if device.type == "cuda":
        return partial(_waited, device)
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _waited(device: torch.device) -> float:
    torch.cuda.synchronize(device)
    return time.perf_counter()


def free_memory(device: torch.device) -> int:
    """Bytes that could be used now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(pages, _container_room())


def _container_room() -> int:
    """Bytes that the control group still allows."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    text = limit.read_text().strip() if limit.exists() else "max"
    return sys.maxsize if text == "max" else max(0, int(text) - int(used.read_text()))
