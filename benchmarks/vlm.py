"""Generative models swept by occlusion: what they share, way by way, and the plain loop.

    python benchmarks/vlm.py [--hidden 256] [--layers 6] [--grid 8] [--record]

A LLaVA and an Idefics3 of random weights. The plain loop puts every candidate's whole text through
the net, a batch of painted images at a time; then each question's prompt is read once for all its
candidates; then what the prompts begin with is read once for all questions; then it is read on from
the first tile of the image that is painted. The four are timed in turn, in seconds of the processor
on one thread, the first two on every eighth window, and their answers compared there.
"""

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from against_captum import machine, put_section

from tests import hub
from workers.models.base import Near
from workers.models.chooser import likelihoods
from workers.models.generative import Generative
from workers.models.huggingface import HuggingFaceSpec
from workers.sweep.windows import Window, grid_windows, paint

TITLE = "A generative model's answers to a painted image"
QUESTIONS = (
    "what is the colour of the thing on the left ?",
    "is it red ?",
    "how many dogs are in this picture ?",
)
ASKED = [tuple(question.split()) for question in QUESTIONS]
ANSWERS = ("yes", "no", "red", "blue", "one", "two", "dog", "left")
BATCH, EVERY = 8, 8
"""Images at once; of the slow ways every so manieth window is timed."""
Way = Callable[[torch.Tensor], torch.Tensor]


def plain_loop(model: Generative, canvases: torch.Tensor) -> torch.Tensor:
    """``(n, question, candidate)``."""
    found = []
    for question in QUESTIONS:
        given = model.inputs(canvases, question)
        start = given["input_ids"].shape[1] - 1
        for ids in model.ids:
            own = ids[ids >= 0].expand(len(canvases), -1)
            logits = model.net(**model._continued(given, own), use_cache=False).logits[:, start:]
            found.append(likelihoods(logits, own))
    return torch.stack(found, 1).unflatten(1, (len(QUESTIONS), -1))


def alone(model: Generative, canvases: torch.Tensor) -> torch.Tensor:
    """Every question by itself."""
    return torch.stack([model._scores(canvases, text, model.ids) for text in QUESTIONS], 1)


def batched(way: Way, canvases: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """In batches that lie in one group each; in the canvases' order."""
    batches = [g[i : i + BATCH] for g in groups for i in range(0, len(g), BATCH)]
    found = torch.cat([way(canvases[batch]) for batch in batches])
    return found[torch.tensor([i for batch in batches for i in batch]).argsort()]


def read_on(
    model: Generative, canvas: torch.Tensor, canvases: torch.Tensor, windows: Sequence[Window]
) -> torch.Tensor:
    """The clean image's own pass included."""
    near = model.near(canvas, ASKED)
    return batched(near, canvases, near.groups(windows))


def build(name: str, chosen: Namespace) -> Generative:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name == "llava":
            hub.llava(path, 112, chosen.hidden, chosen.layers)
        else:
            hub.smolvlm(path, 64, 4, chosen.hidden, chosen.layers)
        model = HuggingFaceSpec(path=str(path), answers=ANSWERS).build(torch.device("cpu"))
    assert isinstance(model, Generative)
    assert model.reads_on
    return model


def seconds(compute: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.process_time()
    found = compute()
    return time.process_time() - start, found


def table(name: str, chosen: Namespace) -> str:
    """Rows of one model: every way's time an image and how far its logits are from the loop's."""
    model = build(name, chosen)
    drawn = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    canvas = model.prepare(drawn)[0].round()
    windows = list(grid_windows(*canvas.shape[1:], chosen.grid))
    canvases = paint(canvas, windows, torch.full_like(canvas, 124))
    some = canvases[::EVERY]
    one, whole = [list(range(len(some)))], [list(range(len(windows)))]
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "plain loop": lambda: batched(partial(plain_loop, model), some, one),
        "a prompt read once for its candidates": lambda: batched(partial(alone, model), some, one),
        "their beginning read once for all questions": lambda: batched(
            Near(model, ASKED), canvases, whole
        ),
        "read on from the first painted tile": lambda: read_on(model, canvas, canvases, windows),
    }
    timed = [{title: seconds(way) for title, way in ways.items()} for _ in range(chosen.repeats)]
    return "\n".join(row(name, title, timed, len(some)) for title in ways)


def row(name: str, title: str, timed: list[dict[str, tuple[float, torch.Tensor]]], n: int) -> str:
    """One way's; n of its answers, evenly spread, are compared with the plain loop's."""
    found, exact = timed[0][title][1], timed[0]["plain loop"][1]
    took = [run[title][0] / len(found) for run in timed]
    loop = [run["plain loop"][0] / n for run in timed]
    ratio = median(a / b for a, b in zip(loop, took, strict=True))
    apart = float((found[:: len(found) // n] - exact).abs().max())
    return f"| {name} | {title} | {1000 * median(took):,.0f} | {ratio:.2f} | {apart:.1e} |"


def options() -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("hidden", 256), ("layers", 6), ("grid", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    chosen = options()
    torch.set_num_threads(1)
    lines = [
        f"## {TITLE}",
        "",
        f"Random weights, {chosen.layers} layers of {chosen.hidden}, patches of 8 pixels; LLaVA's "
        "images have 112 pixels, Idefics3's 4 x 4 tiles of 64 and a thumbnail; windows of a grid "
        f"of {chosen.grid}, {len(QUESTIONS)} questions, {len(ANSWERS)} candidates.",
        "",
        "| model | way | ms an image | ratio to the plain loop | largest difference of a logit |",
        "| --- | --- | ---: | ---: | ---: |",
        *[table(name, chosen) for name in ("llava", "idefics3")],
        "",
        f"- `python benchmarks/vlm.py`, processor time; {machine()}",
        "",
    ]
    print("\n".join(lines))
    if chosen.record:
        put_section(TITLE, "\n".join(lines))


if __name__ == "__main__":
    main()
