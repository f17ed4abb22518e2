"""The recipe: what a run computes, on what, and with which resources."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.base import Frozen
from schemas.limits import Limits

BASELINES = ("random", "center")
"""Methods of every run: a method that does not beat them has said nothing."""


Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
"""Names a folder and files of the run, and a column's values."""


class Component(BaseModel):
    """A catalogue entry by name (``kind`` says the same); every further key is an option of it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _kind_is_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "kind" not in data or "name" in data:
            return data
        return {"name": data["kind"], **{key: data[key] for key in data if key != "kind"}}

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class StoreConfig(Frozen):
    """How maps lie on disk; part of a run's identity."""

    shard_size: int = Field(64, ge=1, le=1_000_000)
    """Examples a shard aims at. It always holds whole images, so a shard can be larger."""
    pixel_dtype: Literal["float32", "float16"] = "float32"
    """Storage of pixel maps; float16 carries one scale a map in the index (column ``scale``)."""


class Resources(Frozen):
    """Where the work runs; changes nothing about the result."""

    executor: Literal["local", "ray"] = "ray"
    workers: int = Field(2, ge=1, le=100_000)
    threads: int = Field(1, ge=1, le=4_096)
    """CPU threads of one worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_worker: float | None = Field(None, ge=0)
    """One on a cluster with GPUs, else none; a fraction lets workers share a GPU."""
    deadline: float | None = Field(None, gt=0)
    """Seconds a shard may take before its worker is killed and the shard tried again; by default
    twenty times the slowest so far, and never less than ten minutes."""
    start_timeout: float = Field(600.0, gt=0)
    """Seconds the first worker may take to be placed and to load its model."""
    batch: int = Field(32, ge=1, le=1_000_000)
    """Whole images that go through the trunk at once, or windows that take as much memory; within
    a quarter of the memory that is free, and halved when the device runs out all the same."""
    engine: Literal["auto", "incremental", "dense", "plain"] = "auto"
    """How occlusion is swept: ``incremental`` recomputes what a window changes, ``dense`` and
    ``plain`` whole images by the traced trunk or the model itself; ``auto`` takes the fastest."""
    address: str | None = None
    """A running Ray cluster: ``auto`` (the one this machine is part of), ``HOST:6379``, or
    ``ray://HOST:10001`` from outside; none starts a local one."""


class RunConfig(Frozen):
    """One recipe. ``dataset``, ``model``, ``methods`` and ``metrics`` name catalogue entries."""

    dataset: Component
    model: Component
    methods: dict[Label, dict[str, Any]] = Field(min_length=1)
    """Label -> options; ``method: NAME`` gives one method two labels with different options."""
    metrics: dict[Label, dict[str, Any]] = Field({"rank_correlation": {}, "tang_yuan": {}})
    targets: tuple[Literal["predicted", "truth"], ...] = Field(("predicted", "truth"), min_length=1)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of the sweeps' trunk passes. With another than float32 (the model's own) the run
    measures and records how far its maps are from the exact ones."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seeds the shuffled-human baseline and the bootstrap."""
    limits: Limits = Limits()
    store: StoreConfig = StoreConfig()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """``dataset: shapes`` is short for ``{name: shapes}``, ``saliency:`` for ``{}``; the
        baselines are added."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for key in ("dataset", "model"):
            if isinstance(data.get(key), str):
                data[key] = {"name": data[key]}
        for key in ("methods", "metrics"):
            given = data.get(key)
            if isinstance(given, list) and all(isinstance(label, str) for label in given):
                given = dict.fromkeys(given)
            if isinstance(given, dict):
                data[key] = {label: {} if o is None else o for label, o in given.items()}
        if isinstance(data.get("methods"), dict) and data["methods"]:
            data["methods"] = {**data["methods"], **_absent(BASELINES, data["methods"])}
        return data


def _absent(names: tuple[str, ...], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {} for name in names if name not in given}
