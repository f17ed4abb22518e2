"""A computation on a GPU, recorded once and replayed: one launch in place of hundreds.

The kernels of a window's layers take microseconds each, less than Python needs to launch them.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")
WARM_UP = 2
"""Runs before the recording: kernels are compiled, convolutions choose their algorithms."""


class Recording(Generic[Result]):
    """``compute()`` as a CUDA graph. What it reads has to stay where it was, with other values in
    it; its result lies in one place too and is overwritten by the next replay."""

    def __init__(self, compute: Callable[[], Result], pool: Any = None) -> None:
        """``pool`` is memory shared with other recordings, which are replayed one at a time."""
        _warm_up(compute)
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
