"""How fast this machine is, measured: for the plan's estimate only."""

import time

import torch

from workers.models.base import SplitModel, VQAModel


@torch.no_grad()
def forward_seconds(model: VQAModel, batch: int, threads: int) -> float:
    """Seconds a single image's forward pass takes inside a batch, on the model's device."""
    batch = min(batch, 4)
    geometry = model.geometry
    size = (batch, 3, geometry.input_height, geometry.input_width)
    canvas = torch.full(size, 128.0, device=model.device, dtype=model.dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _pass(model, canvas[:1])
        start = time.perf_counter()
        _pass(model, canvas)
        return (time.perf_counter() - start) / batch
    finally:
        torch.set_num_threads(before)


def _pass(model: VQAModel, canvas: torch.Tensor) -> None:
    if isinstance(model, SplitModel):
        features = model.trunk(model.normalise(canvas))
    else:
        features = model.logits(canvas, [()] * len(canvas))
    features.sum().item()
