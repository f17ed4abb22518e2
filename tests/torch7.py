"""A writer of Torch7 files, after torch7's File.lua, Tensor.c and Storage.c; knows no reader."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {"f4": "Float", "f8": "Double"}


class Cuda(np.ndarray):
    """float32 numbers that are written as ``torch.CudaTensor``."""


def cuda(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(Cuda)


@dataclass
class Writer:
    """What is written so far, and the number of every object that has one."""

    data: bytearray = field(default_factory=bytearray)
    numbers: dict[tuple[str, int], int] = field(default_factory=dict)
    versions: bool = True

    def put(self, form: str, *values: Any) -> None:
        self.data += struct.pack(f"<{form}", *values)

    def text(self, text: str) -> None:
        self.put("i", len(text.encode()))
        self.data += text.encode()

    def write(self, value: Any) -> None:
        if value is None:
            self.put("i", 0)
        elif isinstance(value, bool):
            self.put("ii", 5, value)
        elif isinstance(value, int | float):
            self.put("id", 1, value)
        elif isinstance(value, str):
            self.put("i", 2)
            self.text(value)
        elif isinstance(value, Mapping):
            self.table(value)
        else:
            self.tensor(value)

    def known(self, kind: int, value: object, role: str = "value") -> bool:
        """Writes kind and number; whether the object itself was written before."""
        key = (role, id(value))
        known = key in self.numbers
        self.put("ii", kind, self.numbers.setdefault(key, len(self.numbers) + 1))
        return known

    def table(self, table: Mapping[Any, Any]) -> None:
        if self.known(3, table):
            return
        self.put("i", len(table))
        for key, value in table.items():
            self.write(key)
            self.write(value)

    def tensor(self, values: np.ndarray) -> None:
        if self.known(4, values):
            return
        name = "Cuda" if isinstance(values, Cuda) else CLASSES[values.dtype.str[1:]]
        self.named(f"torch.{name}Tensor")
        base = values if values.base is None or isinstance(values, Cuda) else values.base
        offset = (values.ctypes.data - base.ctypes.data) // values.itemsize
        strides = [stride // values.itemsize for stride in values.strides]
        self.put(
            f"i{values.ndim}q{values.ndim}qq", values.ndim, *values.shape, *strides, offset + 1
        )
        if self.known(4, base, "storage"):
            return
        self.named(f"torch.{name}Storage")
        self.put("q", base.size)
        self.data += np.asarray(base).tobytes()

    def named(self, kind: str) -> None:
        if self.versions:
            self.text("V 1")
        self.text(kind)


def dumps(value: Any, versions: bool = True) -> bytes:
    """The file of a value: None, bool, number, text, mapping, or array of float32 or float64."""
    writer = Writer(versions=versions)
    writer.write(value)
    return bytes(writer.data)


def save(value: Any, path: Path) -> None:
    path.write_bytes(dumps(value))
