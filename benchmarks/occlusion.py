"""Occlusion of one image, all questions and targets: our engine, our plain sweep and Captum's.

    python benchmarks/occlusion.py --trunk vgg16 --px 224 --questions 1 --targets 1 --json

Captum's Occlusion explains one question and one target at a time, each with a pass of the model
for every window. Its cost a window is constant, so one question and target is timed on a sample of
windows, with the fastest of several ``perturbations_per_eval``, and scaled to all; so is our plain
sweep (the same folded, fused, tuned convolutions on whole images). Our own sweep is timed in full,
clean pass and head included, in turn with the other two. The engine has been prepared before, as
it is in a worker. ``--record`` writes a row of the table in RESULTS.md.
"""

import json
import statistics
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from against_captum import QUESTIONS, RESULTS, Asked, kazemi, machine, scene, timed
from captum import attr
from scipy.stats import spearmanr
from torch import nn

from workers.methods.base import Row, Scene
from workers.methods.occlusion import Occlusion
from workers.models.kazemi import Kazemi
from workers.sweep import patches, plain
from workers.sweep.engine import Engine, Options
from workers.sweep.precision import arithmetic
from workers.sweep.windows import Windows

PER_EVAL = {"cpu": (1, 4, 8, 16), "cuda": (16, 32, 64, 128, 256)}
"""Captum's batch sizes that are tried."""
TITLES = {
    "cpu": "## Occlusion, one image, against Captum",
    "cuda": "## On a GPU: occlusion, one image, against Captum",
}
COLUMNS = (
    *("trunk", "px", "grid", "questions x targets", "engine", "Captum ms", "plain ms", "ours ms"),
    *("ratio to Captum", "ratio to plain", "FLOP ratio", "error", "rank", "machine"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


@dataclass(frozen=True)
class Measured:
    """One line of JSON, one row of the table."""

    trunk: str
    px: int
    grid: int
    questions: int
    targets: int
    engine: str
    captum_ms: float
    plain_ms: float
    ours_ms: float
    ratio_captum: float
    ratio_plain: float
    flop_ratio: float
    max_abs_err: float
    """Of any answer's probability against the plain float32 pass, on the sample of windows."""
    rank_corr: float
    """Smallest over the maps, on the sample of windows."""
    captum_per_eval: int
    sample: int
    machine: str


def options() -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trunk", default="resnet18", help="any of torchvision's, or our own")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--questions", type=int, default=1, choices=range(1, 4))
    parser.add_argument("--targets", type=int, default=1, choices=(1, 2))
    parser.add_argument("--sample", type=int, default=16, help="windows of Captum and plain timed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32"))
    parser.add_argument("--batch", type=int, default=32, help="whole images of ours at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--record", action="store_true", help=f"a row of {RESULTS.name}")
    chosen = parser.parse_args()
    if chosen.device == "cuda":
        chosen.sample = chosen.grid**2  # all of them, which a GPU needs to be busy
    return chosen


@torch.no_grad()
def livened(model: Kazemi) -> Kazemi:
    """Batch statistics of a few pictures, so that a random trunk's features depend on its input at
    any depth, and logits that are far from indifferent."""
    side = model.geometry.input_height
    noise = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    pictures = F.interpolate(noise, (side, side), mode="bicubic").to(model.device)
    norms = [module for module in model.trunk_net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1
    model.trunk(pictures)
    for norm in norms:
        norm.eval()
    sharpen = 4 / scene(model, QUESTIONS).output.logits.std()
    for parameter in model.classifier.lin2.parameters():
        parameter.mul_(sharpen)
    return model


def explained(model: Kazemi, chosen: Namespace, engine: Engine | None) -> Scene:
    """An empty scene: nothing is computed yet."""
    names, asked = ("predicted", "truth")[: chosen.targets], QUESTIONS[: chosen.questions]
    return scene(model, asked, targets=names, engine=engine, batch=chosen.batch)


def captum(asked: Scene, row: Row, grid: int, per_eval: int) -> np.ndarray:
    """Captum's map of one question and target, ``(y, x)`` at the pixels."""
    model = Asked(asked.split, asked.questions[row.question])
    side = asked.model.geometry.input_height
    window = (3, side // grid, side // grid)
    gray = asked.split.normalise(patches.constant(asked.canvas, patches.GRAY)[None])
    maps = attr.Occlusion(lambda pixels: model(pixels).softmax(1)).attribute(
        asked.pixels,
        window,
        strides=window,
        baselines=gray,
        target=row.answer,
        perturbations_per_eval=per_eval,
    )
    return maps[0, 0].cpu().numpy()


def error(asked: Scene, windows: Windows, sample: list[int]) -> tuple[float, float]:
    """Largest difference of a probability, and smallest rank correlation of a map."""
    fill = patches.constant(asked.canvas, patches.GRAY)
    assert asked.engine is not None
    ours = asked.engine.sweep(asked, windows, fill, only=sample)
    theirs = plain.sweep(asked, windows, fill, only=sample)
    p, q = (swept.painted.softmax(-1) for swept in (ours, theirs))
    p, q = p.cpu(), q.cpu()
    ranks = [
        spearmanr(p[:, row.question, row.answer], q[:, row.question, row.answer]).statistic
        for row in asked.rows
    ]
    return float((p - q).abs().max()), float(min(ranks))


def fastest_per_eval(asked: Scene, coarse: int) -> int:
    """Captum's best batch size, tried on a coarse grid, each the second time it runs."""
    first, device = asked.rows[0], asked.model.device.type

    def spent(per_eval: int) -> float:
        run = partial(captum, asked, first, coarse, per_eval)
        if device == "cuda":
            run()
        return timed(run, device)[0]

    return min(PER_EVAL[device], key=spent)


def in_turn(
    chosen: Namespace, asked: Scene, dense: Engine, windows: Windows, per_eval: int
) -> list[tuple[float, float, float]]:
    """Seconds of ours, of Captum and of plain passes, each repetition one after another."""
    occlusion, fill = Occlusion(grid=chosen.grid), patches.constant(asked.canvas, patches.GRAY)
    coarse, sample, total = int(chosen.sample**0.5), sampled(windows, chosen), len(windows) + 1
    occlusion.explain(explained(asked.model, chosen, asked.engine))
    times = []
    for repeat in range(chosen.repeats):
        row = asked.rows[repeat % len(asked.rows)]
        empty = explained(asked.model, chosen, asked.engine)
        ours, _ = timed(partial(occlusion.explain, empty), chosen.device)
        theirs, _ = timed(partial(captum, asked, row, coarse, per_eval), chosen.device)
        dense_sweep = partial(dense.sweep, asked, windows, fill, only=sample)
        plainly, _ = timed(dense_sweep, chosen.device)
        theirs *= len(asked.rows) * total / (coarse**2 + 1)
        times.append((ours, theirs, plainly * total / (len(sample) + 1)))
    return times


def sampled(windows: Windows, chosen: Namespace) -> list[int]:
    return np.linspace(0, len(windows) - 1, chosen.sample).astype(int).tolist()


def measure(chosen: Namespace) -> Measured:
    torch.set_num_threads(chosen.threads)
    model = livened(kazemi(chosen.trunk, chosen.px, chosen.device))
    same = {"precision": chosen.precision, "batch": chosen.batch}
    engine, dense = Engine(model, Options(**same)), Engine(model, Options(way="dense", **same))
    (request,) = Occlusion(grid=chosen.grid).sweeps(model.geometry)
    choice = engine.choice(request)
    dense.choice(request)
    asked = explained(model, chosen, engine)
    per_eval = fastest_per_eval(asked, int(chosen.sample**0.5))
    times = in_turn(chosen, asked, dense, request.windows, per_eval)
    ours, theirs, plainly = zip(*times, strict=True)
    sample = sampled(request.windows, chosen)
    max_abs_err, rank_corr = error(asked, request.windows, sample)
    return Measured(
        trunk=chosen.trunk,
        px=chosen.px,
        grid=chosen.grid,
        questions=chosen.questions,
        targets=chosen.targets,
        engine=choice.way,
        captum_ms=1e3 * statistics.median(theirs),
        plain_ms=1e3 * statistics.median(plainly),
        ours_ms=1e3 * statistics.median(ours),
        ratio_captum=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        ratio_plain=statistics.median(b / a for a, b in zip(ours, plainly, strict=True)),
        flop_ratio=choice.flop_ratio,
        max_abs_err=max_abs_err,
        rank_corr=rank_corr,
        captum_per_eval=per_eval,
        sample=len(sample),
        machine=machine(chosen.device) + (", TF32" if chosen.precision == "tf32" else ""),
    )


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def row(m: Measured) -> str:
    """The table's row."""
    return (
        f"| {m.trunk} | {m.px} | {m.grid} | {m.questions} x {m.targets} | {m.engine} "
        f"| {_ms(m.captum_ms)} | {_ms(m.plain_ms)} | {_ms(m.ours_ms)} | **{m.ratio_captum:.2f}** "
        f"| {m.ratio_plain:.2f} | {m.flop_ratio:.2f} | {m.max_abs_err:.1e} | {m.rank_corr:.5f} "
        f"| {m.machine} |"
    )


def case_of(row: str) -> tuple[list[str], bool]:
    """What a row is about: trunk, pixels, grid, questions and targets; rounded to TF32 or not."""
    return row.split(" | ")[:4], "TF32" in row


def record(measured: Measured, device: str) -> None:
    """Put the row into the device's table, in place of one for the same case."""
    text, title = RESULTS.read_text(), TITLES[device]
    head, found, rest = text.partition(title)
    section, *others = rest.split("\n## ", 1) if found else [f"\n\n{HEADER}\n"]
    case = case_of(row(measured))
    lines = [line for line in section.rstrip().splitlines() if case_of(line) != case]
    last = max(i for i, line in enumerate(lines) if line.startswith("|"))
    lines.insert(last + 1, row(measured))  # notes stand below the table
    after = f"\n\n## {others[0]}" if others else "\n"
    RESULTS.write_text(f"{head.rstrip()}\n\n{title}" + "\n".join(lines) + after)


def main() -> None:
    chosen = options()
    with arithmetic(chosen.precision):  # Captum's too
        measured = measure(chosen)
    print(json.dumps(asdict(measured)) if chosen.json else f"{HEADER}\n{row(measured)}")
    if chosen.record:
        record(measured, chosen.device)


if __name__ == "__main__":
    main()
