"""Published weight files of a model made into one of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.catalog import CONVERSIONS
from workers.errors import UserError
from workers.models.base import VQAModel
from workers.models.flat import Sources


def convert(model: str, sources: Sources, sizes: Mapping[str, Any], out: Path) -> VQAModel:
    """Write ``out`` and give the model that is in it."""
    if model not in CONVERSIONS:
        raise UserError(
            f"convert: no published files of {model!r:.80} are known. Known: "
            f"{', '.join(CONVERSIONS)}."
        )
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise UserError(
            f"--out {out}: name a file that ends in .safetensors, in a folder that is there"
        )
    return CONVERSIONS[model](sources, sizes, out)
