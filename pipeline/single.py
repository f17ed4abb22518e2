"""One picture and one question, no store and no Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.plan import check_capabilities, unfit
from pipeline.recipe import read_recipe
from schemas.config import BASELINES, Component
from schemas.frame import Frame
from schemas.limits import Limits
from workers import catalog
from workers.asked import ask
from workers.errors import UserError
from workers.explain import explain_scene, wants_gradients
from workers.images import decode
from workers.methods.base import Maps, Method, Scene, WordScores
from workers.models.base import VQAModel
from workers.models.specs import family
from workers.probe import forward_seconds
from workers.questions import check_question
from workers.sweep.engine import Engine

LIMITS = Limits()
UNASKED = (*BASELINES, "rise")
"""What is explained by on request only: baselines, and RISE with its thousand passes."""
WORTH_SECONDS = 10
"""A sweep shorter than this is over before an engine is ready."""


@dataclass(frozen=True)
class Explanation:
    """Why a model gave one answer: ``maps[method][array]`` and ``words[method]``."""

    image: np.ndarray
    """What the model saw: uint8 RGB ``(y, x, 3)``."""
    frame: Frame
    question: str
    tokens: tuple[str, ...]
    unknown: tuple[str, ...]
    """Those of the tokens that the model's vocabulary does not have."""
    answer: str
    """What is explained: the prediction, unless another answer was asked for."""
    probability: float
    """Of ``answer``."""
    prediction: str
    confidence: float
    """The probability of ``prediction``."""
    maps: Mapping[str, Mapping[str, np.ndarray]]
    """Method -> array name -> ``(y, x)``; the method's primary array comes first."""
    words: Mapping[str, np.ndarray]
    """Method -> one importance a token."""


def explain(
    model: str | Mapping[str, Any] | VQAModel,
    image: str | Path | np.ndarray,
    question: str,
    methods: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None = None,
    answer: str | None = None,
    device: str = "auto",
    image_id: int | None = None,
) -> Explanation:
    """Explain one answer by every method asked for; by all that suit the model where none is.

    ``model`` is a catalogue name (``"demo"``), a ``.safetensors`` file of one of our models, a
    recipe's file or its model section, or a built model; ``image`` a file, ``s3://bucket/key`` or
    upright uint8 RGB ``(y, x, 3)``; ``methods`` a name, names, or label -> options; ``answer`` the
    answer to explain in place of the prediction. ``image_id`` is the number under which a model
    of regions finds the image's; by default the one that ends the file's name, as in COCO's.
    """
    built = _model(model, device)
    chosen = catalog.methods(_options(suitable(built) if methods is None else methods))
    check_capabilities(chosen, built)
    scene, frame = _scene(built, image, question, answer, image_id)
    scene.gradients = wants_gradients(chosen.values())
    passes = sum(method.passes(built.geometry) for method in chosen.values())
    if passes * forward_seconds(built, scene.batch) > WORTH_SECONDS:
        scene.engine = Engine(built)
    results = {label: explain_scene(method, scene) for label, method in chosen.items()}
    last = len(scene.rows) - 1
    probabilities = scene.output.logits[0].softmax(-1)
    return Explanation(
        image=scene.canvas.permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy(),
        frame=frame,
        question=question,
        tokens=tuple(scene.questions[0]),
        unknown=tuple(word for word in scene.questions[0] if word and not built.known(word)),
        answer=scene.model.answers[scene.rows[last].answer],
        probability=float(probabilities[scene.rows[last].answer]),
        prediction=scene.model.answers[scene.predictions[0]],
        confidence=float(probabilities[scene.predictions[0]]),
        maps={
            label: _arrays(chosen[label], result, last)
            for label, result in results.items()
            if isinstance(result, Maps)
        },
        words={
            label: result.importances[last]
            for label, result in results.items()
            if isinstance(result, WordScores)
        },
    )


def _options(
    methods: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None],
) -> dict[str, dict[str, Any]]:
    if isinstance(methods, Mapping):
        return {label: dict(options or {}) for label, options in methods.items()}
    return {name: {} for name in ([methods] if isinstance(methods, str) else methods)}


def suitable(model: VQAModel) -> tuple[str, ...]:
    """Every method that can explain the model, but the baselines and RISE."""
    methods = catalog.methods({name: {} for name in catalog.METHODS if name not in UNASKED})
    return tuple(name for name, method in methods.items() if not unfit(method, model))


def _model(model: str | Mapping[str, Any] | VQAModel, device: str) -> VQAModel:
    if isinstance(model, VQAModel):
        return model
    component = _component(model) if isinstance(model, str) else Component(**model)
    return catalog.model_spec(component).build(catalog.pick_device(device))


def _component(name: str) -> Component:
    path = Path(name)
    if path.suffix == ".safetensors":
        return Component(**{"name": family(path), "checkpoint": name})
    return read_recipe(path).model if path.suffix in (".yaml", ".yml") else Component(name=name)


def _scene(
    model: VQAModel,
    image: str | Path | np.ndarray,
    question: str,
    answer: str | None,
    image_id: int | None,
) -> tuple[Scene, Frame]:
    """The one-question scene; its last row explains the answer asked for."""
    if not isinstance(question, str):
        raise UserError(f"the question is {question!r}, a {type(question).__name__}: give a text")
    pixels = _checked(image) if isinstance(image, np.ndarray) else decode(image, LIMITS)
    seen = model.see(pixels, _number(image) if image_id is None else image_id)
    tokens = model.tokenise(question)
    check_question(question, tokens, model.known, LIMITS)
    asked = ask(model, seen.canvas, [tokens], [answer])
    if answer is not None and asked.truths == [None]:
        close = get_close_matches(answer, model.answers, n=5, cutoff=0.0)
        raise UserError(
            f"answer {answer!r} is not among the model's {len(model.answers)} answers; "
            f"the closest are {', '.join(close)}"
        )
    scene = Scene(
        model=asked.model,
        canvas=seen.canvas,
        regions=seen.regions,
        questions=[tokens],
        question_ids=[0],
        cut_off=[model.cut_off(question)],
        truths=asked.truths,
        written=asked.predictions,
    )
    return scene, seen.frame


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"the image is an array of {image.dtype}, shape {image.shape}; give upright uint8 RGB "
            "(y, x, 3): of floats in 0..1 (x * 255).astype('uint8'), of gray np.stack([x] * 3, -1)"
        )
    return image


def _number(image: str | Path | np.ndarray) -> int | None:
    """42 of ``COCO_val2014_000000000042.jpg``, None where no number ends the name."""
    name = "" if isinstance(image, np.ndarray) else Path(image).stem
    found = re.search(r"\d{1,18}$", name)
    return int(found[0]) if found else None


def _arrays(method: Method, result: Maps, row: int) -> dict[str, np.ndarray]:
    """One row's arrays, the primary first; arrays that ignore the target have one question."""
    names = sorted(result.arrays, key=lambda name: name != method.primary)
    return {name: result.arrays[name][min(row, len(result.arrays[name]) - 1)] for name in names}
