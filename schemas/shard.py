"""A shard: a run of whole images with all their questions, and the place of each in the arrays."""

import hashlib
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
    driver: int = 0
    """Number of the lease under which the task was given out; a later driver's fences it off."""
    retry: tuple[int, ...] | None = None
    """Question ids to compute again, in place of what is committed; none for a first time."""

    @property
    def round(self) -> str:
        """A short name for the set of labels, part of the fragments' file names."""
        return hashlib.sha256("\n".join(sorted(self.labels)).encode()).hexdigest()[:10]

    @property
    def wanted(self) -> tuple[Example, ...]:
        """The examples to compute."""
        if self.retry is None:
            return self.shard.examples
        again = set(self.retry)
        return tuple(e for e in self.shard.examples if e.question_id in again)


def by_image(examples: Iterable[Example]) -> dict[int, list[Example]]:
    """Examples grouped by image, images in order of first appearance."""
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.image_id, []).append(example)
    return groups


def partition(
    examples: Iterable[Example], size: int, first: int = 0, capacity: int | None = None
) -> list[Shard]:
    """Whole images packed in order into shards of at most ``size`` examples, at least one image.

    Shards are numbered from ``first``; ``capacity`` is the largest one's unless it is given.
    """
    runs: list[list[Example]] = []
    for image in by_image(examples).values():
        if not runs or len(runs[-1]) + len(image) > size:
            runs.append([])
        runs[-1].extend(image)
    return _number(runs, first, capacity or max([size, *map(len, runs)]))


def _number(runs: Sequence[list[Example]], first: int, capacity: int) -> list[Shard]:
    return [
        Shard(number=k, capacity=capacity, examples=tuple(run)) for k, run in enumerate(runs, first)
    ]
