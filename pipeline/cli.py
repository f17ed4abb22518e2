"""Commands and their help; every one ends with 0 (done), 1 (failures recorded), 2 (cannot work),
or 130 (interrupted)."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.console import console
from pipeline.report import state
from workers.errors import BadExample, UserError, UserInterrupt
from workers.objects import OUTAGE, told

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Importance maps for Visual Question Answering models, over whole datasets.\n\n"
    "A first look: [bold]plan recipes/demo.yaml[/], then [bold]run recipes/demo.yaml "
    "--out runs/demo[/], then [bold]evaluate runs/demo[/].",
)

Recipe = Annotated[Path, typer.Argument(help="A YAML file; see recipes/.")]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or s3://bucket/prefix.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field: store.shard_size=8."),
]


@app.command()
def plan(
    recipe: Recipe,
    out: Annotated[str | None, typer.Option(help="A run to count as done already.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
) -> None:
    """What a run would do: examples, trunk passes, bytes, shards left and time. Writes no run; the
    embedded world is drawn where its folder does not hold it."""
    from pipeline.plan import make_plan
    from pipeline.recipe import read_recipe
    from pipeline.report import terminal as report

    report.print_plan(make_plan(read_recipe(recipe, overrides), out))


@app.command()
def check_model(recipe: Recipe, overrides: Overrides = []) -> None:  # noqa: B006
    """Load a recipe's model and look at it: what it can do, whether it is deterministic and
    indifferent to batch and padding, which methods will run. Ends with 1 if anything is wrong."""
    from pipeline.check import check
    from pipeline.recipe import read_recipe
    from pipeline.report import terminal as report

    if not report.print_model(check(read_recipe(recipe, overrides))):
        raise typer.Exit(1)


@app.command()
def run(
    recipe: Recipe,
    out: Annotated[
        str,
        typer.Option(help="The run's folder or s3://bucket/prefix; made if absent, else resumed."),
    ],
    overrides: Overrides = [],  # noqa: B006
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Then explain failed examples again.")
    ] = False,
) -> None:
    """Explain every example of a dataset. Start it again after any interruption: it goes on."""
    from pipeline import run as stages
    from pipeline.recipe import read_recipe

    result = stages.run(read_recipe(recipe, overrides), out, retry_failed)
    console.print(f"maps: {out}/maps.zarr, index: {out}/maps")
    console.print(f"next: python run_pipeline.py evaluate {out}", soft_wrap=True)
    _end(result.failed_examples, out, f"retry {out}")


@app.command()
def evaluate(run_folder: RunFolder, overrides: Overrides = []) -> None:  # noqa: B006
    """Score every stored map against the dataset's human maps, and print the tables."""
    from pipeline import run as stages
    from pipeline.report import terminal as report

    result = stages.evaluate(run_folder, overrides)
    report.print_tables(run_folder)
    _end(result.failed_examples, run_folder, f"retry {run_folder}")


@app.command()
def status(
    run_folder: RunFolder,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on showing it, with rate and time left; Ctrl-C.")
    ] = False,
) -> None:
    """How much of a run is done, failed and left, who is at work on it, and its size."""
    if watch:
        from pipeline.report.watch import watch as show

        show(run_folder)
        return
    failed = state.print_status(run_folder)
    _end(failed, run_folder, f"retry {run_folder}")


