"""How far inexact maps are from the exact ones, measured on a sample before a run starts."""

from collections.abc import Mapping, Sequence

import numpy as np

from schemas.config import RunConfig
from schemas.example import Example
from schemas.fidelity import Fidelity
from schemas.shard import by_image
from workers.asked import ask
from workers.images import decode
from workers.methods.base import ImageMethod, Method, Scene
from workers.models.base import VQAModel
from workers.sweep.engine import Engine, Options

IMAGES = 4
"""The sample: the first images, one question each."""


def approximation(config: RunConfig, method: Method, model: VQAModel) -> str | None:
    """What makes a method's maps inexact in this run; None where nothing does."""
    swept = bool(method.sweeps(model.geometry))
    reduced = config.precision if swept and config.precision != "float32" else None
    return ", ".join(filter(None, (method.approximation, reduced))) or None


def engine_options(config: RunConfig) -> Options:
    """What the recipe asks of the sweep engine."""
    resources = config.resources
    return Options(way=resources.engine, precision=config.precision, batch=resources.batch)


def measure(
    config: RunConfig, model: VQAModel, methods: Mapping[str, Method], examples: Sequence[Example]
) -> list[Fidelity]:
    """The fidelity of every inexact method; nothing is computed where all are exact."""
    inexact = {
        label: (method, name)
        for label, method in methods.items()
        if isinstance(method, ImageMethod) and (name := approximation(config, method, model))
    }
    if not inexact:
        return []
    sample = [questions[0] for questions in by_image(examples).values()][:IMAGES]
    own, exact = Engine(model, engine_options(config)), Engine(model)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {label: [] for label in inexact}
    for example in sample:
        for label, (method, _) in inexact.items():
            pairs[label] += _pairs(config, model, method, example, own, exact)
    return [_fidelity(label, name, pairs[label]) for label, (_, name) in inexact.items()]


def _pairs(
    config: RunConfig,
    model: VQAModel,
    method: ImageMethod,
    example: Example,
    own: Engine,
    exact: Engine,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The example's maps and the exact ones, one pair a target."""
    seen = model.see(decode(example.image, config.limits), example.image_id)
    questions = [model.tokenise(example.question)]
    asked = ask(model, seen.canvas, questions, [example.truth])

    def maps(by: ImageMethod, engine: Engine) -> np.ndarray:
        scene = Scene(
            model=asked.model,
            canvas=seen.canvas,
            regions=seen.regions,
            questions=questions,
            question_ids=[example.question_id],
            truths=asked.truths,
            written=asked.predictions,
            batch=config.resources.batch,
            engine=engine,
        )
        return by.explain(scene).arrays[by.primary]

    return list(zip(maps(method, own), maps(method.exact(), exact), strict=True))


def _fidelity(label: str, name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Fidelity:
    from scipy.stats import spearmanr  # here: it takes a second, of every worker

    varying = [(a.ravel(), b.ravel()) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
    correlations = [float(spearmanr(a, b).statistic) for a, b in varying]
    return Fidelity(
        label=label,
        approximation=name,
        maps=len(correlations),
        rank_correlation=float(np.mean(correlations)) if correlations else None,
        rank_correlation_min=min(correlations, default=None),
        max_difference=max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0),
    )
