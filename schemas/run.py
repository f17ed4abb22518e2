"""What a run says about itself: its identity, its parts, its methods and metrics."""

from typing import Any

from pydantic import field_validator

from schemas.arrays import ArraySpec
from schemas.base import Frozen

VERSION = "2"
"""Of the store's layout."""


class Part(Frozen):
    """Examples that were added to a run in one go; they fill shards of their own."""

    dataset: str
    """Digest of the part's records."""
    shards: int
    examples: int
    images: int
    recipe: dict[str, Any]
    """The dataset section of the recipe that the part came with."""


class RunRecord(Frozen):
    """``run.json``: what a run is. Written once; a run with another record is refused."""

    version: str = VERSION
    recipe: dict[str, Any]
    """The configuration the run was created with."""
    dataset: str
    """Digest of the records the run began with."""
    model: str
    """Digest of the model's weights and preprocessing."""
    targets: tuple[str, ...]
    shard_size: int
    capacity: int
    """Places a shard has in every array."""
    shards: int
    examples: int
    images: int

    @field_validator("recipe")
    @classmethod
    def _has_a_dataset(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(recipe.get("dataset", {}), dict):
            raise ValueError("its dataset is no mapping")
        return recipe

    @property
    def first(self) -> Part:
        """The part the run began with."""
        return Part(
            dataset=self.dataset,
            shards=self.shards,
            examples=self.examples,
            images=self.images,
            recipe=self.recipe.get("dataset", {}),
        )


class Definition(Frozen):
    """``definitions/<kind>/<label>.json``: a method's or metric's parameters, written once."""

    label: str
    name: str
    parameters: dict[str, Any]
    kind: str
    """``image``, ``words`` or ``metric``."""
    library: str | None = None
    """Name and version of the library that computes it; None for our own code."""
    primary: str | None = None
    arrays: tuple[ArraySpec, ...] = ()


class Manifest(Frozen):
    """``<table>/_compact-<generation>.json``: which fragments a compact table stands for."""

    generation: int
    files: tuple[str, ...]
    covers: dict[str, str]
    """Fragment name -> the attempt that wrote it."""
    rounds: dict[str, tuple[str, ...]]
    """Round name -> labels."""
