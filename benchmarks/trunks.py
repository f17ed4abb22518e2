"""Every trunk swept as the engine chooses, beside plain sweeps of whole images.

    python benchmarks/trunks.py [--px 224] [--trunks resnet18 vgg16 ...] [--record]

Ours is a whole sweep of 16 x 16 cells with clean pass and head; plain is the same folded, tuned
convolutions on whole images, of a sample of cells, scaled up. They are timed in turn. On no trunk
should the ratio be below 0.97.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import torch
from against_captum import QUESTIONS, machine, put_section, scene, timed
from against_captum import kazemi as untrained
from occlusion import error, livened, sampled

from tests import trunks
from workers.methods.occlusion import Occlusion
from workers.sweep import patches
from workers.sweep.engine import Engine, Options

TRUNKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet152_caffe"),
    *("resnext50_32x4d", "wide_resnet50_2", "vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn"),
    *("densenet121", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "regnet_x_400mf"),
    *("regnet_y_400mf", "googlenet", "inception_v3", "squeezenet1_1", "mnasnet0_5"),
)
HEAD = (
    "| trunk | engine | plain ms | ours ms | ratio to plain | FLOP ratio | error |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
)


def row(trunk: str, chosen: Namespace) -> tuple[str, float]:
    """Of the table, and its ratio."""
    model = untrained(trunk, chosen.px)
    trunks.randomise(model.trunk_net)
    model = livened(model)
    engine, dense = Engine(model), Engine(model, Options(way="dense"))
    occlusion = Occlusion(grid=16)
    (request,) = occlusion.sweeps(model.geometry)
    choice = engine.choice(request)
    dense.choice(request)
    asked = scene(model, QUESTIONS[:1], targets=("predicted",), engine=engine)
    fill = patches.constant(asked.canvas, patches.GRAY)
    sample, total = sampled(request.windows, chosen), len(request.windows) + 1
    times = []
    for _ in range(chosen.repeats + 1):
        empty = scene(model, QUESTIONS[:1], targets=("predicted",), engine=engine)
        ours, _ = timed(lambda: occlusion.explain(empty))  # noqa: B023 - called at once
        plainly, _ = timed(lambda: dense.sweep(asked, request.windows, fill, only=sample))
        times.append((ours, plainly * total / (len(sample) + 1)))
    ours, plainly = (statistics.median(column) for column in zip(*times[1:], strict=True))
    ratio = statistics.median(b / a for a, b in times[1:])
    apart, _ = error(asked, request.windows, sample)
    cells = (
        *(trunk, choice.way, f"{1e3 * plainly:,.0f}", f"{1e3 * ours:,.0f}"),
        *(f"**{ratio:.2f}**", f"{choice.flop_ratio:.2f}", f"{apart:.1e}"),
    )
    return f"| {' | '.join(cells)} |", ratio


def report(rows: Sequence[tuple[str, float]], px: int) -> str:
    slower = sum(ratio < 0.97 for _, ratio in rows)
    return "\n".join(
        [
            "## Every trunk against plain sweeps",
            "",
            *HEAD,
            *(text for text, _ in rows),
            "",
            f"- {px} pixels, one question, one target; {slower} of {len(rows)} more than 3 % "
            "slower than plain",
            f"- `python benchmarks/trunks.py`; {machine()}",
            "",
        ]
    )


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--trunks", nargs="*", default=TRUNKS)
    parser.add_argument("--sample", type=int, default=32, help="windows of plain that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for trunk in chosen.trunks:
        rows.append(row(trunk, chosen))
        print(rows[-1][0], flush=True)
    text = report(rows, chosen.px)
    print(text)
    if chosen.record:
        put_section("Every trunk against plain sweeps", text)


if __name__ == "__main__":
    main()
