"""The command that makes one of our weight files of published ones: convert."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import app
from pipeline.console import console


@app.command()
def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="deeper_lstm or san.")],
    weights: Annotated[
        list[Path],
        typer.Option(
            help="The published weights: lstm.t7; san2_150000.t7 or san1_120000.t7, or "
            "sans-pytorch's three .pkl files, an option each."
        ),
    ],
    vocabulary: Annotated[
        Path, typer.Option(help="Their vocabulary: data_prepro.json; params.json.")
    ],
    trunk: Annotated[
        Path,
        typer.Option(
            help="The Caffe VGG-19's state_dict, .pth or .safetensors, under torchvision's names "
            "or Caffe's; it takes BGR in 0..255 less the means."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    sizes: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A size other than the published one."),
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Published weights of a model as one .safetensors file, which recipes read.

    python run_pipeline.py convert deeper_lstm --weights lstm.t7 --vocabulary data_prepro.json
    --trunk vgg19.pth --out deeper_lstm.safetensors

    Sizes other than the published ones are --set, for instance --set state=256 --set layers=1.
    More in docs/models.md.
    """
    from pipeline.convert import convert as make
    from pipeline.recipe import override
    from workers.models.flat import Sources

    sources = Sources(weights=tuple(weights), vocabulary=vocabulary, trunk=trunk)
    made = make(model, sources, override({}, sizes), out)
    size = f"{len(made.answers)} answers, {out.stat().st_size / 1e6:.1f} MB"
    console.print(f"{out}: {size}", soft_wrap=True, markup=False)
    console.print(
        f"next: python run_pipeline.py check-model recipes/{model}.yaml --set "
        f"model.checkpoint={out}",
        soft_wrap=True,
        markup=False,
    )
