"""Which example killed its worker: notes that outlive the worker, and the driver."""

import uuid
from collections import Counter

from workers.objects import Objects

FATAL = 2
"""Deaths at one image after which it is left out."""


class Crashes:
    """Notes under ``crumbs/`` (where a worker is) and ``crashes/`` (where one has died)."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def breadcrumb(self, shard: int, image_id: int | None) -> None:
        """A worker is at a shard, and at which image if only one can be to blame for its death."""
        text = "" if image_id is None else str(image_id)
        self.objects.put(f"crumbs/{shard:07d}", text.encode())

    def finished(self, shard: int) -> None:
        """The worker has left the shard alive."""
        self.objects.delete(f"crumbs/{shard:07d}")

    def interrupted(self, shard: int) -> bool:
        """Whether a worker has died at the shard, or with its driver."""
        return self.objects.exists(f"crumbs/{shard:07d}")

    def last_image(self, shard: int) -> int | None:
        """The image a dead worker was at, if that is known."""
        try:
            text = self.objects.read(f"crumbs/{shard:07d}").decode()
        except FileNotFoundError:
            return None
        return int(text) if text else None

    def count(self, shard: int, image_id: int) -> None:
        """A worker process died at an image; its note is spent, the next leaves its own."""
        self.objects.put(f"crashes/{shard:07d}-{image_id}-{uuid.uuid4().hex[:8]}", b"")
        self.breadcrumb(shard, None)

    def forgive(self, shard: int) -> None:
        """Forget the deaths of a shard, so that all of it is tried again."""
        for name in self.objects.starting("crashes", f"{shard:07d}-"):
            self.objects.delete(f"crashes/{name}")

    def quarantine(self) -> dict[int, tuple[int, ...]]:
        """Shard -> images that have killed their worker too often."""
        deaths = Counter(name.rsplit("-", 1)[0] for name in self.objects.names("crashes"))
        found: dict[int, tuple[int, ...]] = {}
        for key in sorted(key for key, count in deaths.items() if count >= FATAL):
            shard, image = map(int, key.split("-"))
            found[shard] = (*found.get(shard, ()), image)
        return found
