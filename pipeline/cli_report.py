"""The command that turns a run into a page: report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import app, local_folder
from pipeline.console import console
from workers.errors import UserError

if TYPE_CHECKING:
    from pipeline.report import document
    from pipeline.studies.agreement import Confidence


@app.command()
def report(
    run_folder: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's folder, or s3://bucket/prefix.")
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(help="Only this study; repeatable. `all` unless one is named."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; RUN/report by default.")] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="RUN_A RUN_B", help="Two runs, paired by example, in place of RUN."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Examples that can be opened with all their maps.")
    ] = 600,
    max_mb: Annotated[
        float, typer.Option(min=1, help="Size of the page: coarser maps, then fewer examples.")
    ] = 30.0,
    low: Annotated[
        float | None,
        typer.Option(
            help="An answer of a smaller probability is unsure; 0.5, the paper's is 0.25."
        ),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option(help="An answer of a larger probability is sure; 0.75, as in the paper."),
    ] = None,
) -> None:
    """A page with every study's tables, figures and findings, and examples with all their maps.

    Opens without a server or network. Beside it the tables as CSV and Parquet, the figures as PNG
    and SVG.
    """
    if (run_folder is None) == (compare is None):
        raise UserError("report: name one RUN, or two with --compare RUN_A RUN_B")
    if compare is not None and (low, high) != (None, None):
        raise UserError("report --compare has no groups by confidence: leave --low and --high out")
    limits = _limits(low, high)
    from pipeline.report import document

    if compare is not None:
        _end(document.compare_report(*compare, out or _comparison(*compare), _say))
    if run_folder is not None:
        folder = out or local_folder(run_folder) / "report"
        wanted = study or ("all",)
        _end(document.report(run_folder, folder, wanted, examples, max_mb, _say, limits))


def _limits(low: float | None, high: float | None) -> "Confidence":
    """The limits of confidence asked for; the usual one where one is not."""
    from pipeline.studies.agreement import Confidence

    usual = Confidence()
    low, high = usual.low if low is None else low, usual.high if high is None else high
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"--low {low:g} with --high {high:g}: both are probabilities of the answer, and an "
            f"answer cannot be unsure and sure at once. Give 0 <= low <= high <= 1; without an "
            f"option it is {usual.low:g} and {usual.high:g}."
        )
    return Confidence(low=low, high=high)


def _comparison(first: str, second: str) -> Path:
    """Where a comparison goes: into the second run, under the first one's name."""
    return local_folder(second) / "compare" / Path(first).name


def _end(written: "document.Written") -> None:
    for number, finding in enumerate(written.findings, 1):
        console.print(f"{number}. {finding.sentence}", soft_wrap=True, markup=False)
    _say(
        f"report: {written.page} ({written.bytes / 1e6:.1f} MB; {written.files} tables and "
        "figures beside it)"
    )
    if written.failed:
        raise typer.Exit(1)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
