"""The methods of a run that the study reads, in the paper's terms."""

from math import isinf, isnan
from typing import NamedTuple

from pipeline.dataset import Run
from schemas.run import Definition

METHOD, PLAIN, BLIND = "question_grad_cam", "grad_cam", "picked blindly"
FLOORS = ("random", "center")
NAMES = {"row_sum": "row sum", "l2": "L2 norm", "word": "one word", "random": BLIND}


class Setting(NamedTuple):
    """One label of the run."""

    label: str
    variant: str
    """Sensitivity, and whether shared neurons are left out; for other methods their name."""
    n: float
    """Neurons that let the gradient through; infinite for all, NaN for other methods."""

    @property
    def ours(self) -> bool:
        """Whether it is a setting of question_grad_cam."""
        return not isnan(self.n)

    @property
    def title(self) -> str:
        """For instance ``row sum, n = 25``."""
        if not self.ours:
            return self.label
        return f"{self.variant}, n = {'all' if isinf(self.n) else int(self.n)}"


def settings(run: Run) -> list[Setting]:
    """Grad-CAM and the floors first, then variant by variant with rising n."""
    defined = sorted(run.definitions.values(), key=lambda d: d.label)
    own = [_setting(d) for d in defined if d.name == METHOD]
    others = [
        Setting(d.label, d.name, float("nan"))
        for name in (PLAIN, *FLOORS)
        for d in defined
        if d.name == name
    ]
    order = {variant: i for i, variant in enumerate(variants(own))}
    return others + sorted(own, key=lambda s: (order[s.variant], s.n))


def variants(own: list[Setting]) -> list[str]:
    """The variants there are: as they are, then without the shared neurons."""
    known = [f"{name}{rest}" for rest in ("", ", not shared") for name in NAMES.values()]
    present = dict.fromkeys(setting.variant for setting in own)
    return sorted(present, key=lambda v: known.index(v) if v in known else len(known))


def _setting(definition: Definition) -> Setting:
    given = definition.parameters
    word = given.get("word", "max")
    variant = NAMES[given["sensitivity"]] + ("" if word == "max" else f" {word}")
    n = float("inf") if given["n"] == "all" else float(given["n"])
    return Setting(definition.label, variant + (", not shared" if given["not_shared"] else ""), n)
