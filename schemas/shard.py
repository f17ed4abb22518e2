"""A shard: a run of whole images with all their questions, and the place of each in the arrays."""

from collections.abc import Iterable, Sequence

from schemas.base import Frozen
from schemas.example import Example


class Shard(Frozen):
    """Examples of whole images; example ``i`` has ordinal ``number * capacity + i``."""

    number: int
    capacity: int
    """Places a shard has in every array: the same for all shards of a run."""
    examples: tuple[Example, ...]

    @property
    def ordinals(self) -> range:
        first = self.number * self.capacity
        return range(first, first + len(self.examples))


class Task(Frozen):
    """What one worker does in one go: some labels (methods, or metrics of methods) of one shard."""

    shard: Shard
    labels: tuple[str, ...]
    skip: tuple[int, ...] = ()
    """Images that killed their process twice: recorded as failures, not tried again."""
    decoys: tuple[Example, ...] = ()
    """Evaluation only: for each example one about another image (the shuffled-human baseline)."""


def by_image(examples: Iterable[Example]) -> dict[int, list[Example]]:
    """Examples grouped by image, images in order of first appearance."""
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.image_id, []).append(example)
    return groups


def partition(examples: Iterable[Example], size: int) -> list[Shard]:
    """Whole images packed in order into shards of at most ``size`` examples, at least one image."""
    runs: list[list[Example]] = []
    for image in by_image(examples).values():
        if not runs or len(runs[-1]) + len(image) > size:
            runs.append([])
        runs[-1].extend(image)
    return _number(runs, max([size, *map(len, runs)]))


def _number(runs: Sequence[list[Example]], capacity: int) -> list[Shard]:
    return [Shard(number=k, capacity=capacity, examples=tuple(run)) for k, run in enumerate(runs)]
