"""The commit protocol and the bytes on disk."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from schemas.arrays import ArraySpec
from schemas.example import Example
from schemas.rows import FailureRow, MapRow
from schemas.run import Definition, RunRecord
from schemas.shard import Shard, Task
from workers.errors import UserError
from workers.store import Attempt, Store

GRID = ArraySpec(name="map", dims=("y", "x"), shape=(3, 2))
TOP = ArraySpec(name="top", dims=("y", "x"), shape=(3, 2), dtype="int32", per_target=False)
PIXELS = ArraySpec(name="pixels", dims=("y", "x"), shape=(300, 200), dtype="float16")
CAPACITY = 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run of three shards with one method of three arrays."""
    store = Store(tmp_path / "run")
    store.create(record())
    arrays = (GRID, TOP, PIXELS)
    store.define([Definition(label="m", name="m", parameters={}, kind="image", arrays=arrays)])
    return store


def record(**changes: object) -> RunRecord:
    fields = {
        "recipe": {},
        "dataset": "d",
        "model": "m",
        "targets": ("predicted", "truth"),
        "shard_size": 4,
        "shards": 3,
        "capacity": CAPACITY,
        "examples": 12,
        "images": 4,
    }
    return RunRecord(**{**fields, **changes})


def folder(store: Store) -> Path:
    return Path(store.root)


def staging(attempt: Attempt) -> Path:
    return folder(attempt.store) / "stage" / attempt.folder


def row(question_id: int, shard: int) -> MapRow:
    return MapRow(
        question_id=question_id,
        image_id=1,
        method="m",
        target="predicted",
        answer="yes",
        array="m/map",
        ordinal=shard * CAPACITY,
        target_index=0,
        score="logit",
        status="ok",
        reason=None,
        minimum=0.0,
        maximum=1.0,
        mean=0.5,
        approximation=None,
        fidelity=None,
        scale=1.0,
        checksum=0,
        seconds=0.1,
        device="cpu",
        shard=shard,
        round=task(shard).round,
    )


def task(shard: int, *labels: str) -> Task:
    example = Example(question_id=shard, image_id=shard, image="x", question="q")
    whole = Shard(number=shard, capacity=CAPACITY, examples=(example,))
    return Task(shard=whole, labels=labels or ("m",))


def values(spec: ArraySpec, seed: int) -> np.ndarray:
    middle = (2,) if spec.per_target else ()
    drawn = np.random.default_rng(seed).normal(size=(CAPACITY, *middle, *spec.shape)) * 10
    return drawn.astype(spec.dtype)


def staged(
    store: Store, shard: int, seed: int = 0, retry: tuple[int, ...] | None = None
) -> Attempt:
    attempt = store.attempt("explain", task(shard).model_copy(update={"retry": retry}))
    for spec in (GRID, TOP, PIXELS):
        attempt.add_array("m", spec, values(spec, seed))
    return attempt


def array(store: Store, name: str) -> zarr.Array:
    opened = store.arrays()[f"m/{name}"]
    assert isinstance(opened, zarr.Array)
    return opened


@pytest.mark.parametrize("spec", [GRID, TOP, PIXELS], ids=lambda s: s.name)
def test_committed_shard_reads_back_as_written(spec: ArraySpec, store: Store) -> None:
    assert staged(store, 1, seed=7).commit([row(5, 1)])
    read = array(store, spec.name)
    np.testing.assert_array_equal(read[CAPACITY : 2 * CAPACITY], values(spec, 7))
    untouched = read[:CAPACITY]
    assert (untouched == -1).all() if spec.dtype == "int32" else np.isnan(untouched).all()


def test_shard_bytes_equal_those_zarr_writes_itself(store: Store, tmp_path: Path) -> None:
    """Publishing a chunk file is writing to the array, byte for byte."""
    staged(store, 2, seed=3).commit([row(5, 2)])
    twin = Store(tmp_path / "twin")
    twin.create(record())
    twin.define(store.definitions(["image"]).values())
    for spec in (GRID, TOP, PIXELS):
        written = zarr.open_array(str(folder(twin) / "maps.zarr" / "m" / spec.name), mode="r+")
        written[2 * CAPACITY :] = values(spec, 3)
        key = ".".join(["c", "2", *["0"] * (values(spec, 3).ndim - 1)])
        mine, theirs = (folder(s) / "maps.zarr" / "m" / spec.name / key for s in (store, twin))
        assert mine.read_bytes() == theirs.read_bytes()


def test_flipped_byte_in_a_stored_map_is_noticed(store: Store) -> None:
    staged(store, 0).commit([row(5, 0)])
    path = folder(store) / "maps.zarr" / "m" / "pixels" / "c.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[50] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(Exception, match=r"(?i)checksum"):
        array(store, "pixels")[0]


def test_second_attempt_loses_and_leaves_the_first_ones_bytes(store: Store) -> None:
    first, late = staged(store, 0, seed=1), staged(store, 0, seed=2)
    assert first.commit([row(5, 0)])
    assert not late.commit([row(6, 0)])
    np.testing.assert_array_equal(array(store, "map")[:CAPACITY], values(GRID, 1))
    assert store.read_shard("maps", 0)["question_id"].to_pylist() == [5]
    assert not staging(late).exists()


