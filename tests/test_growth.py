"""A run that goes on after it was finished: more examples, failures retried, fragments merged."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.plan import make_plan
from pipeline.report import facts
from pipeline.verify import verify
from schemas.config import RunConfig
from tests.conftest import Recipe
from tests.forge import forge
from tests.runs import assert_same_run
from workers import compact
from workers.errors import UserError
from workers.store import Store

METHODS = {"saliency": {}, "attention": {}, "word_gradient": {}}


def first(recipe: Recipe, world: Path, limit: int | None, **sections: object) -> RunConfig:
    """The recipe over the world's first examples."""
    dataset = {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3, "limit": limit}
    return recipe(dataset=dataset, methods=METHODS, metrics={"rank_correlation": {}}, **sections)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("growth") / "whole"


@pytest.fixture
def complete(whole: Path, recipe: Recipe, world: Path) -> Path:
    """All examples in one go, evaluated."""
    if not whole.exists():
        stages.run(first(recipe, world, None), whole)
        stages.evaluate(whole)
    return whole


@pytest.fixture
def copy(complete: Path, tmp_path: Path) -> Path:
    """A run of one's own to damage or to merge."""
    shutil.copytree(complete, tmp_path / "copy")
    return tmp_path / "copy"


def assert_sound(root: Path, sample: int = 0) -> None:
    verdict = verify(root, sample)
    assert verdict.problems == 0, [check.first for check in verdict.checks]


def test_finished_run_is_sound(complete: Path) -> None:
    assert_sound(complete, sample=6)


