"""Every cell of the table of models and methods: what says yes runs and stores a finite map."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.plan import check_capabilities
from pipeline.recipe import parse, read_recipe
from tests import capabilities
from tests.test_huggingface import Checkpoints, photo
from workers import catalog
from workers.errors import UserError
from workers.models.base import VQAModel

ROOT = Path(__file__).parents[1]
TITLES = list(capabilities.rows(Path))
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo, wider than tall, with one question."""
    root = tmp_path_factory.mktemp("photos")
    Image.fromarray(photo()).save(root / "photo.png")
    asked = [{"image_id": 1, "file": "photo.png", "question": "what color is the red dog"}]
    (root / "questions.json").write_text(json.dumps(asked))
    return root


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, VQAModel]:
    sections = capabilities.rows(checkpoints)
    return {title: capabilities.build(section) for title, section in sections.items()}


def test_table_in_the_documents_is_what_the_catalogue_says(models: dict[str, VQAModel]) -> None:
    found = {title: capabilities.runnable(model) for title, model in models.items()}
    for document in capabilities.DOCUMENTS:
        assert capabilities.documented(document) == capabilities.table(found), (
            "run `python -m tests.capabilities`"
        )
    assert {title.partition(":")[0] for title in found} == set(catalog.MODELS)


@pytest.mark.parametrize("title", TITLES)
def test_every_yes_stores_a_finite_map_and_every_other_is_refused(
    title: str, models: dict[str, VQAModel], checkpoints: Checkpoints, photos: Path, tmp_path: Path
) -> None:
    model = models[title]
    chosen = capabilities.runnable(model)
    config = parse(
        {
            "dataset": {"name": "photos", "root": str(photos), "questions": "questions.json"},
            "model": capabilities.rows(checkpoints)[title],
            "methods": {name: capabilities.SMALL.get(name, {}) for name in chosen},
            "targets": ["predicted"],
            "store": {"shard_size": 1},
            "resources": {"executor": "local", "engine": "plain"},
        },
        title,
    )
    assert stages.run(config, tmp_path / "run").failed_examples == 0
    run = Run(tmp_path / "run")
    assert set(run.maps.method) | set(run.words.method) == set(chosen)
    assert all(np.isfinite(stored).all() for stored in run.fetch(run.maps))
    assert all(np.isfinite(importances).all() for importances in run.words.importances)
    for name in set(catalog.METHODS) - set(chosen):
        with pytest.raises(UserError, match=f"methods.{name} "):
            check_capabilities(catalog.methods({name: {}}), model)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = read_recipe(path)
    catalog.dataset(config.dataset)
    catalog.model_spec(config.model)
    catalog.methods(config.methods)
    catalog.metrics(config.metrics)


def example(name: str) -> object:
    """A script of ``examples/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_walk_through_from_a_hugging_face_checkpoint(
    checkpoints: Checkpoints, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(checkpoints("vilt")), str(photos), "questions.json", "--grid", "2"]
    example("hugging_face").main([*given, "--out", str(tmp_path / "run")])
    assert "what color is the red dog" in capsys.readouterr().out
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_walk_through_of_a_model_of_ones_own(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT / "examples")
    example("own_model").main(str(photos / "photo.png"), "which colour?")
    assert "sure)" in capsys.readouterr().out
