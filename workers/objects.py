"""Where a run's bytes lie: a folder, or a prefix of an S3-compatible bucket.

Both are a flat space of keys (``maps/part-0000000-ab.parquet``) with three promises, on which the
commit protocol rests: a key is written whole or not at all; ``put_new`` lets exactly one of many
writers win; what was written survives the writer. Every failure is an ``OSError``.
"""

import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
PROBE = "probe-"
"""So begin the names below ``stage/`` by which a place is tried before a run is made there."""
PAUSE = 0.2
"""Seconds before a bucket is asked again for the first time."""
PART = 16 * 2**20
"""Bytes of a large object that are asked for at once."""
CREDENTIALS = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and the bucket's policy"
)
ENDPOINT = "check AWS_ENDPOINT_URL, and that the server is up"
NO_BUCKET = f"there is no such bucket; make it, or correct the URL; {ENDPOINT}"
OUTAGE = (OSError, exceptions.BaseError)
"""What reading and writing can raise: through Zarr and Arrow obstore's errors come as they are."""


def client() -> dict[str, Any]:
    """How a bucket is asked; plain HTTP only where the user's own endpoint says so.

    ``VQATLAS_S3_TIMEOUT`` is the seconds one request may take (30 unless it is set).
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    limit = timedelta(seconds=_setting("VQATLAS_S3_TIMEOUT", 30))
    return {
        "timeout": limit,
        "connect_timeout": min(limit, timedelta(seconds=5)),
        "allow_http": endpoint.startswith("http://"),
    }


def patience() -> dict[str, Any]:
    """How long a bucket that answers 500, or not at all, is asked again.

    ``VQATLAS_S3_RETRY`` is that time in seconds (60 unless it is set).
    """
    return {
        "max_retries": 8,
        "backoff": {"base": 2, "init_backoff": timedelta(seconds=PAUSE)},
        "retry_timeout": timedelta(seconds=_setting("VQATLAS_S3_RETRY", 60)),
    }


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = 0.0
    if not 0 < value < 86_400:
        raise UserError(f"{name}={text}: give the seconds, more than 0 and less than 86400")
    return value


class TooLargeError(Exception):
    """An object of more bytes than it may have; ``args[0]`` says how many."""


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
    def children(self, folder: str) -> list[str]:
        """Names of the objects and the folders directly in a folder; temporary names left out."""

    @abstractmethod
    def starting(self, folder: str, start: str) -> list[str]:
        """``names`` that begin so, without going through all the others."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one if there is one."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False: somebody else was first.

        One's own write asked for again is won: what counts is whose bytes are there.
        """

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
    def delete_unfinished(self, before: float) -> None:
        """Forget what writers that have died have left; begun before that time, in seconds since
        1970, for there are writers at work."""

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
        return self._scan(folder, os.DirEntry.is_file)

    def children(self, folder: str) -> list[str]:
        return self._scan(folder, lambda entry: True)

    def _scan(self, folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        try:
            with os.scandir(self.path / folder) as entries:
                found = [e.name for e in entries if wanted(e)]
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
            return _holds(self, key, data)
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

    def delete_unfinished(self, before: float) -> None:
        for path in self.path.rglob(f"{TEMPORARY}*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()

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
        self.store = self._store(self.root)

    def _store(self, url: str) -> S3Store:
        with self._errors(""):
            return S3Store.from_url(url, client_options=client(), retry_config=patience())  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.root,)  # credentials stay in each machine's environment

    def read(self, key: str, most: int | None = None) -> bytes:
        """A large object comes in parts, for each request has a time limit; a ``TooLargeError``
        and none of it read where it has more than ``most`` bytes."""
        with self._errors(key):
            whole = obstore.get(self.store, key)
            size, tag = whole.meta["size"], whole.meta["e_tag"]
            if most is not None and size > most:
                raise TooLargeError(size)
            if size <= PART:
                return bytes(whole.bytes())
            ranges = [(start, min(size, start + PART)) for start in range(0, size, PART)]
            return b"".join(
                obstore.get(self.store, key, options={"range": own, "if_match": tag}).bytes()
                for own in ranges
            )

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
        return sorted(name for name, size in self.entries(folder).items() if size is not None)

    def children(self, folder: str) -> list[str]:
        return sorted(self.entries(folder))

    def entries(self, folder: str) -> dict[str, int | None]:
        """Name -> bytes of what lies directly in a folder, None for a folder; a request per
        1,000."""
        with self._errors(folder):
            listed = obstore.list_with_delimiter(self.store, prefix=folder or None)
        sizes: dict[str, int | None] = dict.fromkeys(map(_name, listed["common_prefixes"]))
        return sizes | {_name(item["path"]): item["size"] for item in listed["objects"]}

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
        """Safe to repeat: a write whose answer was lost then finds its own object."""
        try:
            self._again(
                key, lambda: obstore.put(self.store, key, data, mode="create", use_multipart=False)
            )
        except FileExistsError:
            return _holds(self, key, data)
        return True

    def _again(self, key: str, request: Callable[[], object]) -> None:
        """A request that the client does not repeat by itself when its answer is lost: conditional
        writes, and deletions, which are POSTs."""
        end = time.monotonic() + _setting("VQATLAS_S3_RETRY", 60)
        while True:
            try:
                with self._errors(key):
                    request()
                return
            except (PermissionError, FileNotFoundError, FileExistsError):
                raise
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(PAUSE)

    def move(self, source: str, target: str) -> None:
        with self._errors(source):
            obstore.copy(self.store, source, target)
        self.delete(source)

    def delete(self, key: str) -> None:
        self._again(key, lambda: obstore.delete(self.store, key))

    def delete_folder(self, folder: str) -> None:
        if keys := list(self.sizes(folder)):
            self._again(folder, lambda: obstore.delete(self.store, keys))

    def delete_unfinished(self, before: float) -> None:
        """A PUT that was cut off has left nothing."""

    def zarr(self, folder: str) -> ZarrStore:
        return zarr.storage.ObjectStore(self._store(f"{self.root}/{folder}"))

    def arrow(self) -> FileSystem:
        bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        options = {"client_options": client(), "retry_config": patience()}
        # fsspec would give back an instance made when the environment named another server
        files = FsspecStore("s3", **options, skip_instance_cache=True)  # type: ignore[call-overload]
        return SubTreeFileSystem(f"{bucket}/{prefix}", PyFileSystem(FSSpecHandler(files)))

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """obstore's errors as the ``OSError`` that a folder would raise."""
        where = f"{self.root}/{key}"
        try:
            yield
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise OSError(f"{where}: {NO_BUCKET}") from error
            raise FileNotFoundError(f"{where}: no such object") from error
        except (FileExistsError, exceptions.AlreadyExistsError) as error:
            raise FileExistsError(f"{where}: exists already") from error
        except exceptions.BaseError as error:
            kind = PermissionError if refused(error) else OSError
            raise kind(f"{where}: {explain_outage(error)}") from error