def test_run_grown_twice_equals_one_of_all_examples(
    recipe: Recipe, world: Path, complete: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = []
    for limit in (8, 17, None):
        done.append(stages.run(first(recipe, world, limit), out).tasks)
        stages.evaluate(out)
    assert stages.run(first(recipe, world, None), out).tasks == 0
    assert len(Store(out).parts()) == 3
    assert sum(done) == Store(out).shards
    assert_same_run(complete, out)
    key = ["question_id", "method", "target", "metric", "annotator"]
    rows = Run(out).metrics
    real = rows[rows.method != "shuffled_human"]
    assert not rows.duplicated(key).any()
    assert len(real) == len(Run(complete).metrics.query("method != 'shuffled_human'"))
    assert_sound(out, sample=4)


def test_grown_run_still_takes_the_recipe_it_began_with(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    stages.run(first(recipe, world, 8), tmp_path / "run")
    stages.run(first(recipe, world, 20), tmp_path / "run")
    assert stages.run(first(recipe, world, 8), tmp_path / "run").tasks == 0


def test_dataset_changed_at_its_beginning_is_refused(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    stages.run(first(recipe, world, 8), tmp_path / "run")
    with pytest.raises(UserError, match=r"differs in dataset .* may grow at its end only"):
        stages.run(first(recipe, world, 7), tmp_path / "run")


def damaged(world: Path, folder: Path) -> tuple[Path, bytes]:
    """A copy of the world with an image cut off, and the bytes that belong there."""
    subprocess.run(["cp", "-r", str(world), str(folder)], check=True)
    victim = sorted((folder / "val2014").glob("*.png"))[4]
    good = victim.read_bytes()
    victim.write_bytes(good[: len(good) // 2])
    return victim, good


def test_retry_explains_only_the_failed_and_their_metrics_follow(
    recipe: Recipe, world: Path, complete: Path, tmp_path: Path
) -> None:
    victim, good = damaged(world, tmp_path / "world")
    out = tmp_path / "run"
    stages.run(first(recipe, tmp_path / "world", None), out)
    assert stages.evaluate(out).failed_examples == 3
    before = Run(out)
    victim.write_bytes(good)
    with pytest.raises(UserError, match=r"not the size they were .* `python run_pipeline.py retry"):
        stages.evaluate(out)
    result = stages.retry(out)
    assert (result.tasks, result.failed_examples) == (1, 0)
    after = Run(out)
    assert after.timings.query("stage == 'explain'").examples.sum() == 24 - 6 + 3
    kept = before.maps[before.maps.status != "failed"]
    same = kept.merge(after.maps, on=["question_id", "method", "target"], suffixes=("", "_now"))
    assert len(same) == len(kept)
    assert (same.checksum == same.checksum_now).all()
    assert stages.evaluate(out).tasks == 1
    assert_sound(out)
    assert_same_run(complete, out)
    assert len(Run(out).metrics) == len(Run(complete).metrics)
    assert stages.retry(out).tasks == 0


def test_compacted_tables_have_the_same_rows(complete: Path, copy: Path) -> None:
    merged = stages.compact(copy)
    key = ["question_id", "method", "target", "metric", "annotator", "seconds"]
    for table in ("maps", "words", "metrics", "examples"):
        assert merged[table] == Store(complete).shards
        a, b = (
            f.sort_values([c for c in key if c in f], ignore_index=True)
            for f in (getattr(Run(complete), table), pd.read_parquet(copy / table))
        )
        pd.testing.assert_frame_equal(a, b)
    assert stages.compact(copy) == {}


def test_compacted_run_is_extended_by_a_method_and_has_each_example_once(
    recipe: Recipe, world: Path, copy: Path
) -> None:
    stages.compact(copy)
    dataset = {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3}
    wider = {**METHODS, "grad_cam": {}}
    assert stages.run(recipe(dataset=dataset, methods=wider), copy).tasks > 0
    assert not Run(copy).examples.duplicated("question_id").any()
    assert_sound(copy)


def test_compacted_table_is_cut_into_files_of_a_bounded_length(
    complete: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "FILE", 10)
    stages.compact(copy)
    manifest = Store(copy).manifest("maps")
    assert manifest is not None
    assert len(manifest.files) > 2 * Run(copy).maps.method.nunique()
    assert_sound(copy)
    assert_same_run(complete, copy)


def test_compacted_run_goes_on(recipe: Recipe, world: Path, complete: Path, tmp_path: Path) -> None:
    """Extended, grown and retried after its fragments were merged, and merged again."""
    victim, good = damaged(world, tmp_path / "world")
    out = tmp_path / "run"
    stages.run(first(recipe, tmp_path / "world", 20), out)
    stages.evaluate(out)
    stages.compact(out)
    victim.write_bytes(good)
    assert stages.retry(out).failed_examples == 0
    assert stages.evaluate(out).failed_examples == 0
    assert_sound(out, sample=3)
    for table in ("maps", "words", "metrics", "examples"):  # as readers without our code see them
        assert len(pd.read_parquet(out / table)) == len(getattr(Run(out), table))
    stages.compact(out)
    stages.run(first(recipe, tmp_path / "world", None), out)
    stages.evaluate(out)
    assert_sound(out, sample=3)
    stages.compact(out)
    assert_sound(out)
    assert_same_run(complete, out)
    assert len(pd.read_parquet(out / "maps")) == len(Run(complete).maps)


def test_damage_in_a_compacted_file_is_named_with_its_own_remedy(copy: Path) -> None:
    stages.compact(copy)
    path = sorted((copy / "maps").glob("compact-*.parquet"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    (text,) = [text for check in verify(copy).checks for text in check.first]
    assert text.startswith(f"{path} is damaged")
    assert text.endswith(
        "put it back from a copy of the run, or make the run anew in another --out."
    )


def test_records_left_out_are_those_that_are_bad_now(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    """Through growth, mending and compaction, each once."""
    picture = sorted((world / "val2014").glob("*.png"))[0]
    shutil.copy(picture, tmp_path / "a.png")
    good = {"image_id": 1, "file": "a.png", "question": "what color is the circle?"}
    dataset = {
        "name": "photos",
        "root": str(tmp_path),
        "questions": "q.json",
        "skip_bad": True,
    }
    config, out = recipe(dataset=dataset, methods={"center": {}}), tmp_path / "run"

    def ran(*records: object) -> list[str]:
        (tmp_path / "q.json").write_text(json.dumps(records))
        stages.run(config, out)
        stages.compact(out)
        return sorted(Run(out).failures.message.str.extract(r"(questions\[\d\])")[0])

    assert ran(good, 4, "x") == ["questions[1]", "questions[2]"]
    assert Run(out).failed_examples == 2
    assert ran(good, 4, good, 5) == ["questions[1]", "questions[3]"]
    assert ran(good, 4, good, 5) == ["questions[1]", "questions[3]"]


def test_run_that_lacks_a_method_here_and_there_is_not_called_finished(
    recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stages.run(first(recipe, world, None), out)
    stages.evaluate(out)
    store = Store(out)
    assert store.finished("explain") == store.finished("evaluate") == store.shards == 4
    assert not facts._warnings(Run(out))
    dataset = {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3}
    wider = make_plan(recipe(dataset=dataset, methods={**METHODS, "grad_cam": {}}), out)
    with stages.drive(store) as driver:
        store.define(wider.definitions)
        driver.work(
            "explain", stages.explain_job(wider.config, driver), wider.tasks[:1], wider.config
        )
    store = Store(out)
    assert (store.finished("explain"), store.finished("evaluate")) == (1, 4)
    assert facts._warnings(Run(out))[0].startswith("3 of 4 shards are not explained, or not by")


def test_compaction_cut_off_before_its_manifest_changes_nothing(complete: Path, copy: Path) -> None:
    store = Store(copy)
    list(compact._write(store, "maps", 1, store.settled("maps")))
    assert len(Run(copy).maps) == len(Run(complete).maps)
    assert stages.compact(copy)["maps"] == store.shards
    assert len(pd.read_parquet(copy / "maps")) == len(Run(complete).maps)


def test_compaction_cut_off_after_its_manifest_is_finished_later(
    complete: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(copy)
    monkeypatch.setattr(compact, "clean", lambda store: None)
    compact._compact_table(store, "maps")
    monkeypatch.undo()
    assert len(store.fragments("maps")) == store.shards
    assert len(Run(copy).maps) == len(Run(complete).maps)
    stages.compact(copy)
    assert store.fragments("maps") == []
    assert_same_run(complete, copy)


def flip(path: Path) -> None:
    """In the data: of a Parquet file the pages come first, of a Zarr shard the chunks."""
    data = bytearray(path.read_bytes())
    data[60] ^= 0x55
    path.write_bytes(bytes(data))


def assert_mended(complete: Path, copy: Path, shards: list[int]) -> None:
    """By computing these shards again."""
    assert stages.retry(copy, whole=shards).failed_examples == 0
    stages.evaluate(copy)
    assert_sound(copy)
    assert_same_run(complete, copy)


def test_verify_finds_a_flipped_bit_in_a_map_and_retry_mends_it(complete: Path, copy: Path) -> None:
    flip(copy / "maps.zarr" / "saliency" / "map" / "c.1.0.0.0")
    verdict = verify(copy)
    assert verdict.shards == [1]
    assert_mended(complete, copy, verdict.shards)


def test_verify_finds_a_lost_map(copy: Path) -> None:
    (lost,) = (copy / "maps.zarr" / "attention" / "map").glob("c.2.*")
    lost.unlink()
    verdict = verify(copy)
    assert verdict.shards == [2]
    assert "its map is missing" in str([check.first for check in verdict.checks])


def test_verify_finds_a_map_in_anothers_place(copy: Path) -> None:
    folder = copy / "maps.zarr" / "saliency" / "map"
    shutil.copy(folder / "c.0.0.0.0", folder / "c.3.0.0.0")
    assert verify(copy).shards == [3]


def test_verify_finds_a_damaged_fragment_and_retry_mends_it(complete: Path, copy: Path) -> None:
    flip(sorted((copy / "words").glob("part-*"))[2])
    verdict = verify(copy)
    assert verdict.shards == [2]
    stages.retry(copy, whole=verdict.shards)
    assert_sound(copy)
    assert_same_run(complete, copy)


@pytest.mark.parametrize("table", ["maps", "examples", "metrics", "timings"])
@pytest.mark.parametrize("harm", ["footer", "cut off", "empty"])
def test_verify_finds_a_fragment_that_cannot_be_opened_and_retry_mends_it(
    table: str, harm: str, complete: Path, copy: Path
) -> None:
    """The first of a round: what the round holds is read from its metadata."""
    path = sorted((copy / table).glob("part-*"))[0]
    data = path.read_bytes()
    harmed = {"footer": data[:-40] + bytes(40), "cut off": data[: len(data) // 2], "empty": b""}
    path.write_bytes(harmed[harm])
    verdict = verify(copy)
    assert verdict.shards == [0]
    assert_mended(complete, copy, verdict.shards)


def test_verify_finds_orphans(copy: Path) -> None:
    (copy / "stage" / "explain-0000001-0123456789.abcdef").mkdir(parents=True)
    (copy / "stage" / "explain-0000001-0123456789.abcdef" / "x").write_bytes(b"")
    shutil.copy(
        copy / "maps.zarr" / "saliency" / "map" / "c.0.0.0.0",
        copy / "maps.zarr" / "saliency" / "map" / "c.99.0.0.0",
    )
    orphans = verify(copy).checks[-1]
    assert (orphans.name, orphans.problems) == ("orphans", 2)
    stages.compact(copy)
    assert verify(copy).checks[-1].problems == 1


def test_verify_finds_rows_that_appear_twice(copy: Path) -> None:
    one, *_ = sorted((copy / "maps").glob("part-*"))
    shutil.copy(one, one.with_name(one.name[:-15] + "abcdefabcd.parquet"))
    assert verify(copy).problems > 0


def test_recomputed_sample_differs_from_another_models_maps(copy: Path) -> None:
    """Bytes and rows agree, and yet these are not this model's maps."""
    store = Store(copy)
    definition = store.definitions(["image"])["saliency"]
    forge(store, definition, 0, np.float32(1.5))
    assert [c.problems for c in verify(copy, 0).checks if c.name == "maps and checksums"] == [0]
    assert verify(copy, sample=40).problems > 0
