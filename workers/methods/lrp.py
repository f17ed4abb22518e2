"""Layer-wise relevance propagation through the trunk, as Zennit computes it.

Anders et al. 2021, "Software for Dataset-wide XAI: From Local Explanations to Global Insights with
Zennit, CoRelAy, and ViRelAy". The library's name and version go into the run's definition.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workers.methods.backward import head_gradients
from workers.methods.base import Maps, Scene
from workers.methods.gradients import FEATURES, PIXELS, PixelMethod, Reduction
from workers.models.base import Capability, Geometry, SplitModel, VQAModel
from workers.sweep.batches import in_batches

Composite = Literal["epsilon_plus_flat", "epsilon_plus", "epsilon_alpha2_beta1_flat"]


class LRP(PixelMethod):
    """Relevance of pixels (Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier
    Decisions by Layer-Wise Relevance Propagation"), by a ``zennit`` composite of rules.

    The trunk is a network of convolutions, where the rules are defined; the head, with its
    attention and products, is not: relevance enters the trunk as ``features * d f / d features``,
    which is what the rule LRP-0 gives for a head that is piecewise linear. Batch normalisation is
    merged into the convolution before it, and residual sums share relevance by what they add up.

    Array ``map (row, y, x)``, signed, summed up over the channels.
    """

    needs: ClassVar[frozenset[Capability]] = PIXELS | FEATURES
    library: ClassVar[str | None] = f"zennit {version('zennit')}"
    reduction: Reduction = "sum"
    composite: Composite = "epsilon_plus_flat"
    """``epsilon_plus_flat``: z+ for convolutions, the flat rule for the first (Kohlbrenner et al.
    2020 call the like best practice)."""

    def passes(self, geometry: Geometry) -> int:
        return 2

    def objection(self, model: VQAModel) -> str | None:
        """A trunk with an operation that no rule is for, or whose batch normalisation does not
        follow the convolution it would be merged into."""
        assert isinstance(model, SplitModel)
        reason = self._unruled(model)
        if reason is None:
            return None
        return (
            f"{reason} in the trunk of model {type(model).__name__}; it needs convolutions, each "
            "before its batch normalisation, ReLUs, pooling, and residual sums of torchvision's "
            "ResNets. Remove the method."
        )

    @torch.no_grad()
    def _unruled(self, model: SplitModel) -> str | None:
        size = (1, 3, model.geometry.input_height, model.geometry.input_width)
        drawn = torch.Generator().manual_seed(0)
        canvas = (torch.rand(size, generator=drawn) * 255).to(model.device, model.dtype)
        called = modules_of_trunk(model, canvas)
        if twice := sorted({n for n in called if called.count(n) > 1 and weighs(model, n)}):
            return f"keeps one input a layer, and {twice[0]} is called more than once"
        pixels = model.normalise(canvas)
        before = model.trunk(pixels.clone())
        try:
            with self._rules(trunk_of(model, canvas)), _Operations() as seen:
                after = model.trunk(pixels.clone())
        except RuntimeError:  # shapes that do not fit
            return "cannot merge the batch normalisation"
        if others := sorted(seen.names - RULED):
            return f"has no rule for {', '.join(others)}"
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
            return "cannot merge the batch normalisation"
        return None

    def explain(self, scene: Scene) -> Maps:
        gradients = head_gradients(scene, self.score, "saliency").features
        relevance = gradients * scene.features
        root = trunk_of(scene.split, scene.canvas[None].to(scene.model.dtype))
        with self._rules(root):
            found = in_batches(scene, len(relevance), lambda rows: _at(scene, relevance[rows]))
        return self._reduced(found)

    @contextmanager
    def _rules(self, root: nn.Module) -> Iterator[None]:
        """Of the composite, while the context lasts."""
        with _out_of_place(root), _COMPOSITES[self.composite]().context(root):
            yield


def _at(scene: Scene, relevance: Tensor) -> Tensor:
    """Relevance ``(row, channel, y, x)`` at the features -> at the pixels ``(row, 3, y, x)``."""
    with torch.enable_grad():
        pixels = scene.pixels.repeat(len(relevance), 1, 1, 1).requires_grad_()
        features = scene.split.trunk(pixels.clone())
        return torch.autograd.grad(features, pixels, relevance)[0]


RULED = frozenset(
    {
        *("convolution", "relu", "relu_", "max_pool2d_with_indices", "avg_pool2d", "linear"),
        *("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"),
        *("cat", "stack", "sum", "mean", "_adaptive_avg_pool2d", "addmm", "t"),
        *("view", "view_as", "_unsafe_view", "alias", "clone", "detach", "expand", "squeeze"),
        *("unsqueeze", "slice", "empty", "_to_copy", "permute", "transpose", "flip"),
    }
)
"""What rules are for, or what moves values only. A sum is one that a canonizer has put there."""


class _Operations(TorchDispatchMode):
    """The names of all operations that run while the context lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def trunk_of(model: SplitModel, canvas: Tensor) -> nn.Module:
    """The smallest part of the model that has all modules a trunk pass calls: the rule for the
    first layer must not take one of the head for it."""
    called = modules_of_trunk(model, canvas)
    if len(set(called)) == 1:
        return model.get_submodule(called[0])
    paths = [name.split(".")[:-1] for name in called]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return model.get_submodule(".".join(shared))


def weighs(model: SplitModel, name: str) -> bool:
    """Whether a module has weights of its own."""
    return any(True for _ in model.get_submodule(name).parameters(recurse=False))


def modules_of_trunk(model: SplitModel, canvas: Tensor) -> list[str]:
    """The names of the modules without parts that a trunk pass calls, in their order."""
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if name and not any(module.children())
    ]
    try:
        with torch.no_grad():
            model.trunk(model.normalise(canvas))
    finally:
        for handle in handles:
            handle.remove()
    return called


@contextmanager
def _out_of_place(root: nn.Module) -> Iterator[None]:
    """Rules keep a layer's output, which an activation in place would overwrite."""
    inside = [m for m in root.modules() if getattr(m, "inplace", False)]
    for module in inside:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in inside:
            module.inplace = True  # type: ignore[assignment]


def _named(name: str) -> Callable[[], Any]:
    """A composite by its class, its canonizers those of torchvision's residual networks, which do
    nothing to others."""

    def build() -> Any:
        from zennit import composites
        from zennit.torchvision import ResNetCanonizer

        return getattr(composites, name)(canonizers=[ResNetCanonizer()])

    return build


_COMPOSITES: dict[Composite, Callable[[], Any]] = {
    "epsilon_plus_flat": _named("EpsilonPlusFlat"),
    "epsilon_plus": _named("EpsilonPlus"),
    "epsilon_alpha2_beta1_flat": _named("EpsilonAlpha2Beta1Flat"),
}
