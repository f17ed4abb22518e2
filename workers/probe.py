"""How fast this machine is, measured: for the plan's estimate only."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.asked import ask
from workers.models.base import Capability, RegionModel, SplitModel, VQAModel


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
    seen = torch.stack([_gray(model)] * batch).to(model.device, model.dtype)
    if model.open:
        model = ask(model, seen[0], [model.tokenise("what is this")], [None]).model
    _pass(model, seen[:1])
    start = time.perf_counter()
    _pass(model, seen)
    return (time.perf_counter() - start) / batch


def _gray(model: VQAModel) -> torch.Tensor:
    """A gray canvas ``(3, y, x)``, or as many regions as there may be, each the whole image."""
    geometry = model.geometry
    if isinstance(model, RegionModel):
        whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(geometry.regions, 4)
        return torch.cat([whole, torch.ones(geometry.regions, geometry.region_channels)], 1)
    return torch.full((3, geometry.input_height, geometry.input_width), 128.0)


def _pass(model: VQAModel, seen: torch.Tensor) -> None:
    if isinstance(model, SplitModel) and Capability.REGIONS not in model.provides:
        features = model.trunk(model.normalise(seen))
    else:
        features = model.logits(seen, [model.tokenise("what is this")] * len(seen))
    features.sum().item()
