"""What commands print of a run's state, from its store alone: nothing here loads PyTorch."""

from typing import TYPE_CHECKING

import pandas as pd
from rich.table import Table

from pipeline.console import console
from pipeline.dataset import Root, Run
from workers.lease import holder

if TYPE_CHECKING:
    from pipeline.verify import Verdict


def print_status(root: Root) -> int:
    """Done, failed, left and size; returns the number of failed examples."""
    run = Run(root)
    parts, failed = run.store.parts(), run.failed_examples
    examples, images, shards = (
        sum(getattr(part, name) for part in parts) for name in ("examples", "images", "shards")
    )
    table = Table("method", "done", "failed", "degenerate", "left", title=str(root))
    rows = pd.concat([run.maps, run.words])
    targetless = len(run.examples) - len(run.explained)
    for label in run.definitions:
        own = rows[rows.method == label]
        explained = own[own.status != "failed"].question_id.nunique()
        broken = own[own.status == "failed"].question_id.nunique()
        degenerate = int((own.status == "degenerate").sum())
        left = examples - own.question_id.nunique() - targetless
        table.add_row(label, *(f"{n:,}" for n in (explained, broken, degenerate, left)))
    console.print(table)
    stored = sum(run.store.objects.sizes("").values())
    console.print(
        f"{examples:,} examples on {images:,} images, {shards:,} shards; "
        f"{failed:,} failed; {run.metrics.question_id.nunique():,} evaluated; "
        f"{size(stored)} stored"
    )
    at_work = holder(run.store.objects)
    if at_work is not None:
        console.print(f"being written by {at_work}", soft_wrap=True)
    return failed


def print_verdict(root: Root, verdict: "Verdict") -> int:
    """A line a check, the first problems of each, the remedy; returns the number of problems."""
    table = Table("check", "checked", "problems", title=f"{root}: verify")
    for check in verdict.checks:
        table.add_row(check.name, f"{check.checked:,}", f"{check.problems:,}")
    console.print(table)
    for check in verdict.checks:
        for text in check.first:
            console.print(f"{check.name}: {text}", soft_wrap=True, markup=False)
    if verdict.driver:
        console.print(f"meanwhile it is being written by {verdict.driver}", soft_wrap=True)
    if verdict.shards:
        shards = " ".join(f"--shard {shard}" for shard in verdict.shards)
        mend = f"python run_pipeline.py retry {root} {shards}"
        console.print(f"[red]Compute them again:[/] {mend}", soft_wrap=True)
    return verdict.problems


def print_compacted(root: Root, merged: dict[str, int]) -> None:
    """What was merged."""
    for table, count in merged.items():
        console.print(f"{table}: {count:,} fragments merged")
    if not merged:
        console.print(f"{root}: nothing to merge")


def print_failures(root: Root, limit: int) -> None:
    """The first failures, one a line."""
    failures = Run(root).failures
    table = Table("question", "stage", "method", "error", "message", title=f"{root}: failures")
    shown = failures[["question_id", "stage", "method", "error", "message"]].head(limit)
    shown = shown.assign(question_id=shown.question_id.astype("Int64"))
    for row in shown.astype(object).fillna("").itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)
    console.print(f"{min(limit, len(failures))} of {len(failures)}; all: RUN/failures (Parquet)")


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
