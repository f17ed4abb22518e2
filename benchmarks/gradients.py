"""The gradient methods of one image, all questions and targets: ours and Captum's.

    python benchmarks/gradients.py --trunk resnet18 --px 224 --questions 1 --targets 2 --json

Saliency, guided backpropagation, deconvnet, Grad-CAM and guided Grad-CAM: five calls of Captum a
question and target. Ours share their passes, from an empty scene; the gradients of the words, which
Captum's five do not give, are timed after them. Weights have been prepared by a run before, as they
are in a worker. Float32 sums in another order flip a ReLU at zero here and there, so equality is
measured in float64 too. ``--record`` writes a section of RESULTS.md.
"""

import json
import statistics
import warnings
from argparse import Namespace
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from against_captum import (
    QUESTIONS,
    Asked,
    Pairs,
    in_turn,
    kazemi,
    machine,
    options,
    report,
    scene,
    timed,
)
from captum import attr
from torch import Tensor, nn

from workers.methods.base import Row, Scene
from workers.methods.gradients import (
    Deconvnet,
    GradCam,
    GuidedBackprop,
    GuidedGradCam,
    Saliency,
)
from workers.methods.words import WordGradient
from workers.models.kazemi import Kazemi
from workers.sweep.precision import arithmetic

OURS = {
    "saliency": Saliency(reduction="sum"),
    "guided_backprop": GuidedBackprop(reduction="sum"),
    "deconvnet": Deconvnet(reduction="sum"),
    "grad_cam": GradCam(),
    "guided_grad_cam": GuidedGradCam(reduction="sum"),
}


@dataclass(frozen=True)
class Measured:
    """One line of JSON. Errors are in units of a method's largest value."""

    trunk: str
    px: int
    questions: int
    targets: int
    captum_ms: float
    ours_ms: float
    words_ms: float
    """What the gradients of the words cost on top."""
    ratio_captum: float
    """Median over the pairs."""
    max_rel_err_float64: float
    max_rel_err_float32: float
    machine: str


def model_of(chosen: Namespace) -> Kazemi:
    """Captum's hooks need ReLUs that do not overwrite their input."""
    model = kazemi(chosen.trunk, chosen.px, chosen.device)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def explained(model: Kazemi, chosen: Namespace) -> Scene:
    """An empty scene: nothing is computed yet."""
    names = ("predicted", "truth")[: chosen.targets]
    return scene(model, QUESTIONS[: chosen.questions], targets=names, gradients=True)


def ours(asked: Scene) -> dict[str, np.ndarray]:
    maps = {name: method.explain(asked).arrays for name, method in OURS.items()}
    return {name: arrays.get("signed", arrays["map"]) for name, arrays in maps.items()}


def words(asked: Scene) -> float:
    """Seconds of the gradients of the words, once the others are there."""
    ours(asked)
    return timed(lambda: WordGradient().explain(asked), asked.model.device.type)[0]


def captum(asked: Scene) -> dict[str, np.ndarray]:
    """Each method's maps, one a question and target, colour channels added."""
    maps = [captum_maps(asked, row) for row in asked.rows]
    return {
        name: np.stack([each[name][0].detach().sum(0).cpu().numpy() for each in maps])
        for name in OURS
    }


def captum_maps(asked: Scene, row: Row) -> dict[str, Tensor]:
    model, target = Asked(asked.split, asked.questions[row.question]), row.answer
    layer, pixels = asked.split.trunk_net, asked.pixels.clone().requires_grad_()
    guided_grad_cam = attr.GuidedGradCam(model, layer)
    return {
        "saliency": attr.Saliency(model).attribute(pixels, target, abs=False),
        "guided_backprop": attr.GuidedBackprop(model).attribute(pixels, target),
        "deconvnet": attr.Deconvolution(model).attribute(pixels, target),
        "grad_cam": attr.LayerGradCam(model, layer).attribute(pixels, target),
        "guided_grad_cam": guided_grad_cam.attribute(pixels, target, interpolate_mode="bilinear"),
    }


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Over all methods, in units of the method's largest value."""
    return max(
        float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in OURS
    )


def measure(chosen: Namespace) -> tuple[Measured, Pairs]:
    model = model_of(chosen)
    asked = explained(model, chosen)
    _ = asked.rows
    ours(explained(model, chosen))
    empty = partial(explained, model, chosen)
    pairs = in_turn(lambda: ours(empty()), lambda: captum(asked), chosen.repeats, chosen.device)
    spent = [words(empty()) for _ in range(chosen.repeats)]
    exact = explained(model.double(), chosen)
    measured = Measured(
        trunk=chosen.trunk,
        px=chosen.px,
        questions=chosen.questions,
        targets=chosen.targets,
        captum_ms=1e3 * statistics.median(theirs for _, theirs in pairs.seconds),
        ours_ms=1e3 * statistics.median(ours for ours, _ in pairs.seconds),
        words_ms=1e3 * statistics.median(spent),
        ratio_captum=pairs.ratio,
        max_rel_err_float64=largest_difference(ours(exact), captum(exact)),
        max_rel_err_float32=largest_difference(pairs.ours, pairs.theirs),
        machine=machine(chosen.device),
    )
    return measured, pairs


def section(measured: Measured, pairs: Pairs, record: bool) -> None:
    case = f"{measured.trunk}, {measured.px} px, questions: {measured.questions}"
    notes = [
        f"{measured.trunk}, {measured.px} px, five methods, {measured.questions} questions, "
        f"{measured.targets} targets",
        "largest difference, in units of a method's largest value: "
        f"{measured.max_rel_err_float64:.1e} in float64, {measured.max_rel_err_float32:.1e} "
        "in float32",
        f"the gradients of the words take {measured.words_ms:.0f} ms more",
    ]
    report(f"Gradients, {case}", pairs, notes, record)


def main() -> None:
    warnings.filterwarnings("ignore", "Setting (forward, )?backward hooks")
    chosen = options(__doc__ or "", repeats=9)
    with arithmetic("float32"):  # Captum's too
        measured, pairs = measure(chosen)
    if chosen.json:
        print(json.dumps(asdict(measured)))
    if not chosen.json or chosen.record:
        section(measured, pairs, chosen.record)


if __name__ == "__main__":
    main()
