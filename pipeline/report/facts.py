"""What was run, on what, how much of it there is, and what went wrong: a report's opening."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

from pipeline.dataset import Run
from pipeline.progress import clock
from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import Evidence
from workers.lease import holder

DIGEST = 12
"""Characters of a digest that a reader needs to tell two apart."""
QUIET = {"root", "checkpoint", "trunk_checkpoint"}
"""Options that are places on a machine; the recipe below has them."""


@dataclass(frozen=True)
class Facts:
    """Of one run."""

    name: str
    rows: Mapping[str, str]
    warnings: tuple[str, ...]
    """Why the numbers may not be those of the whole run, and what to do."""
    recipe: str
    """As YAML."""


def facts(evidence: Evidence) -> Facts:
    """Read off the run's record and rows."""
    run, config = evidence.run, evidence.config
    methods = [label for label in config.methods if label not in BASELINES]
    rows = {
        "Dataset": _component(config.dataset.name, config.dataset.options, run.record.dataset),
        "Model": _component(config.model.name, config.model.options, run.record.model),
        "Examples": _examples(evidence),
        "Maps": _maps(run),
        "Methods": f"{', '.join(methods)}; baselines: {', '.join(sorted(BASELINES))}",
        "Metrics": ", ".join(config.metrics),
        "Targets": ", ".join(run.record.targets),
        "Run": _time(run),
        "Report": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, VQAtlas {_version()}",
    }
    recipe = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    return Facts(run.root, rows, tuple(_warnings(run)), recipe)


def _component(name: str, options: Mapping[str, Any], digest: str) -> str:
    told = [f"{key} {value}" for key, value in options.items() if key not in QUIET]
    return ", ".join([name, *told, f"digest {digest[:DIGEST]}"])


def _examples(evidence: Evidence) -> str:
    parts = evidence.run.store.parts()
    examples, images = sum(p.examples for p in parts), sum(p.images for p in parts)
    failures = evidence.run.columns("failures", ["question_id"])
    failed = failures["question_id"].nunique(dropna=False)
    answered = len(evidence.examples)
    return (
        f"{examples:,} questions on {images:,} images; {answered:,} answered, "
        f"{failed:,} with failures"
    )


def _maps(run: Run) -> str:
    rows = run.columns("maps", ["status"])["status"].value_counts()
    words = len(run.columns("words", ["status"]))
    total, degenerate, failed = rows.sum(), rows.get("degenerate", 0), rows.get("failed", 0)
    return (
        f"{total:,} of images ({degenerate:,} degenerate: all values equal; {failed:,} failed), "
        f"{words:,} of words"
    )


def _time(run: Run) -> str:
    timings = run.columns("timings", ["started", "seconds", "host", "device"])
    if not len(timings):
        return "not recorded"
    first = datetime.fromtimestamp(timings["started"].min(), UTC)
    last = datetime.fromtimestamp((timings["started"] + timings["seconds"]).max(), UTC)
    hosts = timings["host"].nunique()
    devices = ", ".join(sorted(timings["device"].astype(str).unique()))
    return (
        f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC; {clock(timings['seconds'].sum())} "
        f"of work on {hosts} machine{'s' if hosts > 1 else ''} ({devices})"
    )


def _version() -> str:
    try:
        return version("vqatlas")
    except PackageNotFoundError:
        return "from a checkout"


def _warnings(run: Run) -> list[str]:
    store, told = run.store, []
    shards = store.shards
    stages = {"explain": ("explained", "run"), "evaluate": ("evaluated", "evaluate")}
    for stage, (done, command) in stages.items():
        left = shards - store.finished(stage)
        if left:
            told.append(
                f"{left:,} of {shards:,} shards are not {done}, or not by every method, yet; "
                f"nothing here is about what they lack. Finish them with `{command}` and report "
                "again."
            )
    if stale := store.stale():
        told.append(
            f"{len(stale):,} shards have maps that were computed again since they were "
            "evaluated. `evaluate` the run and report again."
        )
    if at_work := holder(store.objects):
        told.append(f"The run was being written by {at_work} while this report was made.")
    told += [f"Not exact: {fidelity}." for fidelity in store.fidelity().values()]
    return told
