"""A computation on a GPU, recorded once and replayed: one launch in place of hundreds.

The kernels of one image's layers, or of a window's, take microseconds each, less than Python needs
to launch them.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
WARM_UP = 2
"""Runs before the recording: kernels are compiled, convolutions choose their algorithms."""


class Recording(Generic[Result]):
    """``compute()`` as a CUDA graph. What it reads has to stay where it was, with other values in
    it; its result lies in one place too and is overwritten by the next replay."""

    def __init__(self, compute: Callable[[], Result], pool: Any = None) -> None:
        """Of what has run before. ``pool`` is memory shared with other recordings, which are
        replayed one at a time."""
        self.graph = torch.cuda.CUDAGraph()
        # Other threads decode images meanwhile and pin memory; that is none of this stream's.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = compute()

    def __call__(self) -> Result:
        self.graph.replay()
        return self.result


def _warm_up(compute: Callable[[], object]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(stream)


def recorded(compute: Callable[[], Result], pool: Any = None) -> Recording[Result] | None:
    """None where ``compute`` does what cannot be recorded: it copies from the CPU, or waits."""
    _warm_up(compute)  # an error of its own comes up here
    try:
        return Recording(compute, pool)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None


class Replayed:
    """A function of one tensor of one shape, recorded where that can be."""

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self.function = function
        with torch.inference_mode(False), torch.no_grad():  # it is written in any mode
            self.place = example.clone()
            self.recording = recorded(lambda: function(self.place.clone()))

    def __call__(self, x: Tensor) -> Tensor:
        """A tensor of its own, as of ``function``; ``x`` is left as it is."""
        if self.recording is None:
            return self.function(x.clone())
        self.place.copy_(x)
        return self.recording().clone()