def test_attempt_that_dies_before_its_commit_leaves_nothing_visible(store: Store) -> None:
    attempt = staged(store, 0)
    assert store.committed("explain") == {}
    assert np.isnan(array(store, "map")[:]).all()
    assert store.recover() == 0
    assert staging(attempt).exists(), "it may be a living worker's"
    staged(store, 0, seed=5).commit([row(5, 0)])
    assert store.recover() == 0
    assert not staging(attempt).exists()
    np.testing.assert_array_equal(array(store, "map")[:CAPACITY], values(GRID, 5))


def test_attempt_that_dies_between_commit_and_publish_is_published_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = staged(store, 1, seed=9)
    monkeypatch.setattr(Store, "publish", lambda *_: None)
    attempt.commit([row(5, 1)])
    monkeypatch.undo()
    assert np.isnan(array(store, "map")[:]).all()
    assert store.recover() == 1
    np.testing.assert_array_equal(array(store, "map")[CAPACITY : 2 * CAPACITY], values(GRID, 9))
    assert store.recover() == 0


def test_retry_replaces_the_committed_rows_and_bytes(store: Store) -> None:
    staged(store, 1, seed=1).commit([row(5, 1)])
    again = staged(store, 1, seed=2, retry=(5,))
    assert again.commit([row(5, 1), row(6, 1)])
    np.testing.assert_array_equal(array(store, "map")[CAPACITY : 2 * CAPACITY], values(GRID, 2))
    assert store.read_shard("maps", 1)["question_id"].to_pylist() == [5, 6]
    assert store.objects.sizes("stage") == {}
    assert store.stale() == {1}


def test_retry_that_dies_before_its_mark_changes_nothing(store: Store) -> None:
    staged(store, 1, seed=1).commit([row(5, 1)])
    staged(store, 1, seed=2, retry=(5,))
    assert store.recover() == 0
    np.testing.assert_array_equal(array(store, "map")[CAPACITY : 2 * CAPACITY], values(GRID, 1))
    assert store.objects.sizes("stage") == {}


def test_retry_that_dies_after_its_mark_is_published_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(store, 1, seed=1).commit([row(5, 1)])
    monkeypatch.setattr(Store, "publish", lambda *_: None)
    staged(store, 1, seed=2, retry=(5,)).commit([row(6, 1)])
    monkeypatch.undo()
    assert store.read_shard("maps", 1)["question_id"].to_pylist() == [5]
    late = staged(store, 1, seed=3, retry=(5,))
    assert not late.commit([row(7, 1)]), "one retry of an attempt counts"
    assert store.recover() == 1
    assert store.read_shard("maps", 1)["question_id"].to_pylist() == [6]
    np.testing.assert_array_equal(array(store, "map")[CAPACITY : 2 * CAPACITY], values(GRID, 2))
    assert store.objects.sizes("stage") == {}


def test_committed_names_labels_per_shard(store: Store) -> None:
    staged(store, 0).commit([row(5, 0)])
    other = store.attempt("explain", task(0, "w", "v"))
    other.commit([])
    assert store.committed("explain") == {0: {"m", "w", "v"}}


def test_attempt_on_a_full_disk_raises_and_commits_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC from the kernel: /dev/full refuses every write."""
    attempt = staged(store, 0)
    real = Path.open

    def full(path: Path, *arguments: object, **options: object) -> object:
        return real(Path("/dev/full"), "wb") if ".tmp-" in path.name else real(path, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device"):
        attempt.commit([row(5, 0)])
    monkeypatch.undo()
    assert store.committed("explain") == {}


def test_empty_column_keeps_its_type(store: Store) -> None:
    attempt = staged(store, 0)
    failure = FailureRow(
        question_id=1, image_id=2, shard=0, round="r", stage="decode", method=None,
        error="E", message="m", traceback="",
    )  # fmt: skip
    attempt.add_rows("failures", [failure])
    attempt.commit([row(5, 0)])
    schema = pq.read_schema(next((folder(store) / "failures").glob("*.parquet")))
    assert str(schema.field("method").type) == "string"


def test_store_of_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Store(tmp_path / "x").record()
    assert str(error.value) == (
        f"{tmp_path / 'x'} is not a run: it has no run.json. Make one with "
        f"`python run_pipeline.py run RECIPE --out {tmp_path / 'x'}`."
    )


@pytest.mark.parametrize("field", ["dataset", "model", "capacity", "shards"])
def test_store_of_another_run_is_refused(field: str, store: Store) -> None:
    other = {"dataset": "other", "model": "other", "capacity": 9, "shards": 9}[field]
    with pytest.raises(UserError, match=f"holds another run: it differs in {field} "):
        store.create(record(**{field: other}))


def test_record_whose_dataset_is_no_mapping_is_refused(store: Store) -> None:
    path = folder(store) / "run.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"recipe": {"dataset": None}}))
    with pytest.raises(UserError, match="its dataset is no mapping"):
        Store(folder(store)).parts()
