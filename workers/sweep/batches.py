"""Work in batches that shrink when the device's memory does not hold them."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from workers.errors import BadExample
from workers.methods.base import Scene

Result = TypeVar("Result")


class Limit(Protocol):
    """Something that knows how many items fit at once."""

    batch: int


def in_batches(
    scene: Scene, total: int, compute: Callable[[slice], Tensor], limit: Limit | None = None
) -> Tensor:
    """``compute`` over ``total`` items, at most ``batch`` of the limit at a time and about as many
    each time, concatenated; the scene's own limit counts whole images.

    Out of memory halves the limit, for what follows too, and repeats the batch; a batch of one that
    fails is a ``BadExample``.
    """
    limit = limit or scene
    parts: list[Tensor] = []
    start = 0
    while start < total:
        stop = start + evenly(total - start, limit.batch)
        part = unless_out_of_memory(partial(compute, slice(start, stop)))
        if part is None:
            _halve(scene, limit, stop - start)
            continue
        parts.append(part)
        start = stop
    return torch.cat(parts)


def evenly(total: int, most: int) -> int:
    """How many of ``total`` go through at once, in as few batches of about one size as there can
    be of at most so many."""
    return -(-total // -(-total // most))


def halving(compute: Callable[[int], Result], batch: int) -> Result:
    """``compute`` of the batch, or of the first of its halves that the device's memory holds."""
    while batch > 1:
        result = unless_out_of_memory(partial(compute, batch))
        if result is not None:
            return result
        batch //= 2
    return compute(1)


def unless_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """None where the device's memory does not hold what is computed."""
    # Past the handler the error is gone, and with its traceback the tensors that filled the memory.
    try:
        return compute()
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _halve(scene: Scene, limit: Limit, tried: int) -> None:
    if tried == 1:
        geometry = scene.model.geometry
        raise BadExample(
            f"out of memory on {scene.model.device} with a batch of 1 image of "
            f"{geometry.input_height} x {geometry.input_width} pixels; use a device with more "
            "memory or a smaller input."
        )
    limit.batch = tried // 2
