"""Commands about runs on a cluster: submit, logs, stop, jobs."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import Overrides, Recipe, app
from pipeline.console import console
from workers.errors import UserError, UserInterrupt

if TYPE_CHECKING:
    from pipeline.executors.ray_jobs import Cluster, JobDetails

PANEL = "On a Ray cluster (docs/cluster.md)"
Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://HEAD:8265."
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's name; see `jobs`.")]
LOCAL = "http://127.0.0.1:8265"


@app.command(rich_help_panel=PANEL)
def submit(
    recipe: Recipe,
    out: Annotated[str, typer.Option(help="The run: s3://bucket/prefix, or a shared folder.")],
    address: Address = LOCAL,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Then score the maps against human maps.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Then explain failed examples again.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="Submit again when the driver is lost, while following.")
    ] = 2,
    follow: Annotated[
        bool, typer.Option(help="Print the job's log until it ends; Ctrl-C leaves it running.")
    ] = True,
    ship: Annotated[
        bool, typer.Option(help="Send this code; --no-ship uses the package installed there.")
    ] = True,
) -> None:
    """Send a run to a Ray cluster as a job. Submit it again after any interruption: it goes on."""
    from pipeline.jobs import make_submission, submitted_config

    submission = make_submission(recipe, overrides, out, retry_failed, evaluate)
    cluster = _cluster(address)
    from pipeline.executors.ray_jobs import hints, lost

    cluster.check(submission, submitted_config(submission).resources, _say)
    for attempt in range(retries + 1):
        job = cluster.submit(submission, ship)
        _say(f"submitted {job}: {submission.out}")
        _say(hints(job, address))
        if not follow:
            return
        ended = _follow(cluster, job)
        if not lost(ended):
            break
        _say(f"{job} has lost its driver (exit code {ended.driver_exit_code})")
        if attempt < retries:
            _say("submitting it again; finished shards are kept")
    _end(ended)


@app.command(rich_help_panel=PANEL)
def logs(job: JobName, address: Address = LOCAL) -> None:
    """Print a job's log, follow it to its end and end with its exit status."""
    _end(_follow(_cluster(address), job))


@app.command(rich_help_panel=PANEL)
def stop(job: JobName, address: Address = LOCAL) -> None:
    """End a job. What it has finished is kept; submit it again to go on."""
    ended = _cluster(address).stop(job)
    if not ended.status.is_terminal():
        raise UserError(f"{job} was asked to stop and is still {ended.status}: {ended.message}")
    _say(f"{job}: {ended.status}. Finished shards are kept; submit again to go on.")


@app.command(rich_help_panel=PANEL)
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Only this one.")] = None,
    address: Address = LOCAL,
) -> None:
    """A cluster's jobs of this project: status, exit code, start and the run they write."""
    from rich.table import Table

    cluster = _cluster(address)
    table = Table("job", "status", "exit", "started", "run", box=None)
    found = cluster.jobs() if job is None else [cluster.find(job)]
    for one in found:
        table.add_row(*_row(one))
    console.print(table if found else f"{address}: no jobs of this project")
    if job is not None:
        console.print(found[0].message)


@app.command(hidden=True)
def submitted(
    place: Annotated[str, typer.Argument(help="OUT/submitted/JOB.json, as `submit` wrote it.")],
    sha256: Annotated[str, typer.Option(help="Its digest.")],
) -> None:
    """What a job runs: the plan that `submit` left in the run's place."""
    from pipeline import run as stages
    from pipeline.jobs import read_submission, resources, submitted_config
    from pipeline.report import terminal as report

    plan = read_submission(place, sha256)
    result = stages.run(submitted_config(plan), plan.out, plan.retry_failed)
    _say(f"maps: {plan.out}/maps.zarr, index: {plan.out}/maps")
    if plan.evaluate:
        result = stages.evaluate(plan.out, resources(plan))
        report.print_tables(plan.out)
    else:
        _say(f"next: submit with --evaluate, or python run_pipeline.py evaluate {plan.out}")
    if result.failed_examples:
        _say(
            f"{result.failed_examples} examples failed: python run_pipeline.py failures {plan.out}"
        )
        raise typer.Exit(1)


def _cluster(address: str) -> "Cluster":
    """Connected to a cluster; Ray is imported here, after its environment is set."""
    from pipeline.jobs import prepare_client

    prepare_client(address)
    from pipeline.executors.ray_jobs import Cluster

    return Cluster(address)


def _follow(cluster: "Cluster", job: str) -> "JobDetails":
    from pipeline.executors.ray_jobs import hints

    try:
        return cluster.follow(job, _say, _write)
    except KeyboardInterrupt:
        raise UserInterrupt(
            f"not following any more; {job} goes on. {hints(job, cluster.address)}"
        ) from None


def _say(text: str) -> None:
    console.print(text, soft_wrap=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _end(job: "JobDetails") -> None:
    from pipeline.executors.ray_jobs import exit_status

    status = exit_status(job)
    _say(f"{job.submission_id}: {job.status}, exit status {status}")
    raise typer.Exit(status)


def _row(job: "JobDetails") -> list[str]:
    from pipeline.executors.ray_jobs import run_of

    started = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
    code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
    return [str(job.submission_id), str(job.status), code, started, run_of(job)]
