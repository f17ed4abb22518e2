"""What a plan refuses and what it says."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline import run as stages
from pipeline.plan import check_capabilities, decoys_of, make_plan
from schemas.example import Example
from schemas.shard import by_image, partition
from tests.conftest import Recipe
from tests.nets import BlackBox
from workers import catalog
from workers.errors import UserError


def examples(counts: list[int]) -> list[Example]:
    """Images with so many questions each."""
    return [
        Example(question_id=10 * image + q, image_id=image, image=f"{image}.png", question="q")
        for image, count in enumerate(counts)
        for q in range(count)
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 7, 64])
def test_partition_keeps_images_whole_and_every_example_once(size: int) -> None:
    given = examples([3, 1, 4, 1, 5, 9, 2, 6])
    shards = partition(given, size)
    assert [e for shard in shards for e in shard.examples] == given
    owners = [shard.number for shard in shards for _ in by_image(shard.examples)]
    assert len(owners) == 8
    assert all(len(shard.examples) <= shard.capacity for shard in shards)
    assert len({shard.capacity for shard in shards}) == 1
    ordinals = [o for shard in shards for o in shard.ordinals]
    assert len(set(ordinals)) == len(given)


def test_decoys_are_about_other_images() -> None:
    given = examples([3, 1, 2])
    decoys = decoys_of(given, seed=4)
    assert all(decoys[e.question_id].image_id != e.image_id for e in given)
    assert decoys == decoys_of(given, seed=4)


def test_decoys_of_examples_with_human_maps_have_one_too() -> None:
    """One question in twenty has a map, as in VQA-HAT."""
    given = [
        replace(e, human_maps=(f"{e.question_id}.png",)) if e.question_id % 20 == 1 else e
        for e in examples([3] * 60)
    ]
    mapped = [e for e in given if e.human_maps]
    decoys = decoys_of(given, seed=4)
    assert len(mapped) == 30
    assert set(decoys) == {e.question_id for e in given}
    assert all(decoys[e.question_id].human_maps for e in mapped)
    assert all(decoys[e.question_id].image_id != e.image_id for e in given)
    assert len({decoys[e.question_id].image_id for e in mapped}) == 30


def test_decoys_are_the_same_where_every_example_has_a_map_or_none() -> None:
    given = examples([3, 1, 2, 4])
    everywhere = [replace(example, human_maps=("a.png",)) for example in given]
    none, every = (decoys_of(found, seed=7).items() for found in (given, everywhere))
    assert {q: e.question_id for q, e in none} == {q: e.question_id for q, e in every}


def test_decoy_of_the_only_image_with_a_map_has_none() -> None:
    given = examples([2, 1, 1])
    given[0] = replace(given[0], human_maps=("a.png",))
    decoy = decoys_of(given, seed=0)[0]
    assert decoy.image_id != 0
    assert decoy.human_maps == ()


def test_method_beyond_a_black_box_is_refused_with_both_sides() -> None:
    methods = catalog.methods({"occlusion": {}, "saliency": {}})
    with pytest.raises(UserError) as error:
        check_capabilities(methods, BlackBox())
    assert str(error.value) == (
        "methods.saliency needs gradients, which model BlackBox does not provide "
        "(it provides logits). Remove the method or choose another model."
    )


def test_two_metrics_of_one_name_are_refused(recipe: Recipe) -> None:
    twice = {"rank_correlation": {}, "coarse": {"metric": "rank_correlation", "side": 7}}
    with pytest.raises(UserError, match="would both write rank_correlation"):
        make_plan(recipe(metrics=twice), None)


def test_plan_counts_what_a_run_then_stores(recipe: Recipe, tmp_path: Path) -> None:
    plan = make_plan(recipe(), None)
    assert (plan.passes_per_image, plan.passes) == (1 + 4 * 4, 8 * 17)
    assert (plan.backward_per_example, plan.backward_passes) == (3, 24 * 3)
    assert (plan.examples, plan.record.images, len(plan.tasks)) == (24, 8, 4)
    stages.run(recipe(), tmp_path / "run")
    arrays = catalog_bytes(tmp_path / "run" / "maps.zarr")
    assert plan.stored_bytes == arrays


def catalog_bytes(group: Path) -> int:
    """Uncompressed bytes of every array, as zarr itself tells."""
    opened = zarr.open_group(str(group), mode="r")
    return sum(
        int(np.prod(array.shape)) * array.dtype.itemsize
        for _, method in opened.groups()
        for _, array in method.arrays()
    )


def test_run_whose_start_was_cut_off_can_be_started_again(recipe: Recipe, tmp_path: Path) -> None:
    """The driver died right after it claimed the folder."""
    config = recipe(methods={"center": {}})
    plan = make_plan(config, None)
    out = tmp_path / "run"
    stages.Store(out).create(plan.record)
    shutil.rmtree(out / "maps.zarr")
    assert stages.run(config, out).failed_examples == 0
