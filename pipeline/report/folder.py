"""A report's folder: staged beside its place and moved there, so that all see whole files only."""

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from workers.errors import UserError
from workers.objects import TEMPORARY

PAGE = "index.html"
LISTING = "files.json"
"""What the report wrote: what a later one may delete."""


class Folder:
    """Files by name under one root; nothing is visible until ``published`` ends well."""

    def __init__(self, root: Path, staging: Path) -> None:
        self.root = root
        self.staging = staging
        self.sizes: dict[str, int] = {}

    def write(self, name: str, data: bytes) -> None:
        """Stage a file."""
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.sizes[name] = len(data)

    def publish(self) -> None:
        """Every file to its place, the page last; then drop what only an older report had."""
        old = _listed(self.root)
        self.write(LISTING, json.dumps(sorted(self.sizes), indent=0).encode())
        for name in sorted(self.sizes, key=lambda name: name == PAGE):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.staging / name).replace(target)
        for name in old - self.sizes.keys():
            (self.root / name).unlink(missing_ok=True)


@contextmanager
def published(root: Path) -> Iterator[Folder]:
    """A folder to write a report into; on an error the old report stays as it was."""
    staging = root / f"{TEMPORARY}{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
        folder = Folder(root, staging)
        yield folder
        folder.publish()
    except OSError as error:
        raise UserError(
            f"{root}: the report cannot be written there ({error}). Choose another --out."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _listed(root: Path) -> set[str]:
    """Files of an older report; names that lead elsewhere are nobody's."""
    try:
        names = json.loads((root / LISTING).read_text())
    except (OSError, ValueError):
        return set()
    return {name for name in names if isinstance(name, str) and _ours(name)}


def _ours(name: str) -> bool:
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    return inside and (len(path.parts) == 1 or path.parts[0] in ("tables", "figures"))