def refused(error: Exception) -> bool:
    """Whether a bucket has denied a request; of a listing the client tells it in words only."""
    denials = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    return isinstance(error, denials) or any(f"code: {n}" in str(error) for n in (401, 403))


def told(error: Exception) -> str:
    """An ``OUTAGE`` in a line; a bucket's own errors are explained."""
    return str(error) if isinstance(error, OSError) else explain_outage(error)


def explain_outage(error: Exception) -> str:
    """What a bucket has said, in a line, and what to do about it."""
    said = _first_line(error)
    if "NoSuchBucket" in str(error):
        return NO_BUCKET
    if "169.254.169.254" in said:  # where a cloud's machines ask for credentials
        return f"no credentials ({said}); {CREDENTIALS}"
    if refused(error):
        return f"the bucket refuses ({said}); {CREDENTIALS}"
    return f"the bucket does not answer as it should ({said}); {ENDPOINT}"


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
    key = f"stage/{PROBE}{uuid.uuid4().hex[:12]}"
    won = [objects.put_new(key, token) for token in (b"first", b"second")]
    objects.delete(key)
    if won != [True, False]:
        raise UserError(
            f"{objects}: the store ignores `If-None-Match: *` (a second conditional write of "
            f"{key} was accepted), so two workers could overwrite one another. Use a bucket with "
            "conditional writes, or a shared folder."
        )


def _holds(objects: Objects, key: str, data: bytes) -> bool:
    try:
        return objects.read(key) == data
    except FileNotFoundError:  # the winner has deleted it already
        return False


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(": <?xml")[0][:300]


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
