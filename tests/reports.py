"""A finished run for reports: one question is hostile, one image is broken."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline import run as stages
from tests.conftest import Recipe
from workers.world.files import Places

METHODS = {
    "occlusion": {"grid": 4},
    "saliency": {},
    "grad_cam": {},
    "word_occlusion": {},
}
"""Signed and not, coarse and by pixel, of images and of words."""
SCRIPT = "</script><script>document.title = 'taken'</script>"
IMAGE = "<img src=x onerror=\"document.title = 'taken'\">"
HOSTILE = f"What color is the {SCRIPT} circle?"


def hostile_run(recipe: Recipe, world: Path, folder: Path, **sections: Any) -> Path:
    """Eight scenes, 24 questions, all explained and evaluated but three about a broken image."""
    root = folder / "world"
    shutil.copytree(world, root)
    places = Places(root, "val2014")
    _change(places.questions, "questions", lambda record: record.update(question=HOSTILE))
    _change(places.annotations, "annotations", _answer)
    image = sorted((root / "val2014").glob("*.png"))[-1]
    image.write_bytes(image.read_bytes()[:300])
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    config = recipe(**{"dataset": dataset, "methods": METHODS, **sections})
    stages.run(config, folder / "run")
    stages.evaluate(folder / "run")
    return folder / "run"


def _change(path: Path, key: str, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data[key][0])
    path.write_text(json.dumps(data))


def _answer(record: dict[str, Any]) -> None:
    record["multiple_choice_answer"] = IMAGE
    for answer in record["answers"]:
        answer["answer"] = IMAGE
