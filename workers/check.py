"""Whether a model keeps what every map relies on, found by asking it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from workers.asked import ask
from workers.explain import Failed, guarded
from workers.models.base import Capability, Tokens, VQAModel

SHORT, LONG = "what is this", "what is the colour of the thing on the left of this one"


@dataclass(frozen=True)
class Check:
    """One thing that must hold, and what was found."""

    name: str
    passed: bool
    found: str
    remedy: str
    """What to do where it does not hold."""


@dataclass(frozen=True)
class Probe:
    """A model, two canvases ``(2, 3, y, x)`` of pictures it has never seen, two questions."""

    model: VQAModel
    canvases: Tensor
    short: Tokens
    long: Tokens

    def ask(self, images: Sequence[int], questions: Sequence[Tokens]) -> Tensor:
        """Logits ``(n, answer)``; the model gets copies, which it may overwrite."""
        with torch.no_grad():
            return self.model.logits(self.canvases[list(images)].clone(), list(questions))

    def equal(self, a: Tensor, b: Tensor) -> tuple[bool, str]:
        """Whether two tensors of logits are equal but for rounding, and how far apart they are."""
        limit = sqrt(torch.finfo(a.dtype).eps)
        apart = _apart(a, b)
        return apart <= limit, f"differ by {apart:.1e} of the largest logit (at most {limit:.0e})"

    def different(self, a: Tensor, b: Tensor) -> tuple[bool, str]:
        """Whether they differ by more than the order of sums can make them."""
        limit = 16 * torch.finfo(a.dtype).eps
        apart = _apart(a, b)
        return apart > limit, f"differ by {apart:.1e} of the largest logit (more than {limit:.0e})"


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12)


def check_model(model: VQAModel) -> list[Check]:
    """Every check that concerns a model of its capabilities; what the model raises is a failure
    of the check that it raises in."""
    probe = guarded(lambda: make_probe(model))
    if isinstance(probe, Failed):
        return [Check("images and questions", False, _said(probe), "mend prepare or tokenise")]
    return [_run(probe, name, *entry) for name, entry in CHECKS.items() if _concerns(name, model)]


def make_probe(model: VQAModel) -> Probe:
    """Two pictures of one shape, wider than tall: coarse colours under grain."""
    canvases = []
    for seed in (1, 2):
        drawn = np.random.default_rng(seed)
        coarse = drawn.integers(0, 256, (6, 8, 3)).repeat(40, 0).repeat(40, 1)
        grain = drawn.integers(-20, 21, coarse.shape)
        canvas, _ = model.prepare((coarse + grain).clip(0, 255).astype(np.uint8))
        canvases.append(canvas.to(model.device, model.dtype))
    short, long = model.tokenise(SHORT), model.tokenise(LONG)
    bound = ask(model, canvases[0], [short, long], [None, None]).model
    return Probe(bound, torch.stack(canvases), short, long)


def _concerns(name: str, model: VQAModel) -> bool:
    needed = {"gradients flow": Capability.GRADIENTS, "parts agree": Capability.SPLIT}
    return name not in needed or needed[name] in model.provides


def _run(probe: Probe, name: str, check: Callable[[Probe], tuple[bool, str]], remedy: str) -> Check:
    result = guarded(lambda: check(probe))
    if isinstance(result, Failed):
        return Check(name, False, _said(result), remedy)
    return Check(name, *result, remedy)


def _said(failed: Failed) -> str:
    return f"{type(failed.error).__name__}: {str(failed.error)[:300]}"


def _evaluating(probe: Probe) -> tuple[bool, str]:
    training = [n or "the model" for n, m in probe.model.named_modules() if m.training]
    return not training, f"in training mode: {training[0]}" if training else "eval"


def _frozen(probe: Probe) -> tuple[bool, str]:
    free = [name for name, p in probe.model.named_parameters() if p.requires_grad]
    count = sum(p.numel() for p in probe.model.parameters())
    return not free, f"{free[0]} requires a gradient" if free else f"{count:,} weights"


def _finite(probe: Probe) -> tuple[bool, str]:
    logits = probe.ask([0, 1], [probe.short, probe.long])
    bad = int((~logits.isfinite()).sum())
    return not bad, f"{bad} of {logits.numel()} logits are not finite" if bad else "finite"


def _deterministic(probe: Probe) -> tuple[bool, str]:
    first, second = (probe.ask([0, 1], [probe.short, probe.short]) for _ in range(2))
    same = torch.equal(first, second)
    return same, f"two calls differ by {_apart(first, second):.1e} of the largest logit"


def _batch_invariant(probe: Probe) -> tuple[bool, str]:
    together = probe.ask([0, 1], [probe.short, probe.short])
    alone = torch.cat([probe.ask([i], [probe.short]) for i in (0, 1)])
    passed, apart = probe.equal(together, alone)
    return passed, f"batched and single {apart}"


def _padding(probe: Probe) -> tuple[bool, str]:
    together = probe.ask([0, 0], [probe.short, probe.long])
    alone = torch.cat([probe.ask([0], [q]) for q in (probe.short, probe.long)])
    passed, apart = probe.equal(together, alone)
    return passed, f"beside a longer question and alone {apart}"


def _empty(probe: Probe) -> tuple[bool, str]:
    finite = bool(probe.ask([0], [()]).isfinite().all())
    return finite, "answered" if finite else "its logits are not finite"


def _image_matters(probe: Probe) -> tuple[bool, str]:
    logits = probe.ask([0, 1], [probe.short, probe.short])
    passed, apart = probe.different(*logits)
    return passed, f"two images {apart}"


def _question_matters(probe: Probe) -> tuple[bool, str]:
    logits = probe.ask([0, 0], [probe.short, probe.long])
    passed, apart = probe.different(*logits)
    return passed, f"two questions {apart}"


def _input_kept(probe: Probe) -> tuple[bool, str]:
    given = probe.canvases.clone()
    with torch.no_grad():
        probe.model.logits(given, [probe.short] * 2)
    kept = torch.equal(given, probe.canvases)
    return kept, "left as it was" if kept else "the images were overwritten"


def _gradients(probe: Probe) -> tuple[bool, str]:
    canvas = probe.canvases[:1].clone().requires_grad_()
    with torch.enable_grad():
        # Not the top one's alone: where it is all but certain it does not move.
        size = probe.model.logits(canvas.clone(), [probe.short]).square().sum()
    (gradient,) = torch.autograd.grad(size, canvas)
    largest = float(gradient.abs().max())
    return bool(gradient.isfinite().all()) and largest > 0, f"up to {largest:.1e} at the pixels"


def _parts_agree(probe: Probe) -> tuple[bool, str]:
    """The parts that sweeps use, and the model's own ``logits`` where a user's class has both."""
    model = probe.model
    all_at_once = model.answers_to_all(probe.canvases.clone(), [probe.short, probe.long])
    own = getattr(getattr(model, "own", None), "logits", None)
    asked = [probe.short, probe.long]
    strings = [" ".join(tokens) for tokens in asked]
    with torch.no_grad():
        whole = own(probe.canvases.clone(), strings) if own else probe.ask([0, 1], asked)
    passed, apart = probe.equal(all_at_once[[0, 1], [0, 1]], whole)
    return passed, f"parts and whole {apart}"


CHECKS: dict[str, tuple[Callable[[Probe], tuple[bool, str]], str]] = {
    "finite logits": (_finite, "look for overflow, or weights that did not load"),
    "deterministic": (_deterministic, "switch sampling and functional dropout off"),
    "batch invariance": (
        _batch_invariant,
        "normalise by running statistics, and let no image see its batch",
    ),
    "padding": (_padding, "mask padded words, or pack the sequences"),
    "empty question": (_empty, "accept '' as all padding: dropping a question's only word asks it"),
    "image matters": (_image_matters, "see that the image reaches the logits"),
    "question matters": (_question_matters, "see that the question reaches the logits"),
    "input kept": (_input_kept, "do not write into the images in place"),
    "gradients flow": (_gradients, "leave out detach(), no_grad() and numpy on the way"),
    "parts agree": (_parts_agree, "make logits the head of trunk and encode, nothing else"),
    "eval mode": (_evaluating, "leave out train(), also in the forward pass"),
    "frozen weights": (_frozen, "leave out requires_grad_(), also in the forward pass"),
}
"""Name -> the check and the remedy; what a forward pass can change comes last."""
