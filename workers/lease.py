"""One driver a run: a lease that says who, and runs out when its holder dies.

Leases are numbered objects ``drivers/<number>.json``; the highest number holds the run. Taking one
is a conditional write of the next number, so that of two drivers one wins on a folder and on a
bucket alike. The number fences: a worker of an earlier driver commits nothing any more.
"""

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from schemas.base import Frozen
from workers.errors import UserError
from workers.objects import Objects

BEAT = 5.0
"""Seconds between a driver's signs of life."""
LIFETIME = 30.0
"""Seconds without one after which another driver may take over."""


_HELD: set[str] = set()
"""Tokens of the leases that this process holds."""


class Holder(Frozen):
    """Who drives a run."""

    host: str
    pid: int
    started: float
    """When the process started, seconds since 1970: a pid alone may be another process's now."""
    place: str
    """Kernel and process namespace: where ``pid`` means something."""
    command: str
    since: float
    beat: float
    """Last sign of life."""
    released: bool = False
    token: str

    def __str__(self) -> str:
        then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        age = max(0.0, time.time() - self.beat)
        return (
            f"`{self.command}` on {self.host}, process {self.pid}, since {then}, "
            f"last sign of life {age:.0f} s ago"
        )

    @property
    def dead(self) -> bool:
        """Known at once on the same machine; elsewhere when its signs of life have stopped."""
        if self.released:
            return True
        if self.place == here() and self.pid == os.getpid():
            return self.token not in _HELD  # let go, and that could not be written
        if self.place == here():
            return not _runs(self.pid, self.started)
        return time.time() - self.beat > LIFETIME


class Lease:
    """This process's hold on a run, renewed by a thread until it is released."""

    def __init__(self, objects: Objects, command: str) -> None:
        self.objects, self.lost = objects, ""
        self.holder = _myself(command)
        self.number = _take(objects, self.holder)
        _HELD.add(self.holder.token)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        _HELD.discard(self.holder.token)
        with suppress(OSError):  # unwritten, it runs out by itself
            if not self.lost:
                self._write(released=True)

    def check(self) -> None:
        """Stop a driver that has lost its run to another."""
        if self.lost:
            raise UserError(f"{self.objects}: {self.lost}")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                if current(self.objects) != self.number:
                    self.lost = "another driver has taken this run over; this one stops"
                    return
                self._write()
            except OSError as error:
                if time.time() - self.holder.beat > LIFETIME:
                    self.lost = f"this driver's signs of life cannot be written any more: {error}"
                    return

    def _write(self, released: bool = False) -> None:
        holder = self.holder.model_copy(update={"beat": time.time(), "released": released})
        self.objects.put(_key(self.number), holder.model_dump_json().encode())
        self.holder = holder


def holder(objects: Objects) -> Holder | None:
    """Who holds the run now; None if nobody does."""
    found = _latest(objects)[1]
    return None if found is None or found.dead else found


def _latest(objects: Objects) -> tuple[int, Holder | None]:
    """Number and holder of the latest lease; looked up again if a driver takes over meanwhile."""
    while number := current(objects):
        with suppress(FileNotFoundError):
            return number, _read(objects, number)
    return 0, None


def current(objects: Objects) -> int:
    """Number of the latest lease, 0 where there was none."""
    numbers = [int(name.removesuffix(".json")) for name in objects.names("drivers")]
    return max(numbers, default=0)


def check_fence(objects: Objects, driver: int) -> None:
    """Refuse a commit of a worker whose driver has been replaced by another."""
    latest = current(objects) if driver else 0
    if latest > driver:
        raise SupersededError(
            f"{objects}: driver {latest} has taken over from driver {driver}, which gave out this "
            "task; nothing was committed"
        )


class SupersededError(UserError):
    """A worker's driver is no longer the run's."""


def here() -> str:
    """This kernel and process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {namespace.readlink()}"


def _take(objects: Objects, myself: Holder) -> int:
    number, other = _latest(objects)
    if other is not None and not other.dead:
        raise UserError(
            f"{objects} is being written by {other}. Wait for it or stop it first; if it is dead, "
            f"its lease runs out {LIFETIME:.0f} s after its last sign of life."
        )
    if not objects.put_new(_key(number + 1), myself.model_dump_json().encode()):
        raise UserError(
            f"{objects}: {_latest(objects)[1]} has taken this run in the same moment. "
            "Wait for it or stop it first."
        )
    for name in objects.names("drivers"):
        if int(name.removesuffix(".json")) <= number:
            objects.delete(f"drivers/{name}")
    return number + 1


def _read(objects: Objects, number: int) -> Holder:
    try:
        return Holder.model_validate_json(objects.read(_key(number)))
    except ValidationError:
        raise UserError(
            f"{objects}/{_key(number)} is damaged, so it cannot be told whether a driver is at "
            "work. Delete it if none is."
        ) from None


def _myself(command: str) -> Holder:
    now = time.time()
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        place=here(),
        command=command,
        since=now,
        beat=now,
        token=uuid.uuid4().hex,
    )


def _runs(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _key(number: int) -> str:
    return f"drivers/{number:07d}.json"
