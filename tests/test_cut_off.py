"""Questions that are longer than what a model sees: a dropped word lets the next one in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import parse
from pipeline.single import explain
from tests import nets, region_files
from tests.own.classes import Least
from tests.test_huggingface import photo
from workers import catalog
from workers.methods.base import Scene
from workers.methods.words import drop_each, dropped_logits
from workers.models import deeper_lstm, san
from workers.models.base import VQAModel, freeze
from workers.models.own import OwnConfig, wrap

LONG = ("what", "color", "is", "the", "circle", "red", "what", "is", "color", "of", "this")
CPU = torch.device("cpu")


class Short(Least):
    """Sees three words."""

    def tokenise(self, question: str) -> list[str]:
        return question.split()[:3]

    def cut_off(self, question: str) -> list[str]:
        return question.split()[3:]


def of_files(section: Callable[[Path], dict], make: Callable[[Path], None]) -> Callable:
    def build(folder: Path) -> VQAModel:
        make(folder / "files")
        return catalog.model_spec(catalog.Component(**section(folder / "files"))).build(CPU)

    return build


SEEN = {"max_words": 3}
MODELS: dict[str, Callable[[Path], VQAModel]] = {
    "deeper_lstm": lambda _: freeze(deeper_lstm.untrained(nets.LSTM.model_copy(update=SEEN), 0)),
    "san": lambda _: freeze(san.untrained(nets.STACKED.model_copy(update=SEEN), 0)),
    "updn": of_files(region_files.section, region_files.updn),
    "pythia": of_files(region_files.pythia_section, region_files.pythia),
    "own": lambda _: wrap(Short(), OwnConfig(target="m:C", arguments={}, source=""), CPU),
}


@pytest.mark.parametrize("name", MODELS)
def test_dropped_question_is_the_shorter_one_asked_afresh(name: str, tmp_path: Path) -> None:
    """The words are those that the model sees, one importance each."""
    model = MODELS[name](tmp_path)
    seen = model.see(photo(), 42)
    written = LONG * 2
    question = " ".join(written)
    words = model.tokenise(question)
    assert 3 <= len(words) < len(written)
    short = "red what"
    scene = Scene(
        model, seen.canvas, [words, model.tokenise(short)], (1, 2), (None, None),
        regions=seen.regions, cut_off=[model.cut_off(question), model.cut_off(short)],
    )  # fmt: skip
    logits, of_short = dropped_logits(scene)
    assert (len(logits), len(of_short)) == (len(words), 2)
    shown = scene.seen
    for i, found in enumerate(logits):
        afresh = model.tokenise(" ".join(written[:i] + written[i + 1 :]))
        assert len(afresh) == len(words)
        torch.testing.assert_close(found, model.logits(shown, [afresh])[0], rtol=1e-5, atol=1e-5)
    naive = model.logits(shown, [drop_each(words)[0]])[0]
    assert (naive - logits[0]).abs().max() > 1e-4


def test_run_and_single_question_drop_before_they_cut(tmp_path: Path) -> None:
    model = MODELS["deeper_lstm"](tmp_path)
    deeper_lstm.save(model, tmp_path / "model.safetensors")  # type: ignore[arg-type]
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    question = " ".join(LONG[:5])
    asked = [{"image_id": 1, "file": "photo.png", "question": question}]
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    sections = {
        "dataset": {"name": "photos", "root": str(tmp_path), "questions": "questions.json"},
        "model": {"name": "deeper_lstm", "checkpoint": str(tmp_path / "model.safetensors")},
        "methods": {"word_occlusion": {"score": "logit"}},
        "resources": {"executor": "local"},
    }
    assert stages.run(parse(sections, "cut"), tmp_path / "run").failed_examples == 0
    (row,) = Run(tmp_path / "run").words.itertuples()
    assert tuple(row.tokens) == LONG[:3]
    shorter = [model.tokenise(" ".join(LONG[:i] + LONG[i + 1 : 5])) for i in range(3)]
    canvas = model.see(photo()).canvas[None].expand(4, -1, -1, -1)
    logits = model.logits(canvas, [LONG[:3], *shorter])
    drops = (logits[0] - logits[1:])[:, model.answers.index(row.answer)]
    np.testing.assert_allclose(row.importances, drops, rtol=1e-4, atol=1e-6)
    one = explain(model, photo(), question, sections["methods"])
    np.testing.assert_allclose(one.words["word_occlusion"], drops, rtol=1e-4, atol=1e-6)
