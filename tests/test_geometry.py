"""The published architecture on a real photo: ResNet-152, 448 px, centre crop."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import parse, read_recipe

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
def test_resnet152_on_a_coco_photo_sees_its_centre_at_its_own_grids(
    shared_data: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(REPOSITORY / "recipes" / "coco_geometry.yaml").model_dump(mode="json")
    recipe["dataset"] |= {"root": str(shared_data / "coco-mm-explain"), "limit": 1}
    recipe["methods"] = {"occlusion": {"grid": 2}, "guided_grad_cam": {}, "attention": {}}
    recipe["resources"] |= {"executor": "local", "threads": 1, "engine": "plain"}
    stages.run(parse(recipe, "test"), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert len(run.failures) == 0
    shapes = {
        row.method: run.fetch(run.maps[run.maps.method == row.method])[0].shape
        for row in run.maps.itertuples()
    }
    assert shapes["guided_grad_cam"] == (448, 448)
    assert shapes["attention"] == (14, 14)
    assert shapes["occlusion"] == (2, 2)
    assert all(np.isfinite(values).all() for values in run.fetch(run.maps))
    (example,) = run.examples.to_dict("records")
    top, left, bottom, right = example["frame"]
    height, width = example["image_height"], example["image_width"]
    seen = (bottom - top) * height, (right - left) * width
    assert seen[0] == pytest.approx(0.875 * min(height, width), abs=1)
    assert seen[1] == pytest.approx(seen[0], abs=1)
