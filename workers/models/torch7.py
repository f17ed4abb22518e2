"""Files of Torch7's ``torch.save``: numbers, strings, truth values, tables and tensors of floats.

The format is torch7's own (``File.lua``, ``generic/Tensor.c``, ``generic/Storage.c``; cutorch's
tensors are written alike), binary, little endian, with 64-bit longs. An object is an int32 that
tells its kind, and then

* 0, nil: nothing; 1, number: a float64; 5, boolean: an int32;
* 2, string: an int32, its length, and its bytes;
* 3, table: an int32 that names the object, an int32 count, keys and values in turn;
* 4, object of a class: a name as a table has, the strings ``V 1`` and the class's, and what the
  class writes. A tensor: an int32, its dimensions; int64 sizes, strides and offset, counted from
  one; its storage, which is an object again. A storage: an int64 count and the values.

A name met before stands for the object that it named. Nothing is executed: a Lua function or an
object of another class is refused, and every length is compared with what is left of the file.
"""

import math
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from workers.errors import UserError

NIL, NUMBER, STRING, TABLE, OBJECT, BOOLEAN = range(6)
HEADS = (struct.pack("<i", TABLE), struct.pack("<i", OBJECT))
FUNCTIONS = (6, 7, 8)
"""Kinds of Lua's functions in the file's three versions."""
DTYPES = {"Float": "<f4", "Double": "<f8", "Cuda": "<f4"}
TENSORS = {f"torch.{kind}Tensor" for kind in DTYPES}
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in DTYPES.items()}
DIMENSIONS = 8
DEPTH = 32
"""Levels of tables in tables; a checkpoint of flat vectors has two."""
VALUES = 100_000
"""Values that are not numbers of a tensor; each takes Python ten times its place in the file."""
ENTRY = 12
"""Bytes that a table's key and value take at least."""
REMEDY = "copy the file again, or save the plain table of tensors with Torch7's torch.save"


def read_torch7(path: Path) -> Any:
    """The object in the file: float, str, bool, None, dict, or a read-only array of a tensor's
    shape. ``UserError`` names the byte at which the file is not what it should be."""
    _check_head(path, _bytes(path, 4))
    reader = _Reader(path, _bytes(path, -1))
    found = reader.value(0)
    if reader.left:
        reader.refuse(f"{reader.left} bytes are left after the object's end")
    return found


def is_torch7(path: Path) -> bool:
    """Whether the file begins like a Torch7 table or object."""
    return _bytes(path, 4) in HEADS


def _bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise UserError(
            f"cannot read the weights {path}: {error.strerror}; give the path of a weight file"
        ) from error


def _check_head(path: Path, head: bytes) -> None:
    if head[:2] in (b"3\n", b"4\n"):
        raise UserError(
            f"{path} is a Torch7 file in ASCII; save it with torch.save in its default, binary mode"
        )
    if head not in HEADS:
        raise UserError(
            f"{path} is no file of Torch7's torch.save, or was not written on a little-endian "
            f"machine; {REMEDY}"
        )


class _Reader:
    """A place in the file, and the objects named so far."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0
        self.named: dict[int, Any] = {}
        self.values = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self.path}, byte {self.at}: {what}; {REMEDY}")

    def value(self, depth: int) -> Any:
        """The object that begins here."""
        self.values += 1
        if depth > DEPTH or self.values > VALUES:
            self.refuse(f"more than {DEPTH} levels or {VALUES} values, too much for a checkpoint")
        kind = self._integer()
        if kind == NUMBER:
            return self._unpack("<d")[0]
        if kind == STRING:
            return self._text()
        if kind == BOOLEAN:
            return self._integer() == 1
        if kind in (TABLE, OBJECT):
            return self._named(kind, depth)
        if kind in FUNCTIONS:
            self.refuse("a Lua function, which would have to be run and is not read")
        if kind != NIL:
            self.refuse(f"{kind} is no kind of object")
        return None

    def _named(self, kind: int, depth: int) -> Any:
        name = self._integer()
        if name not in self.named:
            if kind == TABLE:
                self._table(name, depth)
            else:
                self.named[name] = self._object(depth)
        return self.named[name]

    def _table(self, name: int, depth: int) -> None:
        count = self._integer()
        if not 0 <= count * ENTRY <= self.left:
            self.refuse(f"a table of {count} entries in a file with {self.left} bytes left")
        table = self.named[name] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | float | bool):
                self.refuse(f"a table's key is a {type(key).__name__}, not a text or a number")
            table[key] = self.value(depth + 1)

    def _object(self, depth: int) -> np.ndarray:
        version = self._text()
        kind = self._text() if version.startswith("V ") else version  # the oldest have none
        if kind in STORAGES:
            return self._storage(np.dtype(STORAGES[kind]))
        if kind not in TENSORS:
            self.refuse(f"an object of class {kind!r:.80}, which is not read")
        return self._tensor(depth)

    def _storage(self, dtype: np.dtype) -> np.ndarray:
        (count,) = self._unpack("<q")
        if not 0 <= count * dtype.itemsize <= self.left:
            self.refuse(f"a storage of {count} numbers in a file with {self.left} bytes left")
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def _tensor(self, depth: int) -> np.ndarray:
        dimensions = self._integer()
        if not 0 <= dimensions <= DIMENSIONS:
            self.refuse(f"a tensor of {dimensions} dimensions, {DIMENSIONS} is the limit")
        sizes, strides = (self._unpack(f"<{dimensions}q") for _ in range(2))
        (offset,) = self._unpack("<q")
        storage = self.value(depth + 1)
        if storage is None and not dimensions:
            return np.zeros(0, np.float32)
        if not isinstance(storage, np.ndarray):
            self.refuse(f"a tensor's storage is a {type(storage).__name__}")
        if min(sizes, default=1) < 1 or not _contiguous(sizes, strides):
            self.refuse(f"a tensor of sizes {sizes} and strides {strides}, which is not contiguous")
        start, count = offset - 1, math.prod(sizes) if dimensions else 0
        if storage.ndim != 1 or not 0 <= start <= start + count <= len(storage):
            self.refuse(f"a tensor takes {count} numbers from {offset} on of {storage.size}")
        return storage[start : start + count].reshape(sizes or (0,))

    def _text(self) -> str:
        length = self._integer()
        if not 0 <= length <= self.left:
            self.refuse(f"a string of {length} bytes in a file with {self.left} bytes left")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("latin-1")

    def _integer(self) -> int:
        return self._unpack("<i")[0]

    def _unpack(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        if size > self.left:
            self.refuse(f"the file ends, where {size} bytes more should follow")
        found = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return found


def _contiguous(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the numbers lie row after row without a gap; the stride of a side of one is free."""
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
