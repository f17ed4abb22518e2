"""What the metrics that ask the model need of it and cost, known before any worker starts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.progress import clock
from schemas.config import RunConfig
from schemas.run import RunRecord
from schemas.shard import Task, by_image
from workers import catalog
from workers.checks.base import Check
from workers.errors import UserError
from workers.evaluate import HUMAN, by_metric
from workers.methods.base import ImageMethod
from workers.metrics.base import Measure, Metric
from workers.models.base import Capability, VQAModel
from workers.models.digest import check_weights
from workers.probe import forward_seconds, threads


@dataclass(frozen=True)
class Cost:
    """What a check will cost at most; equal painted images are computed once and cost less."""

    label: str
    examples: int
    images: int
    maps: int
    passes: int
    """Trunk passes forward."""
    seconds: float
    left_out: tuple[str, ...] = ()
    """Methods it is not made of."""

    def __str__(self) -> str:
        without = f"; not of {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.label}: {self.maps:,} maps of {self.examples:,} examples, at most "
            f"{self.passes:,} trunk passes, about {clock(self.seconds)}{without}"
        )


def image_methods(config: RunConfig) -> dict[str, ImageMethod]:
    """Those whose maps are evaluated."""
    methods = catalog.methods(config.methods)
    return {label: m for label, m in methods.items() if isinstance(m, ImageMethod)}


def subject(config: RunConfig, record: RunRecord) -> VQAModel | None:
    """The run's model where a metric asks it: the same that the maps were made with."""
    if not catalog.checks(config.metrics):
        return None
    model = catalog.model_spec(config.model).build(catalog.pick_device(config.resources.device))
    check_weights(model, record.model)
    check_metrics(catalog.checks(config.metrics), model)
    return model


def check_metrics(checks: Mapping[str, Check], model: VQAModel) -> None:
    """Refuse a metric that needs what the model does not provide."""
    for label, check in checks.items():
        if lack := lacking(check.needs, model):
            raise UserError(f"metrics.{label} {lack} Remove the metric or choose another model.")


def lacking(needs: Collection[Capability], model: VQAModel) -> str | None:
    """What a method or a metric needs and a model does not provide, in a sentence."""
    missing = sorted(set(needs) - model.provides)
    if not missing:
        return None
    name, provided = type(model).__name__, ", ".join(sorted(model.provides))
    if Capability.LOGITS in missing and Capability.REGIONS in model.provides:
        return (
            f"changes the pixels, and they do not reach model {name}: it sees regions, whose "
            f"features were computed beforehand (it provides {provided})."
        )
    return (
        f"needs {', '.join(missing)}, which model {name} does not provide (it provides {provided})."
    )


def labels(
    metrics: Mapping[str, Measure],
    methods: Mapping[str, ImageMethod],
    explained: Collection[str],
    model: VQAModel | None,
) -> set[str]:
    """Every ``metric:method`` there is to compute, of the methods that have been explained."""
    found = set()
    for name, metric in metrics.items():
        own = sorted(set(explained) & set(methods))
        if isinstance(metric, Check):
            assert model is not None
            own = [label for label in own if metric.applies(methods[label], model)]
        elif isinstance(metric, Metric):
            own = [*own, HUMAN]
        found |= {f"{name}:{label}" for label in own}
    return found


def costs(config: RunConfig, model: VQAModel | None, tasks: Sequence[Task]) -> list[Cost]:
    """What the tasks' checks will cost, one entry a check; nothing is timed where there is none."""
    checks = catalog.checks(config.metrics)
    if model is None or not checks or not tasks:
        return []
    with threads(config.resources.threads):
        seconds = forward_seconds(model, config.resources.batch) / config.resources.workers
    found = [_cost(label, check, config, model, tasks, seconds) for label, check in checks.items()]
    return [cost for cost in found if cost.examples]


def _cost(
    label: str,
    check: Check,
    config: RunConfig,
    model: VQAModel,
    tasks: Sequence[Task],
    seconds: float,
) -> Cost:
    methods, targets = image_methods(config), len(config.targets)
    examples = images = maps = passes = 0
    for task in tasks:
        asked = by_metric(task.labels).get(label, ())
        own = {name: methods[name] for name in asked}
        chosen = [e for e in task.shard.examples if own and check.chooses(e.question_id)]
        each, count = check.passes(own, model), len(chosen) * len(own) * targets
        examples, maps = examples + len(chosen), maps + count
        images += len(by_image(chosen))
        passes += len(by_image(chosen)) * each.image + count * each.map
    left_out = tuple(sorted(n for n, m in methods.items() if not check.applies(m, model)))
    return Cost(label, examples, images, maps, passes, passes * seconds, left_out)
