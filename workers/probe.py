"""How fast this machine is, measured: for the plan's estimate only."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.asked import ask
from workers.models.base import SplitModel, VQAModel


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads, as a worker will have."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def forward_seconds(model: VQAModel, batch: int) -> float:
    """Seconds a single image's forward pass takes inside a batch, on the model's device."""
    batch = min(batch, 4)
    geometry = model.geometry
    size = (batch, 3, geometry.input_height, geometry.input_width)
    canvas = torch.full(size, 128.0, device=model.device, dtype=model.dtype)
    if model.open:
        model = ask(model, canvas[0], [model.tokenise("what is this")], [None]).model
    _pass(model, canvas[:1])
    start = time.perf_counter()
    _pass(model, canvas)
    return (time.perf_counter() - start) / batch


def _pass(model: VQAModel, canvas: torch.Tensor) -> None:
    if isinstance(model, SplitModel):
        features = model.trunk(model.normalise(canvas))
    else:
        features = model.logits(canvas, [model.tokenise("what is this")] * len(canvas))
    features.sum().item()
