"""What Torch7's ``getParameters`` made of a network, one flat vector, cut into tensors again."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from schemas.base import Frozen
from workers.errors import UserError
from workers.models.checkpoints import Config, first_error
from workers.models.questions import read_vocabularies


class Sources(Frozen):
    """The files that a published model is put together from."""

    weights: tuple[Path, ...]
    vocabulary: Path
    """``data_prepro.json`` or ``params.json``."""
    trunk: Path
    """The image network's state_dict; see ``workers.models.vgg``."""


class Part(NamedTuple):
    """A parameter's name and shape; parts lie one after the other, each row by row."""

    name: str
    shape: tuple[int, ...]


def linear(name: str, inputs: int, outputs: int) -> list[Part]:
    """Torch7's ``nn.Linear``: the weight ``(output, input)``, then the bias."""
    return [Part(f"{name}.weight", (outputs, inputs)), Part(f"{name}.bias", (outputs,))]


def configure(schema: type[Config], sources: Sources, sizes: Mapping[str, Any]) -> Config:
    """The configuration of these vocabularies, with sizes other than the published ones."""
    words, answers = read_vocabularies(sources.vocabulary)
    try:
        return schema.model_validate({**sizes, "words": words, "answers": answers})
    except ValidationError as error:
        raise UserError(
            f"{sources.vocabulary} and what is set do not describe a model ({first_error(error)}); "
            f"settings are {', '.join(schema.model_fields)}"
        ) from error


def one_file(sources: Sources) -> Path:
    """The only weight file; ``UserError`` where there are several."""
    if len(sources.weights) > 1:
        raise UserError(f"weights: {len(sources.weights)} files are given, a .t7 is one")
    return sources.weights[0]


def vector(table: Any, key: str, path: Path) -> np.ndarray:
    """The flat vector of this key of the file's table, all of it finite."""
    entries = table if isinstance(table, dict) else {}
    found = entries.get(key)
    if not isinstance(found, np.ndarray) or found.ndim != 1:
        known = ", ".join(f"{name!r:.40}" for name in [*entries][:8]) or "no table"
        raise UserError(
            f"{path} has no flat vector {key!r} (it holds {known}); give the file that the "
            "published training script wrote"
        )
    if not np.isfinite(found).all():
        raise UserError(f"{path}: {key!r} holds numbers that are not finite; copy the file again")
    return found


def cut(
    flat: np.ndarray, parts: Sequence[Part], key: str, path: Path, sizes: str
) -> dict[str, Tensor]:
    """The tensors of ``parts``, which must take all of the vector, as float32. ``sizes`` says
    which settings and which vocabulary the length follows from."""
    lengths = [math.prod(part.shape) for part in parts]
    if sum(lengths) != len(flat):
        raise UserError(
            f"{path}: {key!r} holds {len(flat)} numbers, {sizes} make {sum(lengths)}; give the "
            "vocabulary that the model was trained with, or --set the sizes it was trained with"
        )
    ends = np.cumsum(lengths)
    pieces = zip(parts, np.split(flat, ends[:-1]), strict=True)
    return {part.name: _tensor(piece).reshape(part.shape) for part, piece in pieces}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def reorder_gates(stacked: Tensor, order: str) -> Tensor:
    """Rows of an LSTM's four gates as PyTorch stacks them: input i, forget f, candidate g, output
    o. ``order`` tells how they are stacked, for instance ``"ifog"``."""
    gates = dict(zip(order, stacked.chunk(4), strict=True))
    return torch.cat([gates[gate] for gate in "ifgo"])
