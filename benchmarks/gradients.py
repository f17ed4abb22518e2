"""Five gradient methods of one image, three questions, two targets each: ours and Captum's.

    python benchmarks/gradients.py [--repeats 9] [--questions 3] [--trunk resnet18] [--pixels 224]

Saliency, guided backpropagation, deconvnet, Grad-CAM and guided Grad-CAM: five calls of Captum a
question and target; ours share their passes, from an empty scene. Float32 sums in another order
flip a ReLU at zero here and there, so equality is measured in float64 too. ``--record`` writes the
figures to RESULTS.md.
"""

import warnings

import numpy as np
from against_captum import QUESTIONS, Asked, in_turn, kazemi, options, report, scene
from captum import attr
from torch import Tensor

from workers.methods.base import Row, Scene
from workers.methods.gradients import (
    Deconvnet,
    GradCam,
    GuidedBackprop,
    GuidedGradCam,
    Saliency,
)
from workers.models.kazemi import Kazemi

OURS = {
    "saliency": Saliency(reduction="sum"),
    "guided_backprop": GuidedBackprop(reduction="sum"),
    "deconvnet": Deconvnet(reduction="sum"),
    "grad_cam": GradCam(),
    "guided_grad_cam": GuidedGradCam(reduction="sum"),
}


def ours(model: Kazemi, questions: int) -> dict[str, np.ndarray]:
    asked = scene(model, QUESTIONS[:questions], gradients=True)
    maps = {name: method.explain(asked).arrays for name, method in OURS.items()}
    return {name: arrays.get("signed", arrays["map"]) for name, arrays in maps.items()}


def captum(asked: Scene) -> dict[str, np.ndarray]:
    """Each method's maps, one a question and target, colour channels added."""
    maps = [captum_maps(asked, row) for row in asked.rows]
    return {
        name: np.stack([each[name][0].detach().sum(0).numpy() for each in maps]) for name in OURS
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


def main() -> None:
    warnings.filterwarnings("ignore", "Setting (forward, )?backward hooks")
    chosen = options(__doc__, repeats=9)
    model = kazemi(chosen.trunk, chosen.pixels)
    asked = scene(model, QUESTIONS[: chosen.questions])
    pairs = in_turn(lambda: ours(model, chosen.questions), lambda: captum(asked), chosen.repeats)
    single = largest_difference(pairs.ours, pairs.theirs)
    exact = scene(model.double(), QUESTIONS[: chosen.questions])
    double = largest_difference(ours(model, chosen.questions), captum(exact))
    notes = [
        f"{chosen.trunk}, {chosen.pixels} px, five methods, {chosen.questions} questions, "
        f"{len(asked.rows)} maps each",
        f"largest difference, in units of a method's largest value: {double:.1e} in float64, "
        f"{single:.1e} in float32",
    ]
    title = f"Gradients, {chosen.trunk}, {chosen.pixels} px, questions: {chosen.questions}"
    report(title, pairs, notes, chosen.record)


if __name__ == "__main__":
    main()