@app.command()
def retry(
    run_folder: RunFolder,
    shard: Annotated[
        list[int] | None,
        typer.Option(help="Explain all of this shard again, as `verify` advises. Repeatable."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Explain only the failed examples again. What is stored stays until better replaces it."""
    from pipeline import run as stages

    result = stages.retry(run_folder, overrides, shard or ())
    console.print(f"next: python run_pipeline.py evaluate {run_folder}", soft_wrap=True)
    _end(result.failed_examples, run_folder, f"retry {run_folder}")


@app.command()
def verify(
    run_folder: RunFolder,
    sample: Annotated[int, typer.Option(min=0, help="Maps to compute again and compare.")] = 0,
    seed: Annotated[int, typer.Option(help="Which maps the sample takes.")] = 0,
) -> None:
    """Check every row, map and checksum of a run. Writes nothing; safe while it is going on."""
    from pipeline.verify import verify as check_run

    if state.print_verdict(run_folder, check_run(run_folder, sample, seed)):
        raise typer.Exit(1)


@app.command()
def compact(run_folder: RunFolder) -> None:
    """Merge the index's many small files into few large ones. Not while a run is going on (it is
    refused then); readers may go on, but those without our code can see rows twice for seconds."""
    from pipeline.run import compact as merge

    state.print_compacted(run_folder, merge(run_folder))


@app.command()
def failures(
    run_folder: RunFolder,
    limit: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
) -> None:
    """What went wrong: example, stage, message."""
    state.print_failures(run_folder, limit)


@app.command()
def sheet(
    run_folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="PNG file; RUN/sheet.png by default.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Examples on the sheet.")] = 8,
) -> None:
    """A contact sheet: image, question with its words shaded, every method, human map."""
    from pipeline.report.sheet import run_sheet

    path = _picture(out or local_folder(run_folder) / "sheet.png")
    run_sheet(run_folder, path, rows)
    console.print(f"contact sheet: {path}")


def local_folder(run_folder: str) -> Path:
    """Where a run's pictures go by default: beside it, or for a bucket into the working folder."""
    return Path() if "://" in run_folder else Path(run_folder)


@app.command()
def explain(
    image: Annotated[str, typer.Option(help="A photo, or s3://bucket/key.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    model: Annotated[
        str, typer.Option(help="A catalogue name, a .safetensors file, or a recipe with the model.")
    ] = "demo",
    answer: Annotated[
        str | None, typer.Option(help="Explain this answer instead of the model's own.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Repeat for several; all else.")] = None,
) -> None:
    """One picture and one question, every method, no store and no Ray."""
    from pipeline.report import terminal as report
    from pipeline.report.sheet import single_sheet
    from pipeline.single import explain as explain_one

    _picture(out)
    result = explain_one(model, image, question, method or None, answer)
    single_sheet(result, out)
    report.print_explanation(result)
    console.print(f"picture: {out}")


def _picture(path: Path) -> Path:
    """A picture's file, before the work that ends in it."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"{path}: a picture's file ends in .png; give --out FILE.png")
    return path


def _end(failed: int, run_folder: Path | str, retry: str) -> None:
    if not failed:
        return
    from pipeline.dataset import Run

    left_out, see = Run(run_folder).left_out, f"python run_pipeline.py failures {run_folder}"
    if left_out:
        console.print(
            f"[red]{left_out} records of the dataset were left out.[/] See them: {see}   Mend them "
            "in its files and run again.",
            soft_wrap=True,
        )
    if failed > left_out:
        console.print(
            f"[red]{failed - left_out} examples failed.[/] See them: {see}   "
            f"Retry them: python run_pipeline.py {retry}",
            soft_wrap=True,
        )
    raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """The whole workflow on the embedded world: run, evaluate, tables, contact sheet."""
    from pipeline import run as stages
    from pipeline.recipe import read_recipe, under
    from pipeline.report import terminal as report
    from pipeline.report.sheet import run_sheet

    stages.run(read_recipe(Path("recipes/demo.yaml"), overrides), out)
    result = stages.evaluate(out, [one for one in overrides if under(one, ["resources", "limits"])])
    report.print_tables(out)
    run_sheet(out, out / "sheet.png")
    report.print_demo(out)
    _end(result.failed_examples, out, f"retry {out}")


def main() -> None:
    """Run a command; a user's mistake is one message, never a traceback."""
    try:
        app()
    except (UserError, BadExample) as error:
        _stop(f"error: {error}", 2)
    except UserInterrupt as error:
        _stop(str(error), 130)
    except OUTAGE as error:
        kept = "What is committed is kept: mend the cause, and the same command goes on."
        _stop(f"error: {told(error)}. {kept}", 2)


def _stop(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


import pipeline.cli_convert  # noqa: E402 - registers its command, which uses ``app``
import pipeline.cli_jobs  # noqa: E402
import pipeline.cli_report  # noqa: E402,F401
