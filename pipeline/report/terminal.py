"""What commands print that have loaded a model or read a study."""

import sys
from os.path import relpath

import pandas as pd
from rich.markup import escape
from rich.table import Table

from pipeline.check import ModelVerdict
from pipeline.console import console
from pipeline.dataset import Root, Run
from pipeline.plan import Plan
from pipeline.progress import clock
from pipeline.report.state import size
from pipeline.run import stored_config
from pipeline.single import Explanation
from pipeline.studies.accuracy import accuracy_table
from pipeline.studies.agreement import agreement
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tables import render, side_by_side
from workers.evaluate import NO_ANNOTATOR

MAIN_METRICS = ("rank_correlation", "ty_iou")
"""Printed by ``evaluate``; all others are in the store."""
CHECKS = ("deletion_gain", "insertion_gain")
"""Printed too, where they have been computed."""


def print_plan(plan: Plan) -> None:
    """The figures a user wants before spending the hours."""
    table = Table(show_header=False, box=None)
    record = plan.record
    rows = {
        "examples": f"{plan.examples:,} questions on {plan.images:,} images",
        "methods": ", ".join(d.label for d in plan.definitions if d.kind != "metric"),
        "targets": ", ".join(record.targets),
        "shards": f"{len(plan.tasks):,} to do of {len(plan.shards):,} "
        f"(up to {record.capacity} examples each)",
        "trunk passes": f"{plan.passes:,} forward ({plan.passes_per_image:,} an image), "
        f"{plan.backward_passes:,} or more backward ({plan.backward_per_example} an example)",
        "stored": f"{size(plan.stored_bytes)} of arrays before compression",
        "estimated time": f"{clock(plan.seconds)} with {plan.config.resources.workers} workers "
        f"({plan.seconds_per_pass * 1000:.1f} ms a pass, measured here)",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for line in plan.sweeps:
        label, text = line.split(": ", 1)
        table.add_row(label, text)
    for cost in plan.checks:
        table.add_row("evaluate", str(cost))
    if plan.bad_records:
        table.add_row("left out", f"{len(plan.bad_records):,} malformed records (skip_bad)")
    console.print(table)


def print_tables(root: Root) -> None:
    """Accuracy, then agreement with human attention, baselines among the methods."""
    run = Run(root)
    bootstrap = Bootstrap(seed=stored_config(root).seed)
    console.print(render(accuracy_table(run.examples, bootstrap), title="VQA accuracy"))
    metrics = run.metrics[run.metrics.annotator != NO_ANNOTATOR]
    _print_checks(run, bootstrap)
    if not len(metrics):
        console.print("The dataset has no human maps, so there is no agreement to show.")
        return
    table = agreement(metrics, run.examples, bootstrap)
    for target in dict.fromkeys(table.target):
        shown = [m for m in MAIN_METRICS if m in set(table.metric)] or list(table.metric[:1])
        title = f"Agreement with human attention, target: {target}"
        console.print(render(side_by_side(table, target, shown), title=title))
    _print_unlabelled(run.examples)


def _print_checks(run: Run, bootstrap: Bootstrap) -> None:
    """Of metrics that need no human maps those that a reader understands without a study."""
    metrics = run.metrics[run.metrics.metric.isin(CHECKS)]
    table = agreement(metrics, run.examples, bootstrap) if len(metrics) else metrics
    for target in dict.fromkeys(table.target):
        shown = [m for m in CHECKS if m in set(table.metric)]
        title = f"Faithfulness, target: {target} (random order gives about 0)"
        console.print(render(side_by_side(table, target, shown), title=title))


def _print_unlabelled(examples: pd.DataFrame) -> None:
    outside = int((examples.truth_in_vocabulary == False).sum())  # noqa: E712 - null is neither
    if outside:
        console.print(
            f"{outside} of {len(examples)} labelled answers are outside the model's vocabulary: "
            "those examples have no truth target.",
            soft_wrap=True,
        )


def print_demo(root: Root) -> None:
    """Where everything is, and what to try next."""
    python, image = map(relpath, (sys.executable, Run(root).examples.image.iloc[0]))
    console.print(
        f"""
[bold]Where it is[/]
  {root}/sheet.png        the contact sheet: open it
  {root}/maps.zarr        the maps;  {root}/maps, words, metrics ...  Parquet tables about them
[bold]What next[/]
  {python} run_pipeline.py status {root}
  {python} run_pipeline.py explain --image {image} \\
      --question "what color is the circle?" --out one.png
  {python} -c "from pipeline import open_run; print(open_run('{root}').maps)"
  {python} run_pipeline.py plan recipes/easy_vqa.yaml
""",
        soft_wrap=True,
    )


def print_model(verdict: ModelVerdict) -> bool:
    """What it is, a line a check, a line a method; whether all is well."""
    answers = f"{verdict.answers:,} answers" if verdict.answers else "writes its answers"
    console.print(f"[bold]{verdict.name}[/]: {answers}, input {verdict.canvas}")
    if verdict.about:
        console.print(verdict.about, soft_wrap=True, markup=False)
    console.print(f"provides {', '.join(verdict.capabilities)}")
    table = Table("check", "", "found", "remedy", box=None)
    for check in verdict.checks:
        mark = "[green]ok[/]" if check.passed else "[red]FAILS[/]"
        remedy = "" if check.passed else check.remedy
        table.add_row(check.name, mark, escape(check.found), remedy)
    console.print(table)
    table = Table("method", "will run", "seconds an example", box=None)
    for method in verdict.methods:
        label = f"[bold]{method.label}[/]" if method.asked else method.label
        seconds = "" if method.reason else f"{method.seconds:.3g}"
        table.add_row(label, escape(method.reason or "yes"), seconds)
    console.print(table)
    console.print("(bold: the recipe's; one question and target, by plain passes: `plan` measures)")
    return verdict.sound


def print_explanation(result: Explanation) -> None:
    """The answer, the words, and the strongest cell of every map."""
    console.print(f"[bold]{result.prediction}[/] ({result.confidence:.0%} sure)")
    if result.answer != result.prediction:
        console.print(f"explained: {result.answer}")
    if result.unknown:
        unknown = ", ".join(map(repr, dict.fromkeys(result.unknown)))
        console.print(f"not in the model's vocabulary: {unknown}", soft_wrap=True, markup=False)
    table = Table("method", *result.tokens, title="importance of words")
    for label, values in result.words.items():
        table.add_row(label, *(f"{v:.3f}" for v in values))
    if result.words:
        console.print(table)
