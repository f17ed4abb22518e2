"""What a driver did, as JSON lines under ``RUN/log/``: for ``status --watch``, and for people."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from workers.objects import Objects

EVERY = 2.0
"""Seconds between writes; what is urgent is written at once."""
SEGMENT = 2**20
"""Bytes after which a log goes on in another object, for an object is written whole."""


@dataclass
class Journal:
    """The log of one driver: ``log/<driver>-<segment>.jsonl``."""

    objects: Objects
    driver: int
    segment: int = 0
    lines: list[str] = field(default_factory=list)
    size: int = 0
    written: float = 0.0

    def tell(self, event: str, fields: dict[str, Any], urgent: bool = True) -> None:
        """Note an event; times are seconds since 1970, UTC."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)
        self.lines.append(line)
        self.size += len(line) + 1
        if urgent or time.monotonic() - self.written > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what has been told."""
        data = "".join(f"{line}\n" for line in self.lines).encode()
        if data:
            self.objects.put(f"log/{self.driver:07d}-{self.segment:05d}.jsonl", data)
        self.written = time.monotonic()
        if self.size > SEGMENT:
            self.segment, self.lines, self.size = self.segment + 1, [], 0


def read(objects: Objects, last: int) -> list[dict[str, Any]]:
    """The last events of a run, oldest first."""
    events: list[dict[str, Any]] = []
    for name in reversed(objects.names("log")):
        if not name.endswith(".jsonl"):
            continue
        lines = objects.read(f"log/{name}").decode().splitlines()
        events = [*map(json.loads, lines[-last:]), *events]
        if len(events) >= last:
            break
    return events[-last:]
