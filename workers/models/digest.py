"""The identity of a model's weights and settings, as a run records it."""

import hashlib
import platform
from itertools import chain

import torch

from workers.errors import UserError
from workers.models.base import VQAModel


def weights_digest(model: VQAModel) -> str:
    """SHA-256 over the configuration, then every parameter and buffer that a checkpoint holds, in
    order: name, type, shape and bytes. The same on every device; what is computed from the
    configuration may differ in a last digit between processors, and is left out."""
    digest = hashlib.sha256(repr((type(model).__qualname__, model.config, model.answers)).encode())
    held = model.state_dict(keep_vars=True)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name not in held:
            continue
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_weights(model: VQAModel, expected: str) -> None:
    """Refuse a model that is not the one whose digest a run has recorded, wherever it is loaded:
    machines of a cluster can have other files under the same path."""
    found = weights_digest(model)
    if found != expected:
        raise UserError(
            f"model {type(model).__name__} is not the one that this run's maps are made with: its "
            f"digest on {platform.node()} is {found[:12]}, the run's {expected[:12]}; weights, "
            "settings or code differ. Put the run's back, on every machine that works on it; to "
            "explain another model give another --out."
        )
