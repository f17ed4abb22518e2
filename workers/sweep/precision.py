"""The arithmetic of a sweep's trunk passes. Everything else of a run is in the model's own type."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from workers.errors import UserError

Precision = Literal["float32", "tf32", "bfloat16"]


def working_type(precision: Precision, model: torch.dtype) -> torch.dtype:
    """The type activations are kept in; ``float32`` stands for the model's own."""
    return torch.bfloat16 if precision == "bfloat16" else model


def check_precision(precision: Precision, device: torch.device) -> None:
    """TF32 is a format of NVIDIA's tensor cores, from compute capability 8.0 on."""
    if precision != "tf32":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"precision tf32 needs an NVIDIA GPU of compute capability 8.0 or more, the device is "
            f"{device}; choose float32 or bfloat16."
        )


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Float32 products as they are, or rounded to TF32; PyTorch's own default for convolutions on
    a GPU is TF32. cuDNN looks for the fastest algorithm of each shape: a sweep has few shapes and
    many passes."""
    allowed = precision == "tf32"
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        # What is not named here would be switched off, cuDNN itself among it.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
