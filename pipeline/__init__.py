"""Which shards, in what order, where; and how to read what came of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset import Run, open_run
    from pipeline.single import Explanation, explain

__all__ = ["Explanation", "Run", "explain", "open_run"]
_HOME = {"Run": "dataset", "open_run": "dataset", "Explanation": "single", "explain": "single"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: commands that only talk to a cluster need no PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pipeline.{_HOME[name]}"), name)
