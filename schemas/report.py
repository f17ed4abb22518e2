"""What a worker tells the driver about a task."""

from schemas.base import Frozen


class Report(Frozen):
    """Of one task; small, the data is in the store."""

    shard: int
    examples: int
    failed: int
    seconds: float
    maps: int = 0
    """Rows committed."""
    batch: int = 0
    """Images at once that have fitted the device; 0 where none were computed."""
