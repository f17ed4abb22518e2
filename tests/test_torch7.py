"""Torch7's files: what is read of them, and in what words the rest is refused."""

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import torch7 as writer
from tests.fuzz.bounds import bounds, ceiling
from workers.errors import UserError
from workers.models.torch7 import read_torch7

REMEDY = "copy the file again, or save the plain table of tensors with Torch7's torch.save"
FLAT = np.arange(6, dtype=np.float32) / 3


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_torch7(path)
    return str(caught.value)


def damaged(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "damaged.t7"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("versions", [True, False], ids=["V 1", "the oldest files"])
def test_everything_that_is_written_is_read(tmp_path: Path, versions: bool) -> None:
    inner = {"lr": 3e-4, "gpu": True, "cpu": False, 1: "café", "none": None}
    value = {"opt": inner, "again": inner, "w": FLAT, "d": FLAT.astype(np.float64)}
    value |= {"cuda": writer.cuda(FLAT), "matrix": FLAT.reshape(2, 3).copy(), "part": FLAT[2:5]}
    path = tmp_path / "model.t7"
    path.write_bytes(writer.dumps(value, versions))
    found = read_torch7(path)
    assert list(found) == list(value)
    assert found["opt"] == {**inner, 1: "caf\xc3\xa9"}
    assert found["again"] is found["opt"], "a name met again stands for the same object"
    for name in ("w", "d", "cuda", "matrix", "part"):
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
        assert not found[name].flags.writeable
    assert np.shares_memory(found["part"], found["w"]), "one storage, written once"


def test_table_that_holds_itself_and_a_tensor_without_numbers_are_read(tmp_path: Path) -> None:
    value: dict[str, Any] = {}
    value["me"] = value
    writer.save(value, tmp_path / "loop.t7")
    found = read_torch7(tmp_path / "loop.t7")
    assert found["me"] is found
    empty = struct.pack("<iii", 4, 1, 3) + b"V 1" + struct.pack("<i", 17) + b"torch.FloatTensor"
    empty += struct.pack("<iqi", 0, 1, 0)
    assert read_torch7(damaged(tmp_path, empty)).shape == (0,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04", "is no file of Torch7's torch.save, or was not written on a little-endian"),
        (b"3\n1\n3\n", "is a Torch7 file in ASCII; save it with torch.save in its default"),
        (struct.pack("<iii", 3, 1, 10**9), "byte 12: a table of 1000000000 entries in a file with"),
        (struct.pack("<iii", 3, 1, -1), "byte 12: a table of -1 entries"),
        (struct.pack("<iiiii", 4, 1, -7, 0, 0), "byte 12: a string of -7 bytes"),
        (struct.pack("<iiiiii", 3, 1, 1, 8, 0, 0), "byte 16: a Lua function, which would have"),
        (struct.pack("<iiiiii", 3, 1, 1, 9, 0, 0), "byte 16: 9 is no kind of object"),
        (struct.pack("<iiiiii", 3, 1, 1, 0, 0, 0), "byte 16: a table's key is a NoneType"),
        (struct.pack("<iii", 3, 1, 0) + b"more", "byte 12: 4 bytes are left after the object's"),
    ],
)
def test_what_is_no_plain_table_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = damaged(tmp_path, data)
    found = refusal(path)
    assert found.startswith(str(path))
    assert message in found


def test_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.t7"
    assert refusal(path) == (
        f"cannot read the weights {path}: No such file or directory; give the path of a weight file"
    )


def test_object_of_another_class_is_refused(tmp_path: Path) -> None:
    data = writer.dumps({"net": FLAT}).replace(b"torch.FloatTensor", b"nn.SpatialConvol.")
    assert "an object of class 'nn.SpatialConvol.', which is not read" in refusal(
        damaged(tmp_path, data)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ((1, 6, 1, 1), (1, 6, 0, 1), "of sizes (6,) and strides (0,), which is not contiguous"),
        ((1, 6, 1, 1), (1, 2**40, 1, 1), "a tensor takes 1099511627776 numbers from 1 on of 6"),
        ((1, 6, 1, 1), (1, -6, 1, 1), "of sizes (-6,) and strides (1,)"),
        ((1, 6, 1, 1), (1, 6, 1, 2), "a tensor takes 6 numbers from 2 on of 6"),
        ((1, 6, 1, 1), (1, 6, 1, 0), "a tensor takes 6 numbers from 0 on of 6"),
        ((1, 6, 1, 1), (9, 6, 1, 1), "a tensor of 9 dimensions, 8 is the limit"),
    ],
)
def test_tensor_outside_its_storage_is_refused(
    tmp_path: Path, old: tuple[int, ...], new: tuple[int, ...], message: str
) -> None:
    data = writer.dumps(FLAT)
    changed = data.replace(struct.pack("<iqqq", *old), struct.pack("<iqqq", *new))
    assert changed != data
    assert message in refusal(damaged(tmp_path, changed))


def test_storage_of_more_than_the_file_is_refused(tmp_path: Path) -> None:
    data = writer.dumps(FLAT)
    at = len(data) - FLAT.nbytes - 8
    for count in (7, -1, 2**62):
        path = damaged(tmp_path, data[:at] + struct.pack("<q", count) + data[at + 8 :])
        assert f"a storage of {count} numbers in a file with 24 bytes left" in refusal(path)


def test_deep_or_endless_tables_are_refused(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"a": deep}
    many = {"all": dict.fromkeys(range(60_000), True)}
    for value in (deep, many):
        path = damaged(tmp_path, writer.dumps(value))
        assert "more than 32 levels or 100000 values" in refusal(path)


def test_damaged_files_are_read_or_refused_soon_and_small(tmp_path: Path) -> None:
    """Truncations and a thousand flips of bits; tests/test_fuzz.py does more."""
    big = np.zeros(500, np.float32)
    whole = writer.dumps({"opt": {"size": 200, "gpu": True}, "w": FLAT, "b": big})
    generator, path, refused = random.Random(0), tmp_path / "damaged.t7", 0
    cuts = [whole[:end] for end in range(0, len(whole), 7)]
    flips = []
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(450)] ^= 1 << generator.randrange(8)
        flips.append(bytes(data))
    with bounds(ceiling()):
        for data in (*cuts, *flips):
            path.write_bytes(data)
            try:
                read_torch7(path)
            except UserError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > len(cuts) + 500
