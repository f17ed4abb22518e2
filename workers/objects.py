"""Where a run's bytes lie: a folder, or a prefix of an S3-compatible bucket.

Both are a flat space of keys (``maps/part-0000000-ab.parquet``) with three promises, on which the
commit protocol rests: a key is written whole or not at all; ``put_new`` lets exactly one of many
writers win; what was written survives the writer. Every failure is an ``OSError``.
"""

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import obstore
import zarr
from obstore import exceptions
from obstore.fsspec import FsspecStore
from obstore.store import S3Store
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem
from zarr.abc.store import Store as ZarrStore

from workers.errors import UserError

TEMPORARY = ".tmp-"
"""Names that begin so are being written; nobody reads them."""
PATIENCE: dict[str, Any] = {
    "max_retries": 8,
    "backoff": {"base": 2, "init_backoff": timedelta(seconds=0.2)},
    "retry_timeout": timedelta(seconds=60),
}
"""How long a bucket that answers 500, or not at all, is asked again."""


def client() -> dict[str, Any]:
    """Time limits of one request; plain HTTP only where the user's own endpoint says so."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    plain = endpoint.startswith("http://")
    return {"timeout": "30s", "connect_timeout": "5s", "allow_http": plain}


class Objects(ABC):
    """Whole objects by key, under one root."""

    root: str
    """As the user wrote it: a path, or ``s3://bucket/prefix``."""
    local: Path | None = None
    """The folder, absolute, where it is one."""

    def __str__(self) -> str:
        return self.root

    @abstractmethod
    def read(self, key: str) -> bytes:
        """An object's bytes; ``FileNotFoundError`` where there is none."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Key -> bytes of everything below a folder, ``""`` for all; temporary names left out."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of the objects directly in a folder, sorted; temporary names left out."""

    @abstractmethod
    def starting(self, folder: str, start: str) -> list[str]:
        """``names`` that begin so, without going through all the others."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one if there is one."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False: somebody else was first."""

    @abstractmethod
    def move(self, source: str, target: str) -> None:
        """Give an object another key, in place of what is there."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Forget an object; none is fine."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Forget everything below a folder, unfinished writes included."""

    @abstractmethod
    def zarr(self, folder: str) -> ZarrStore:
        """A folder as a Zarr store."""

    @abstractmethod
    def arrow(self) -> FileSystem:
        """The root as a pyarrow file system; its paths are keys."""


class Folder(Objects):
    """A folder of a POSIX file system. Files are written beside their place, synced and linked."""

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.local = self.path = Path(root).absolute()

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def exists(self, key: str) -> bool:
        return (self.path / key).is_file()

    def sizes(self, folder: str) -> dict[str, int]:
        return {
            path.relative_to(self.path).as_posix(): size
            for path in (self.path / folder).rglob("*")
            if not path.name.startswith(TEMPORARY) and (size := _file_size(path)) is not None
        }

    def names(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.path / folder) as entries:
                found = [e.name for e in entries if e.is_file()]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.startswith(TEMPORARY))

    def starting(self, folder: str, start: str) -> list[str]:
        return [name for name in self.names(folder) if name.startswith(start)]

    def put(self, key: str, data: bytes) -> None:
        temporary = self._temporary(key, data)
        temporary.replace(self.path / key)
        _sync(temporary.parent)

    def put_new(self, key: str, data: bytes) -> bool:
        temporary = self._temporary(key, data)
        try:
            os.link(temporary, self.path / key)
        except FileExistsError:
            # over NFS a repeated request may find the file that it has made itself
            return os.path.samefile(temporary, self.path / key)  # noqa: PTH121 - of two paths
        finally:
            temporary.unlink()
        _sync(temporary.parent)
        return True

    def _temporary(self, key: str, data: bytes) -> Path:
        folder = (self.path / key).parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{TEMPORARY}{PurePosixPath(key).name}-{uuid.uuid4().hex[:8]}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def move(self, source: str, target: str) -> None:
        final = self.path / target
        final.parent.mkdir(parents=True, exist_ok=True)
        (self.path / source).replace(final)
        _sync(final.parent)

    def delete(self, key: str) -> None:
        (self.path / key).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self.path / folder, ignore_errors=not (self.path / folder).exists())

    def zarr(self, folder: str) -> ZarrStore:
        return zarr.storage.LocalStore(self.path / folder)

    def arrow(self) -> FileSystem:
        return SubTreeFileSystem(str(self.path), LocalFileSystem())


