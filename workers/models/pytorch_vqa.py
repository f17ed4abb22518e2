"""Checkpoints of Cyanogenoid/pytorch-vqa, which hold everything of a model but its trunk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from workers.errors import UserError
from workers.models.checkpoints import as_state_dict, first_error, length_of, read_torch
from workers.models.kazemi import KazemiConfig

_SIZES = {
    "embedding": ("text.embedding.weight", 1),
    "state": ("attention.q_lin.weight", 1),
    "attention": ("attention.q_lin.weight", 0),
    "glimpses": ("attention.x_conv.weight", 0),
    "hidden": ("classifier.lin1.weight", 0),
}
"""Which axis of which tensor tells a size; the file's own ``config`` has only the image's."""
_PUBLISHED = "give a checkpoint of pytorch-vqa's published network"


def read(path: Path) -> tuple[KazemiConfig, dict[str, Tensor]]:
    """Configuration and head weights of ``logs/NAME.pth``: ``weights``, ``vocab`` and ``config``.

    The vocabulary numbers words from 1 and answers from 0.
    """
    found = read_torch(path)
    size = path.stat().st_size
    weights = as_state_dict(_part(found, "weights", path), f"{path}: 'weights'", size)
    vocab = _part(found, "vocab", path)
    image = _part(found, "config", path)
    fields = {
        **{key: image[key] for key in ("image_size", "central_fraction") if key in image},
        **{
            size: length_of(weights, *axis, f"{path}: 'weights'", _PUBLISHED)
            for size, axis in _SIZES.items()
        },
        "words": _entries(vocab, "question", 1, path),
        "answers": _entries(vocab, "answer", 0, path),
    }
    try:
        return KazemiConfig.model_validate(fields), weights
    except ValidationError as error:
        raise UserError(
            f"{path} does not describe a model ({first_error(error)}); give the file as "
            "pytorch-vqa wrote it"
        ) from error


def _part(found: Any, name: str, path: Path) -> Any:
    parts = found if isinstance(found, Mapping) else {}
    if not isinstance(parts.get(name), Mapping):
        raise UserError(
            f"{path} has no {name!r}, so it is not a checkpoint of pytorch-vqa; give the file "
            "that its training or its release wrote (a trunk goes into trunk_checkpoint)"
        )
    return parts[name]


def _entries(vocab: Any, name: str, first: int, path: Path) -> tuple[str, ...]:
    """The vocabulary in the order of its numbers, which must run from ``first`` without a gap."""
    numbers = _part(vocab, name, path)
    count, given = len(numbers), list(numbers.values())
    whole = all(type(number) is int for number in given)
    if not whole or sorted(given) != list(range(first, first + count)):
        raise UserError(
            f"{path}: the {name} vocabulary of {count} entries is not numbered {first} to "
            f"{first + count - 1}; write it again with pytorch-vqa's preprocess-vocab.py"
        )
    return tuple(sorted(numbers, key=numbers.__getitem__))
