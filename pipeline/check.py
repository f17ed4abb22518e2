"""A recipe's model, looked at before a run: what it can do, what it breaks, what explains it."""

from dataclasses import dataclass

from pipeline.plan import unfit
from schemas.config import RunConfig
from workers import catalog
from workers.check import Check, check_model
from workers.methods.base import Method
from workers.models.base import VQAModel
from workers.probe import forward_seconds, threads


@dataclass(frozen=True)
class MethodOutlook:
    """Whether a method will run, and what it costs."""

    label: str
    asked: bool
    """Whether the recipe has it."""
    reason: str | None
    """Why it cannot run; None where it can."""
    seconds: float
    """Of one question and one target, by plain passes."""


@dataclass(frozen=True)
class ModelVerdict:
    """Everything that ``check-model`` tells."""

    name: str
    about: str
    """What the model says of itself; may be empty."""
    capabilities: tuple[str, ...]
    answers: int
    canvas: str
    checks: list[Check]
    methods: list[MethodOutlook]

    @property
    def sound(self) -> bool:
        """Every check passed, and every method of the recipe will run."""
        asked = [method for method in self.methods if method.asked]
        return all(c.passed for c in self.checks) and not any(m.reason for m in asked)


def check(config: RunConfig) -> ModelVerdict:
    """Build the recipe's model and look at it; the dataset is not read."""
    model = catalog.model_spec(config.model).build(catalog.pick_device(config.resources.device))
    with threads(config.resources.threads):
        checks = check_model(model)
        usable = all(c.passed for c in checks if c.name == "finite logits")
        seconds = forward_seconds(model, config.resources.batch) if usable and checks else 0.0
    asked = catalog.methods(config.methods)
    others = catalog.methods({name: {} for name in catalog.METHODS if name not in asked})
    outlooks = [
        _outlook(label, label in asked, method, model, seconds)
        for label, method in (asked | others).items()
    ]
    geometry = model.geometry
    size = f"{geometry.input_height} x {geometry.input_width}"
    return ModelVerdict(
        name=type(model).__name__,
        about=model.about,
        capabilities=tuple(sorted(model.provides)),
        answers=len(model.answers),
        canvas=f"about {size}, by the image's shape" if geometry.varies else size,
        checks=checks,
        methods=outlooks,
    )


def _outlook(
    label: str, asked: bool, method: Method, model: VQAModel, seconds: float
) -> MethodOutlook:
    reason = unfit(method, model)
    # A backward pass is taken for two forward ones.
    passes = 0 if reason else 1 + method.passes(model.geometry) + 2 * len(method.backward_passes())
    return MethodOutlook(label, asked, reason, passes * seconds)
