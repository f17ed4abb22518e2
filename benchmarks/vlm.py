"""A generative model swept by occlusion: its prompts shared, read one by one, and the plain loop.

    python benchmarks/vlm.py [--side 112] [--hidden 256] [--layers 6] [--record]

A LLaVA of random weights. The plain loop puts every candidate's whole text through the net, a batch
of painted images at a time; then each question's prompt is read once for all its candidates; then
what the prompts begin with is read once for all questions. The three are timed in turn, and their
answers compared.
"""

import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from against_captum import machine, put_section

from tests import hub
from workers.models.chooser import likelihoods
from workers.models.generative import Generative
from workers.models.huggingface import HuggingFaceSpec

QUESTIONS = (
    "what is the colour of the thing on the left ?",
    "is it red ?",
    "how many dogs are in this picture ?",
)
ANSWERS = ("yes", "no", "red", "blue", "one", "two", "dog", "left")


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


def ours(model: Generative, canvases: torch.Tensor, shared: bool) -> torch.Tensor:
    model.shares = shared
    return model.answers_to_all(canvases, [tuple(q.split()) for q in QUESTIONS])


def build(folder: Path, chosen: Any) -> Generative:
    hub.llava(folder, chosen.side, chosen.hidden, chosen.layers)
    model = HuggingFaceSpec(path=str(folder), answers=ANSWERS).build(torch.device("cpu"))
    assert isinstance(model, Generative)
    return model


def seconds(compute: Any, *arguments: Any) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    found = compute(*arguments)
    return time.perf_counter() - start, found


@torch.no_grad()
def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("side", 112), ("hidden", 256), ("layers", 6), ("images", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write to RESULTS.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder) / "llava", chosen)
    drawn = np.random.default_rng(0).random((chosen.images, 3, chosen.side, chosen.side))
    canvases = torch.from_numpy(255 * drawn).float()
    ways = (
        ("plain loop", plain_loop, (model, canvases)),
        ("a prompt read once for its candidates", ours, (model, canvases, False)),
        ("their beginning read once for all questions", ours, (model, canvases, True)),
    )
    timed = [[seconds(way, *given) for _, way, given in ways] for _ in range(chosen.repeats)]
    exact = timed[0][0][1]
    rows = []
    for number, (name, _, _) in enumerate(ways):
        took = [run[number][0] / chosen.images for run in timed]
        ratio = median(run[0][0] / run[number][0] for run in timed)
        apart = float((timed[0][number][1] - exact).abs().max())
        rows.append(f"| {name} | {1000 * median(took):,.0f} | {ratio:.2f} | {apart:.1e} |")
    text = "\n".join(
        [
            "## A generative model's answers to a painted image",
            "",
            f"LLaVA of random weights, {chosen.layers} layers of {chosen.hidden}, images of "
            f"{chosen.side} pixels in patches of 8, {len(QUESTIONS)} questions, {len(ANSWERS)} "
            "candidates.",
            "",
            "| way | ms an image | ratio to the plain loop | largest difference of a logit |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
            f"- `python benchmarks/vlm.py`; {machine()}",
            "",
        ]
    )
    print(text)
    if chosen.record:
        put_section("A generative model's answers to a painted image", text)


if __name__ == "__main__":
    main()
