"""The command that turns a run into a page: report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import app, local_folder
from pipeline.console import console
from workers.errors import UserError

if TYPE_CHECKING:
    from pipeline.report import document


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
) -> None:
    """A page with every study's tables, figures and findings, and examples with all their maps.

    Opens without a server or network. Beside it the tables as CSV and Parquet, the figures as PNG
    and SVG.
    """
    if (run_folder is None) == (compare is None):
        raise UserError("report: name one RUN, or two with --compare RUN_A RUN_B")
    from pipeline.report import document

    if compare is not None:
        _end(document.compare_report(*compare, out or _comparison(*compare), _say))
    if run_folder is not None:
        folder = out or local_folder(run_folder) / "report"
        _end(document.report(run_folder, folder, study or ("all",), examples, max_mb, _say))


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
