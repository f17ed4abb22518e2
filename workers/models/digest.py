"""The identity of a model's weights and settings, as a run records it."""

import hashlib
from itertools import chain

import torch

from workers.models.base import VQAModel


def weights_digest(model: VQAModel) -> str:
    """SHA-256 over the configuration, then every parameter and buffer in order: name, type, shape
    and bytes. The same on every device."""
    digest = hashlib.sha256(repr((type(model).__qualname__, model.config, model.answers)).encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
