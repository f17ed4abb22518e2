"""Every trunk swept as the engine chooses, beside plain sweeps of whole images.

    python benchmarks/trunks.py [--px 224] [--trunks resnet18 vgg16 ...] [--record]

Ours is a whole sweep of 16 x 16 cells with clean pass and head; plain is the same folded, tuned
convolutions on whole images, of a sample of cells, scaled up. They are timed in turn. On no trunk
should the ratio be below 0.97.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial

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
    model = livened(model).to(chosen.device)
    whole = Options(way="dense", batch=chosen.batch)
    engine, dense = Engine(model, Options(batch=chosen.batch)), Engine(model, whole)
    occlusion = Occlusion(grid=16)
    (request,) = occlusion.sweeps(model.geometry)
    choice = engine.choice(request)
    dense.choice(request)
    fields = {"targets": ("predicted",), "engine": engine, "batch": chosen.batch}
    asked = scene(model, QUESTIONS[:1], **fields)
    fill = patches.constant(asked.canvas, patches.GRAY)
    sample, total = sampled(request.windows, chosen), len(request.windows) + 1
    times = []
    for _ in range(chosen.repeats + 1):
        empty = scene(model, QUESTIONS[:1], **fields)
        ours, _ = timed(partial(occlusion.explain, empty), chosen.device)
        plain_sweep = partial(dense.sweep, asked, request.windows, fill, only=sample)
        plainly, _ = timed(plain_sweep, chosen.device)
        times.append((ours, plainly * total / (len(sample) + 1)))
    ours, plainly = (statistics.median(column) for column in zip(*times[1:], strict=True))
    ratio = statistics.median(b / a for a, b in times[1:])
    apart, _ = error(asked, request.windows, sample)
    cells = (
        *(trunk, choice.way, f"{1e3 * plainly:,.1f}", f"{1e3 * ours:,.1f}"),
        *(f"**{ratio:.2f}**", f"{choice.flop_ratio:.2f}", f"{apart:.1e}"),
    )
    return f"| {' | '.join(cells)} |", ratio


def title(chosen: Namespace) -> str:
    return "Every trunk against plain sweeps" + (" on a GPU" if chosen.device == "cuda" else "")


def report(rows: Sequence[tuple[str, float]], chosen: Namespace) -> str:
    slower = sum(ratio < 0.97 for _, ratio in rows)
    return "\n".join(
        [
            f"## {title(chosen)}",
            "",
            *HEAD,
            *(text for text, _ in rows),
            "",
            f"- {chosen.px} pixels, one question, one target; {slower} of {len(rows)} more than 3 "
            "% slower than plain",
            f"- `python benchmarks/trunks.py --device {chosen.device}`; {machine(chosen.device)}",
            "",
        ]
    )


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--trunks", nargs="*", default=TRUNKS)
    parser.add_argument("--sample", type=int, default=32, help="windows of plain that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=32, help="whole images at once")
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    if chosen.device == "cuda":
        chosen.sample = 256  # all of them, which a GPU needs to be busy
    torch.set_num_threads(1)
    rows = []
    for trunk in chosen.trunks:
        rows.append(row(trunk, chosen))
        print(rows[-1][0], flush=True)
    text = report(rows, chosen)
    print(text)
    if chosen.record:
        put_section(title(chosen), text)


if __name__ == "__main__":
    main()
