"""Which method explains which model: the table in docs/models.md, made from the catalogue.

``python -m tests.capabilities`` writes it there.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.plan import obstacle
from tests import hub, nets
from workers import catalog
from workers.errors import UserError
from workers.models import deeper_lstm
from workers.models.base import VQAModel

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- capabilities -->\n", "<!-- end -->\n"
SMALL: dict[str, dict[str, Any]] = {
    "occlusion": {"grid": 2},
    "rise": {"masks": 4, "cells": 4},
    "question_grad_cam": {"n": 4},
    "integrated_gradients": {"steps": 2},
    "smooth_grad": {"samples": 2},
    "lime": {"grid": 2, "samples": 4},
    "kernel_shap": {"grid": 2, "samples": 6},
}
"""Options that make a method cheap; a method that is not here runs with its defaults."""
Folder = Callable[[str], Path]


def lstm(path: Path) -> None:
    """A tiny Deeper LSTM Q + norm I, saved."""
    deeper_lstm.save(deeper_lstm.untrained(nets.LSTM, 0), path)


MAKERS: dict[str, Callable[[Path], None]] = {**hub.FAMILIES, "lstm.safetensors": lstm}
"""What makes each checkpoint."""


def own(name: str) -> dict[str, Any]:
    return {"kind": "python", "target": f"tests.own.classes:{name}"}


def rows(folder: Folder) -> dict[str, dict[str, Any]]:
    """A row's title -> the model section of a small instance. Every catalogue name is in one."""
    squashed = {f"huggingface: {n}, image_size": n for n in ("vilt", "idefics3", "qwen2_vl")}
    return {
        "kazemi": {"name": "kazemi", "random_seed": 0, "trunk": "small", "image_size": 32},
        "demo": {"name": "demo"},
        "demo_lstm": {"name": "demo_lstm"},
        "easy_vqa": {"name": "easy_vqa"},
        "deeper_lstm": {"name": "deeper_lstm", "checkpoint": str(folder("lstm.safetensors"))},
        "python: logits": own("Plain"),
        "python: differentiable logits": own("Least"),
        "python: trunk, words, encode, head": own("Late"),
        **{f"huggingface: {name}": hub.section(name, folder(name)) for name in hub.FAMILIES},
        **{
            title: hub.section(name, folder(name), image_size=48)
            for title, name in squashed.items()
        },
    }


def build(section: dict[str, Any]) -> VQAModel:
    return catalog.model_spec(catalog.Component(**section)).build(catalog.pick_device("cpu"))


def runnable(model: VQAModel) -> list[str]:
    """The methods that explain a model."""
    methods = catalog.methods({name: SMALL.get(name, {}) for name in catalog.METHODS})
    return [name for name, method in methods.items() if not _reason(method, model)]


def _reason(method: Any, model: VQAModel) -> str | None:
    try:
        return obstacle(method, model)
    except UserError as error:
        return str(error)


def table(found: dict[str, list[str]]) -> str:
    """Row title -> its methods, as Markdown; methods across, models down."""
    names = list(catalog.METHODS)
    lines = [["model", *names], ["---", *[":-:"] * len(names)]]
    for title, methods in found.items():
        lines.append([title, *("yes" if name in methods else "" for name in names)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def documented() -> str:
    """The table that stands in the document."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        made: dict[str, Path] = {}

        def folder(name: str) -> Path:
            if name not in made:
                made[name] = Path(root, name)
                MAKERS[name](made[name])
            return made[name]

        found = {title: runnable(build(section)) for title, section in rows(folder).items()}
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table(found) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