class Bucket(Objects):
    """A prefix of a bucket. One PUT is atomic; ``If-None-Match: *`` makes the first writer win.

    Endpoint, region and credentials come from the environment (``AWS_ENDPOINT_URL``,
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``).
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.store = S3Store.from_url(self.root, client_options=client(), retry_config=PATIENCE)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.root,)  # credentials stay in each machine's environment

    def read(self, key: str) -> bytes:
        with self._errors(key):
            return bytes(obstore.get(self.store, key).bytes())

    def exists(self, key: str) -> bool:
        try:
            with self._errors(key):
                obstore.head(self.store, key)
        except FileNotFoundError:
            return False
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        with self._errors(folder):
            listed = obstore.list(self.store, prefix=folder or None)
            return {item["path"]: item["size"] for batch in listed for item in batch}

    def names(self, folder: str) -> list[str]:
        with self._errors(folder):
            listed = obstore.list_with_delimiter(self.store, prefix=folder or None)
        return sorted(PurePosixPath(item["path"]).name for item in listed["objects"])

    def starting(self, folder: str, start: str) -> list[str]:
        """One request: keys are listed in order from just before the first that can match."""
        found: list[str] = []
        with self._errors(folder):
            before = f"{folder}/{start[:-1]}{chr(ord(start[-1]) - 1)}~"
            for batch in obstore.list(self.store, prefix=folder, offset=before, chunk_size=100):
                names = [item["path"].removeprefix(f"{folder}/") for item in batch]
                found += [n for n in names if n.startswith(start) and "/" not in n]
                if names and not names[-1].startswith(start):
                    break
        return sorted(found)

    def put(self, key: str, data: bytes) -> None:
        with self._errors(key):
            obstore.put(self.store, key, data, use_multipart=False)

    def put_new(self, key: str, data: bytes) -> bool:
        """An answer that was lost is asked for again and then finds our own object: it is won."""
        try:
            with self._errors(key):
                obstore.put(self.store, key, data, mode="create", use_multipart=False)
        except FileExistsError:
            return self.read(key) == data
        return True

    def move(self, source: str, target: str) -> None:
        with self._errors(source):
            obstore.copy(self.store, source, target)
            obstore.delete(self.store, source)

    def delete(self, key: str) -> None:
        with self._errors(key):
            obstore.delete(self.store, key)

    def delete_folder(self, folder: str) -> None:
        keys = list(self.sizes(folder))
        with self._errors(folder):
            if keys:
                obstore.delete(self.store, keys)

    def zarr(self, folder: str) -> ZarrStore:
        inner = S3Store.from_url(
            f"{self.root}/{folder}",
            client_options=client(),  # type: ignore[arg-type]
            retry_config=PATIENCE,  # type: ignore[arg-type]
        )
        return zarr.storage.ObjectStore(inner)

    def arrow(self) -> FileSystem:
        bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        files = FsspecStore("s3", client_options=client(), retry_config=PATIENCE)  # type: ignore[call-overload]
        return SubTreeFileSystem(f"{bucket}/{prefix}", PyFileSystem(FSSpecHandler(files)))

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """obstore's errors as the ``OSError`` that a folder would raise."""
        where = f"{self.root}/{key}"
        try:
            yield
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise FileNotFoundError(f"{where}: no such object") from error
        except (FileExistsError, exceptions.AlreadyExistsError) as error:
            raise FileExistsError(f"{where}: exists already") from error
        except (
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
        ) as error:
            raise PermissionError(
                f"{where}: the bucket refuses ({_first_line(error)}); check the credentials in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the bucket's policy"
            ) from error
        except exceptions.BaseError as error:
            raise OSError(f"{where}: {_first_line(error)}") from error


def open_objects(root: Path | str) -> Objects:
    """A run's place by its path or URL."""
    text = str(root)
    scheme, colon, _ = text.partition("://")
    if not colon:
        return Folder(text)
    if scheme != "s3":
        raise UserError(
            f"{text}: {scheme}:// is not known; use a path, or s3://bucket/prefix with "
            "AWS_ENDPOINT_URL for another S3-compatible server"
        )
    return Bucket(text)


def check_first_writer_wins(objects: Objects) -> None:
    """Refuse a place that ignores the condition of a conditional write: two workers would both
    believe to have won, and one's rows would describe the other's maps."""
    key = f"stage/probe-{uuid.uuid4().hex[:12]}"
    won = [objects.put_new(key, token) for token in (b"first", b"second")]
    objects.delete(key)
    if won != [True, False]:
        raise UserError(
            f"{objects}: the store ignores `If-None-Match: *` (a second conditional write of "
            f"{key} was accepted), so two workers could overwrite one another. Use a bucket with "
            "conditional writes, or a shared folder."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


def _file_size(path: Path) -> int | None:
    """None for a folder, and for what has gone since it was listed."""
    try:
        return None if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
