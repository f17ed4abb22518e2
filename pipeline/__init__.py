"""Which shards, in what order, where; and how to read what came of them."""

from pipeline.dataset import Run, open_run
from pipeline.single import Explanation, explain

__all__ = ["Explanation", "Run", "explain", "open_run"]
