"""What both comparisons with Captum share: the model, the timing in pairs, and the report."""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captum
import torch
from torch import Tensor, nn

from workers.methods.base import Scene
from workers.models.base import Tokens, freeze
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.sweep.machine import clock

RESULTS = Path(__file__).with_name("RESULTS.md")
sys.path.append(str(Path(__file__).parents[1]))  # the tests make nets for some benchmarks
QUESTIONS: tuple[Tokens, ...] = (
    ("what", "colour", "is", "the", "small", "circle"),
    ("is", "there", "a", "dog"),
    ("how", "many", "people", "are", "on", "the", "left"),
)


def options(doc: str, repeats: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--trunk", default="resnet18", help="any of torchvision's, or our own")
    parser.add_argument("--px", "--pixels", type=int, default=224)
    parser.add_argument("--questions", type=int, default=3, choices=range(1, 4))
    parser.add_argument("--targets", type=int, default=2, choices=(1, 2))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--record", action="store_true", help=f"write to {RESULTS.name}")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def kazemi(trunk: str, pixels: int, device: str = "cpu") -> Kazemi:
    """The published head (3,000 answers) on a random trunk whose ReLUs Captum can hook."""
    torch.manual_seed(0)
    words = tuple(dict.fromkeys(word for question in QUESTIONS for word in question))
    answers = tuple(map(str, range(3000)))
    model = freeze(
        Kazemi(KazemiConfig(trunk=trunk, image_size=pixels, words=words, answers=answers))
    )
    sharpen = 4 / scene(model, QUESTIONS).output.logits.std()
    for parameter in model.classifier.lin2.parameters():
        parameter.mul_(sharpen)  # an untrained classifier is all but indifferent
    return model.to(device)


def scene(model: Kazemi, questions: tuple[Tokens, ...], **fields: object) -> Scene:
    """A random image; each question has its prediction and another answer to explain."""
    torch.manual_seed(1)
    side = model.geometry.input_height
    noise = torch.rand(1, 3, side // 8, side // 8)
    canvas = 255 * nn.functional.interpolate(noise, (side, side), mode="bilinear")[0]
    truths = range(len(questions))
    canvas = canvas.to(model.device, model.dtype)
    return Scene(model, canvas, questions, truths, truths, **fields)


class Asked(nn.Module):
    """The model with one question: pixels -> logits, the form Captum takes."""

    def __init__(self, model: Kazemi, question: Tokens) -> None:
        super().__init__()
        self.model = model
        self.question = question

    def forward(self, pixels: Tensor) -> Tensor:
        """The question is encoded once a call, however many images there are."""
        states = self.model.encode(self.model.words([self.question]))
        features = self.model.trunk(pixels)
        return self.model.head(features, states.expand(len(features), -1)).logits


@dataclass
class Pairs:
    """Seconds of ``ours`` and ``theirs``, run in turn, and what each gave last."""

    seconds: list[tuple[float, float]]
    ours: Any
    theirs: Any

    @property
    def ratios(self) -> list[float]:
        """Of each pair, theirs to ours."""
        return [theirs / ours for ours, theirs in self.seconds]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)


def in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, device: str = "cpu"
) -> Pairs:
    runs = [(timed(ours, device), timed(theirs, device)) for _ in range(repeats)]
    (_, our_result), (_, their_result) = runs[-1]
    return Pairs([(a[0], b[0]) for a, b in runs], our_result, their_result)


def timed(run: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Seconds, of the processor where one thread runs (other work on the machine does not count),
    of a GPU until it has done its work; and the result."""
    on_cpu = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    now = on_cpu if device == "cpu" else clock(torch.device(device))
    start = now()
    result = run()
    return now() - start, result


def report(title: str, pairs: Pairs, notes: list[str], record: bool) -> None:
    """A Markdown section, printed, and put in place of the one of the same title."""
    ratios = pairs.ratios
    ours, theirs = (statistics.median(column) for column in zip(*pairs.seconds, strict=True))
    text = "\n".join(
        [
            f"## {title}",
            "",
            "| ours | Captum | ratio, median of pairs | smallest to largest | pairs |",
            "| --- | --- | --- | --- | --- |",
            f"| {ours:.3f} s | {theirs:.3f} s | **{pairs.ratio:.2f}** "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {len(ratios)} |",
            "",
            *(f"- {note}" for note in [*notes, machine()]),
            "",
        ]
    )
    print(text)
    if record:
        put_section(title, text)


def machine(device: str = "cpu") -> str:
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"captum {captum.__version__}"
    )
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; {versions}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cores = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{cores[0]}, {len(cores)} cores, {torch.get_num_threads()} thread; {versions}"


def put_section(title: str, text: str) -> None:
    before = RESULTS.read_text() if RESULTS.exists() else "# Results\n\n"
    head, *sections = before.split("\n## ")
    kept = [f"## {section.strip()}\n" for section in sections if section.split("\n", 1)[0] != title]
    RESULTS.write_text("\n".join([head.rstrip() + "\n", *kept, text]))
