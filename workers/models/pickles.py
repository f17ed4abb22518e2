"""Pickles of others, as far as they hold nothing but numbers and strings in plain containers."""

import io
import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

from workers.errors import UserError

PLAIN = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "POP",
    "POP_MARK",
    "DUP",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "EMPTY_LIST",
    "LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_DICT",
    "DICT",
    "SETITEM",
    "SETITEMS",
    "PUT",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "GET",
    "BINGET",
    "LONG_BINGET",
}
"""The steps of a pickle that make numbers, strings, lists, tuples and dictionaries. Every other one
can name a class or a function, or claims memory."""
_KEEPS = ("PUT", "BINPUT", "LONG_BINPUT")
_DAMAGED = (
    pickle.UnpicklingError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What pickle and pickletools raise on bytes that are no pickle."""


class _Plain(pickle.Unpickler):
    """Finds nothing by name, should a step that asks for one get this far."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise ValueError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it asks for an object that lies elsewhere")


def read_plain(path: Path, remedy: str) -> Any:
    """What a ``.json`` file or a pickle holds, written by Python 2 or 3. Nothing in it is called:
    a pickle with more than numbers and strings in plain containers is refused before it is read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    try:
        if path.suffix == ".json":
            return json.loads(data)
        _refuse(path, data, remedy)
        return _Plain(io.BytesIO(data), encoding="utf-8").load()
    except _DAMAGED as error:
        kind = "JSON" if path.suffix == ".json" else "a pickle"
        raise UserError(f"{path} is not {kind}, or damaged ({error!s:.200}); {remedy}") from error


def _refuse(path: Path, data: bytes, remedy: str) -> None:
    for step, argument, position in pickletools.genops(data):
        if step.name not in PLAIN:
            raise UserError(
                f"{path}: at byte {position} its pickle has a step {step.name} ({argument!r:.80}), "
                "and only numbers and strings in lists, tuples and dictionaries are read, because "
                f"any other can run code; write it as JSON, or {remedy}"
            )
        if step.name in _KEEPS and int(argument or 0) > len(data):
            raise UserError(
                f"{path}: at byte {position} its pickle claims a place {argument} in memory, the "
                f"whole file has {len(data)} bytes; {remedy}"
            )
