"""Pickles that call something when a trusting reader opens them."""

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]
SUNG: list[str] = []
"""What has been called; stays empty."""


def sing(*words: str) -> dict:
    """What the pickles call, in this process."""
    SUNG.append(" ".join(map(str, words)) or "called")
    return {}


class Singer:
    """Sings when it is made, and when its state is set."""

    def __new__(cls, *words: str) -> "Singer":
        sing(*words)
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        sing("state")


HERE = __name__.encode()
EXEC = f"import {__name__} as p; p.sing('exec')"


def _text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def _called(module: bytes, name: bytes, *words: str) -> list[bytes]:
    """Every way in which a pickle says ``module.name(*words)``."""
    arguments = b"".join(map(_text, words))
    found = b"c" + module + b"\n" + name + b"\n"
    stacked = _text(module.decode()) + _text(name.decode()) + b"\x93"
    return [
        found + b"(" + arguments + b"tR",
        stacked + b"(" + arguments + b"tR",
        b"(" + arguments + b"i" + module + b"\n" + name + b"\n",
        b"(" + found + arguments + b"o",
    ]


CALLS = [
    *_called(HERE, b"sing", "la"),
    *_called(HERE, b"Singer", "la"),
    *_called(b"builtins", b"exec", EXEC),
    *_called(b"builtins", b"eval", f"__import__({__name__!r}, fromlist='x').sing('eval')"),
    b"c" + HERE + b"\nSinger\n)\x81",
    b"c" + HERE + b"\nSinger\n)}\x92",
    b"c" + HERE + b"\nSinger\n)\x81}" + _text("a") + _text("b") + b"sb",
    # a call made out of a call: getattr(import_module(HERE), "sing")()
    b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n(" + _text(__name__) + b"tR"
    b"" + _text("sing") + b"tR)R",
]
"""Bodies of pickles: each leaves one object on the stack."""

HARMLESS = [
    b"N",
    b"}",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00)NNNtR",
    b"ctorch._utils\n_rebuild_parameter\n(NNNtR",
    b"ctorch\nSize\n(K\x01tR",
    b"ctorch\ndevice\n(" + _text("cuda") + b"tR",
    b"ctorch\nload\n(" + _text("/etc/passwd") + b"tR",
    b"ctorch.serialization\nadd_safe_globals\n(]cbuiltins\nexec\natR",
    b"Q",
    b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR",
    b"cbuiltins\nset\n(]tR",
    _text("storage") + b"Q",
]
"""What does no harm by itself, and what a reader may or may not allow."""


@st.composite
def programs(draw: Draw) -> bytes:
    """A pickle with calls in a state_dict, or nearly one."""
    key = draw(st.sampled_from(("weights", "module.a", "vocab")))
    bodies = draw(st.lists(st.sampled_from(CALLS + HARMLESS), min_size=1, max_size=4))
    bodies.insert(draw(st.integers(0, len(bodies))), draw(st.sampled_from(CALLS)))
    items = b"".join(_text(f"{key}{i or ''}") + body + b"s" for i, body in enumerate(bodies))
    return draw(st.sampled_from((b"\x80\x02", b"\x80\x04", b""))) + b"}" + items + b"."


def zipped(program: bytes, compressed: bool = False) -> bytes:
    """The pickle as the heart of a file that ``torch.save`` might have written."""
    sink = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return sink.getvalue()


def legacy(program: bytes) -> bytes:
    """The same as files before PyTorch 1.6: magic number, protocol, system, then the pickle."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return magic + pickle.dumps(1001, protocol=2) + pickle.dumps(system, protocol=2) + program
