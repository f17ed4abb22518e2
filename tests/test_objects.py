"""Folders and buckets keep the same promises."""

import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from tests.proxy import Proxy, Rule
from tests.s3 import BUCKET, reach
from workers.errors import UserError
from workers.objects import (
    TEMPORARY,
    Bucket,
    Folder,
    Objects,
    check_first_writer_wins,
    open_objects,
)


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty place of either kind."""
    if request.param == "folder":
        return open_objects(tmp_path / "run")
    request.getfixturevalue("endpoint")
    return open_objects(f"s3://{BUCKET}/{uuid.uuid4().hex}/run")


def test_what_is_written_is_read(objects: Objects) -> None:
    objects.put("a/b/c", b"first")
    objects.put("a/b/c", b"second")
    assert objects.read("a/b/c") == b"second"
    assert objects.exists("a/b/c")
    objects.put("empty", b"")
    assert objects.read("empty") == b""


def test_what_is_not_there_is_named(objects: Objects) -> None:
    assert not objects.exists("a/b")
    with pytest.raises(FileNotFoundError, match=r"run/a/b"):
        objects.read("a/b")
    with pytest.raises(FileNotFoundError, match=r"run/a/b"):
        objects.move("a/b", "c")
    objects.delete("a/b")
    objects.delete_folder("a")
    assert objects.names("a") == []
    assert objects.starting("a", "b") == []
    assert objects.sizes("a") == objects.sizes("") == {}


def test_folder_is_no_object(objects: Objects) -> None:
    objects.put("a/b/c", b"x")
    assert not objects.exists("a/b")
    assert objects.names("a") == []


def test_first_of_two_new_writes_wins(objects: Objects) -> None:
    assert objects.put_new("a/k", b"first")
    assert not objects.put_new("a/k", b"second")
    assert objects.read("a/k") == b"first"
    assert objects.put_new("a/k", b"first"), "asked for again, as after a lost answer"


def test_of_many_new_writes_at_once_one_wins(objects: Objects) -> None:
    writers = 12
    with ThreadPoolExecutor(writers) as pool:
        for key in map(str, range(5)):
            barrier = Barrier(writers)

            def write(number: int, key: str = key, barrier: Barrier = barrier) -> bool:
                barrier.wait()
                return objects.put_new(f"race/{key}", str(number).encode())

            won = list(pool.map(write, range(writers)))
            assert won.count(True) == 1
            assert objects.read(f"race/{key}") == str(won.index(True)).encode()
    assert objects.names("race") == sorted(map(str, range(5)))


def test_readers_see_a_whole_object_or_another(objects: Objects) -> None:
    """An object replaced over and over is never seen half."""
    size = 2**18
    objects.put("k", b"0" * size)

    def write(number: int) -> None:
        objects.put("k", str(number).encode() * size)

    def read(_: int) -> tuple[int, int]:
        data = objects.read("k")
        return len(data), len(set(data))

    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(write, number) for number in range(10)]
        seen = list(pool.map(read, range(40)))
        [write.result() for write in writes]
    assert set(seen) == {(size, 1)}


def test_moved_object_is_in_its_new_place_only(objects: Objects) -> None:
    objects.put("a", b"old")
    objects.put("b/c", b"replaced")
    objects.move("a", "b/c")
    objects.move("b/c", "d/e/f")
    assert objects.sizes("") == {"d/e/f": 3}
    assert objects.read("d/e/f") == b"old"


def test_names_and_sizes_of_a_folder(objects: Objects) -> None:
    for key in ("t/part-0000001-b", "t/part-0000001-a", "t/part-00000010-a", "t/deep/x", "tt/y"):
        objects.put(key, b"12")
    assert objects.names("t") == ["part-0000001-a", "part-0000001-b", "part-00000010-a"]
    assert objects.starting("t", "part-0000001-") == ["part-0000001-a", "part-0000001-b"]
    assert objects.starting("t", "part-9") == []
    assert sorted(objects.sizes("t")) == [
        "t/deep/x", "t/part-0000001-a", "t/part-0000001-b", "t/part-00000010-a",
    ]  # fmt: skip
    assert set(objects.sizes("").values()) == {2}
    objects.delete_folder("t")
    assert list(objects.sizes("")) == ["tt/y"]
    objects.delete("tt/y")
    assert objects.sizes("") == {}


def test_starting_goes_through_long_listings(objects: Objects) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: objects.put(f"t/{n // 150}-{n:03d}", b""), range(450)))
    assert objects.starting("t", "1-") == [f"1-{n:03d}" for n in range(150, 300)]
    assert len(objects.names("t")) == 450


def test_unfinished_writes_are_not_listed_and_go_with_their_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("t/part-1", b"x")
    (tmp_path / "t" / f"{TEMPORARY}part-2-0123abcd").write_bytes(b"half")
    assert folder.names("t") == folder.starting("t", "") == ["part-1"]
    assert list(folder.sizes("")) == ["t/part-1"]
    folder.delete_folder("t")
    assert not (tmp_path / "t").exists()


def test_writes_leave_no_temporary_names(objects: Objects, tmp_path: Path) -> None:
    objects.put("t/a", b"x")
    objects.put_new("t/b", b"x")
    objects.put_new("t/b", b"y")
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_another_process_gets_the_place_and_no_credentials(objects: Objects) -> None:
    pickled = pickle.dumps(objects)
    again = pickle.loads(pickled)
    again.put("k", b"x")
    assert objects.read("k") == b"x"
    assert str(again) == str(objects)
    assert b"secret" not in pickled


def test_zarr_and_arrow_read_it(objects: Objects) -> None:
    array = zarr.create_array(objects.zarr("m.zarr"), name="a", shape=(4,), dtype="f4", chunks=(2,))
    array[:] = np.arange(4)
    group = zarr.open_group(objects.zarr("m.zarr"), mode="r", zarr_format=3, use_consolidated=False)
    np.testing.assert_array_equal(group["a"][:], np.arange(4))
    assert "m.zarr/a/zarr.json" in objects.sizes("m.zarr")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2]}), sink)
    objects.put("t/one.parquet", sink.getvalue().to_pybytes())
    assert pq.read_table("t/one.parquet", filesystem=objects.arrow())["x"].to_pylist() == [1, 2]


def test_place_that_lets_the_first_writer_win_is_taken(objects: Objects) -> None:
    check_first_writer_wins(objects)
    assert objects.sizes("") == {}


def test_bucket_that_ignores_the_condition_is_refused(endpoint: str) -> None:
    """A server that has never heard of If-None-Match, as older S3-compatible ones."""
    with Proxy(endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.dropped = "If-None-Match"
        reach(patch, proxy.url)
        bucket = Bucket(f"s3://{BUCKET}/ignorant")
        with pytest.raises(UserError, match=r"ignores `If-None-Match: \*`.*shared folder"):
            check_first_writer_wins(bucket)
        assert bucket.sizes("") == {}


def test_bucket_that_refuses_says_so(endpoint: str) -> None:
    with Proxy(endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.rule = Rule("403", first=1, last=None, reads=True)
        reach(patch, proxy.url)
        bucket = Bucket(f"s3://{BUCKET}/forbidden")
        for attempt in (
            lambda: bucket.read("k"),
            lambda: bucket.put("k", b""),
            lambda: bucket.put_new("k", b""),
            lambda: bucket.names(""),
            lambda: bucket.delete("k"),
        ):
            with pytest.raises(PermissionError) as error:
                attempt()
            assert f"s3://{BUCKET}/forbidden/" in str(error.value)
            assert "check AWS_ACCESS_KEY_ID" in str(error.value)
            assert "secret" not in str(error.value)


def test_bucket_that_does_not_exist_is_named(endpoint: str) -> None:
    with pytest.raises(OSError, match=r"s3://nosuch/run/: there is no such bucket; make it, or"):
        Bucket("s3://nosuch/run").names("")


def test_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("VQATLAS_S3_RETRY", "0.2")
    for attempt in (Bucket("s3://b/run").read, lambda key: Bucket("s3://b/run").put_new(key, b"")):
        with pytest.raises(OSError, match=r"s3://b/run/k: .*127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
            attempt("k")


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "1e9"])
def test_time_limit_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQATLAS_S3_TIMEOUT", value)
    with pytest.raises(UserError, match=rf"VQATLAS_S3_TIMEOUT={value}: give the seconds"):
        Bucket("s3://b/run")


def test_place_of_another_scheme_is_refused() -> None:
    with pytest.raises(UserError, match=r"gs:// is not known; use a path, or s3://bucket/prefix"):
        open_objects("gs://bucket/run")
