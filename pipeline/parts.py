"""Which examples of a dataset fill which shards, also when the dataset has grown since."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.config import RunConfig
from schemas.example import Example
from schemas.run import Part
from schemas.shard import Shard, by_image, partition
from workers.errors import UserError
from workers.images import FileSizes
from workers.store import Store


@dataclass(frozen=True)
class Layout:
    """Shards of everything the recipe names, and what of it is new."""

    first: Part
    capacity: int
    shards: list[Shard]
    grown: Part | None = None
    """Examples that follow those the run holds."""


def lay_out(config: RunConfig, examples: Sequence[Example], store: Store | None) -> Layout:
    """A run's parts keep their shards; what follows them is a part of its own.

    A dataset that differs otherwise is laid out afresh: the store refuses the record made of it.
    """
    known = _known(examples, store) if store is not None and store.exists else None
    return _fresh(config, examples) if known is None else _grown(config, examples, known)


def check_images(store: Store, layout: Layout) -> list[str]:
    """The digests of the image files, or a refusal where the run began with others."""
    digests = image_digests(store, layout)
    for number, (then, now) in enumerate(zip(store.images(), digests, strict=False)):
        if then != now:
            raise UserError(
                f"{store.root}: image files of its part {number} are not the size they were when "
                "the run began. Put the old ones back; or, if images that failed have been "
                f"replaced by good ones, `python run_pipeline.py retry {store.root}` takes them."
            )
    return digests


def image_digests(store: Store, layout: Layout) -> list[str]:
    """A digest of every part's image files, for as many parts as the layout has."""
    digests, shards, sizes = [], list(layout.shards), FileSizes()
    for part in [*store.parts(), *([layout.grown] if layout.grown else [])]:
        own, shards = shards[: part.shards], shards[part.shards :]
        if own:
            digests.append(image_digest([e for shard in own for e in shard.examples], sizes))
    return digests


@dataclass(frozen=True)
class _Known:
    """The run's parts that the dataset still begins with."""

    parts: list[Part]
    size: int
    capacity: int


def _known(examples: Sequence[Example], store: Store) -> _Known | None:
    """None where the dataset is not a continuation of what the run holds."""
    record, end = store.record(), 0
    kept: list[Part] = []
    for part in store.parts():
        own = examples[end : end + part.examples]
        if kept and not own:
            break
        if len(own) < part.examples or dataset_digest(own) != part.dataset:
            return None
        kept.append(part)
        end += part.examples
    return _Known(kept, record.shard_size, record.capacity)


def _fresh(config: RunConfig, examples: Sequence[Example]) -> Layout:
    shards = partition(examples, config.store.shard_size)
    return Layout(_part(config, examples, shards), shards[0].capacity, shards)


def _grown(config: RunConfig, examples: Sequence[Example], known: _Known) -> Layout:
    shards: list[Shard] = []
    end = 0
    for part in known.parts:
        own = examples[end : end + part.examples]
        shards += partition(own, known.size, len(shards), known.capacity)
        end += part.examples
    first, rest = known.parts[0], examples[end:]
    if not rest:
        return Layout(first, known.capacity, shards)
    _refuse_larger(rest, known.capacity)
    more = partition(rest, known.size, len(shards), known.capacity)
    return Layout(first, known.capacity, shards + more, _part(config, rest, more))


def _refuse_larger(examples: Sequence[Example], capacity: int) -> None:
    for image_id, asked in by_image(examples).items():
        if len(asked) > capacity:
            raise UserError(
                f"image {image_id} has {len(asked)} new questions; the run's shards hold "
                f"{capacity}, which cannot change. Put them into a run of their own (--out), or "
                "begin one with a larger store.shard_size."
            )


def _part(config: RunConfig, examples: Sequence[Example], shards: Sequence[Shard]) -> Part:
    return Part(
        dataset=dataset_digest(examples),
        shards=len(shards),
        examples=len(examples),
        images=len(by_image(examples)),
        recipe=config.dataset.model_dump(mode="json"),
    )


def dataset_digest(examples: Sequence[Example]) -> str:
    """SHA-256 of every record; an image enters by its file name, not by its folder."""
    digest = hashlib.sha256()
    for e in examples:
        record = (e.question_id, e.image_id, e.question, e.answers, e.truth, e.question_type)
        name = e.image.rpartition("/")[2]
        digest.update(repr((record, e.answer_type, e.choices, name)).encode())
    return digest.hexdigest()


def image_digest(examples: Sequence[Example], sizes: FileSizes) -> str:
    """SHA-256 of the image files' names and sizes."""
    digest, last = hashlib.sha256(), ""
    for image in (e.image for e in examples):
        if image != last:
            digest.update(repr((image.rpartition("/")[2], sizes.of(image))).encode())
            last = image
    return digest.hexdigest()
