"""Which method explains which model: the table in README.md and docs/models.md, made from the
catalogue.

``python -m tests.capabilities`` writes it there.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.plan import unfit
from tests import hub, nets, region_files
from workers import catalog
from workers.models import deeper_lstm, san
from workers.models.base import VQAModel

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "models.md")
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


def stacked(path: Path) -> None:
    """A tiny stacked attention network, saved."""
    san.save(san.untrained(nets.STACKED, 0), path)


MAKERS: dict[str, Callable[[Path], None]] = {
    **hub.FAMILIES,
    **hub.SEEING_REGIONS,
    "lstm.safetensors": lstm,
    "san.safetensors": stacked,
    "updn": region_files.updn,
    "pythia": region_files.pythia,
    "kazemi": region_files.kazemi,
}
"""What makes each checkpoint."""


def own(name: str) -> dict[str, Any]:
    return {"kind": "python", "target": f"tests.own.classes:{name}"}


def rows(folder: Folder) -> dict[str, dict[str, Any]]:
    """A row's title -> the model section of a small instance. Every catalogue name is in one."""
    squashed = {f"huggingface: {n}, image_size": n for n in ("vilt", "idefics3", "qwen2_vl")}
    return {
        "kazemi": {"name": "kazemi", "random_seed": 0, "trunk": "small", "image_size": 32},
        "kazemi: features": region_files.kazemi_section(folder("kazemi")),
        "demo": {"name": "demo"},
        "demo_lstm": {"name": "demo_lstm"},
        "easy_vqa": {"name": "easy_vqa"},
        "deeper_lstm": {"name": "deeper_lstm", "checkpoint": str(folder("lstm.safetensors"))},
        "san": {"name": "san", "checkpoint": str(folder("san.safetensors"))},
        "python: logits": own("Plain"),
        "python: differentiable logits": own("Least"),
        "python: trunk, words, encode, head": own("Late"),
        "huggingface: blip, mode open": {
            "kind": "huggingface",
            "path": str(folder("blip")),
            "mode": "open",
        },
        **{f"huggingface: {name}": hub.section(name, folder(name)) for name in hub.FAMILIES},
        **{
            title: hub.section(name, folder(name), image_size=48)
            for title, name in squashed.items()
        },
        **{f"huggingface: {n}": hub.section(n, folder(n)) for n in hub.SEEING_REGIONS},
        "updn": region_files.section(folder("updn")),
        "pythia": region_files.pythia_section(folder("pythia")),
    }


def build(section: dict[str, Any]) -> VQAModel:
    return catalog.model_spec(catalog.Component(**section)).build(catalog.pick_device("cpu"))


def runnable(model: VQAModel) -> list[str]:
    """The methods that explain a model."""
    methods = catalog.methods({name: SMALL.get(name, {}) for name in catalog.METHODS})
    return [name for name, method in methods.items() if not unfit(method, model)]


def table(found: dict[str, list[str]]) -> str:
    """Row title -> its methods, as Markdown; models down, methods across, those that explain the
    same models in one column."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name in catalog.METHODS:
        explained = tuple(title for title, methods in found.items() if name in methods)
        columns.setdefault(explained, []).append(name)
    heads = [", ".join(f"`{name}`" for name in names) for names in columns.values()]
    lines = [["model", *heads], ["---", *[":-:"] * len(heads)]]
    for title in found:
        lines.append([title, *("yes" if title in explained else "" for explained in columns)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def documented(document: Path) -> str:
    """The table that stands in a document."""
    return document.read_text().partition(BEGIN)[2].partition(END)[0]


def write(document: Path, text: str) -> None:
    before, _, rest = document.read_text().partition(BEGIN)
    document.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        made: dict[str, Path] = {}

        def folder(name: str) -> Path:
            if name not in made:
                made[name] = Path(root, name)
                MAKERS[name](made[name])
            return made[name]

        found = {title: runnable(build(section)) for title, section in rows(folder).items()}
    for document in DOCUMENTS:
        write(document, table(found))


if __name__ == "__main__":
    main()
