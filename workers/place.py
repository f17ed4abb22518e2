"""Where a dataset's files lie: a path, or a place in a bucket that is used like one."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from workers.errors import Outage, UserError
from workers.objects import CREDENTIALS, Bucket

SCHEME = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST = 1024
"""Bytes of a key; S3 has none longer."""
CONTROL = re.compile(r"[\0-\x1f\x7f]")
"""What a key may not hold: the client sends none of them."""


@dataclass(frozen=True, slots=True)
class BucketPath:
    """``s3://bucket/vqa/images/1.jpg``, with as much of ``pathlib.Path`` as datasets use.

    A missing object is a ``FileNotFoundError`` as on disk; whatever else a bucket answers is an
    ``Outage``. Endpoint and credentials are the environment's, as for a run on a bucket; a key is
    taken literally, nothing in it is decoded.
    """

    bucket: str
    parts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str) -> "BucketPath":
        """The place of a URL; ``ValueError`` where it is none, ``UserError`` with a password."""
        scheme, _, rest = url.partition("://")
        if scheme != "s3":
            raise ValueError(
                f"{scheme:.20}:// is not known; use a path, or s3://bucket/prefix with "
                "AWS_ENDPOINT_URL for another S3-compatible server"
            )
        bucket, _, key = rest.partition("/")
        if "@" in bucket:
            raise UserError(
                "an s3:// URL of the dataset names a user before an '@'; credentials come from "
                f"the environment alone: take them out, and {CREDENTIALS}"
            )
        if not BUCKET.fullmatch(bucket):
            raise ValueError(f"{bucket!r:.80} is no bucket's name; write s3://bucket/prefix")
        return cls(bucket, _parts(key))

    def __str__(self) -> str:
        return "/".join((SCHEME + self.bucket, *self.parts))

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else ""

    @property
    def parents(self) -> Iterator["BucketPath"]:
        """The folders it lies in, the bucket last."""
        return (
            BucketPath(self.bucket, self.parts[:end]) for end in reversed(range(len(self.parts)))
        )

    def __truediv__(self, other: "str | Place") -> "Place":
        """Joined; an absolute path, or another place in a bucket, stands for itself."""
        if isinstance(other, BucketPath):
            return other
        text = str(other)
        if text.startswith(SCHEME):
            return BucketPath.parse(text)
        if text.startswith("/"):
            return Path(text)
        return BucketPath(self.bucket, self.parts + _parts(text))

    def __rtruediv__(self, other: Path) -> "BucketPath":
        return self

    def resolve(self) -> "BucketPath":
        """Without ``..``, which leads no higher than the bucket; ``ValueError`` where no key can
        be so named."""
        kept: list[str] = []
        for part in self.parts:
            if part != "..":
                kept.append(part)
            elif kept:
                kept.pop()
        key = "/".join(kept)
        if len(key.encode()) > LONGEST:
            raise ValueError(f"a key of more than {LONGEST} bytes")
        if CONTROL.search(key):
            raise ValueError("a control character in a key")
        return BucketPath(self.bucket, tuple(kept))

    def read_bytes(self, most: int | None = None) -> bytes:
        """The object's bytes, fetched now; ``TooLargeError`` where there are more than ``most``."""
        with self._asked() as (objects, key):
            return objects.read(key, most)

    def sizes(self) -> dict[str, int | None]:
        """Name -> bytes of what lies directly in it, None for a folder; a request per 1,000."""
        with self._asked() as (objects, key):
            return objects.entries(key)

    def files(self) -> Iterator["BucketPath"]:
        """Every object below it; a request per 1,000."""
        with self._asked() as (objects, key):
            found = objects.sizes(key)
        return (BucketPath(self.bucket, tuple(name.split("/"))) for name in found)

    @contextmanager
    def _asked(self) -> Iterator[tuple[Bucket, str]]:
        """The bucket, and the key in it; its errors told apart."""
        try:
            yield _opened(self.bucket, _environment()), "/".join(self.resolve().parts)
        except (FileNotFoundError, ValueError) as error:  # also a name that no key can have
            missing = errno.ENOENT
            raise FileNotFoundError(missing, os.strerror(missing), str(self)) from error
        except OSError as error:
            raise Outage(str(error)) from error


def _parts(key: str) -> tuple[str, ...]:
    """As pathlib has them: ``a//./b`` is ``a/b``."""
    return tuple(part for part in key.split("/") if part not in ("", "."))


def _environment() -> tuple[tuple[str, str], ...]:
    given = ("AWS_", "VQATLAS_S3_")
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(given)))


@lru_cache(maxsize=16)
def _opened(bucket: str, environment: tuple[tuple[str, str], ...]) -> Bucket:
    """A bucket's client, kept with its connections; another environment has another."""
    return Bucket(f"{SCHEME}{bucket}")


class _Validated:
    """Reads a field as a path or as a place in a bucket; ``Path`` alone would make ``s3:/`` of
    ``s3://``."""

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _validated,
            handler.generate_schema(Path),
            serialization=core_schema.to_string_ser_schema(when_used="json"),
        )


def _validated(given: Any, path: Callable[[Any], Path]) -> "Place":
    if isinstance(given, BucketPath):
        return given
    if isinstance(given, str) and "://" in given:
        return BucketPath.parse(given).resolve()
    if isinstance(given, Path) and given.parts[:1] == ("s3:",):
        raise ValueError("give a bucket's place as text: Path makes s3:/ of s3://")
    return path(given)


Place = Annotated[Path | BucketPath, _Validated()]
"""A field, or an argument, that is either."""


def place(text: str) -> Place:
    """An example's file by its path or URL."""
    return BucketPath.parse(text) if text.startswith(SCHEME) else Path(text)
