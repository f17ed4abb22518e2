"""Image methods made of gradients; what they share is computed once, in ``backward``."""

from abc import ABC
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.arrays import ArraySpec
from workers.methods.backward import head_gradients, pixel_gradients
from workers.methods.base import ImageMethod, Maps, Scene, Score
from workers.methods.relu_rules import Rule
from workers.models.base import Capability, Geometry

Reduction = Literal["abs_max", "abs_sum", "sum"]

PIXELS = frozenset({Capability.LOGITS, Capability.GRADIENTS})
FEATURES = frozenset({Capability.SPLIT, Capability.GRADIENTS, Capability.FEATURE_MAP})


class PixelMethod(ImageMethod, ABC):
    """One value a pixel, reduced over the colour channels: array ``map (row, y, x)``."""

    needs: ClassVar[frozenset[Capability]] = PIXELS
    reduction: Reduction = "abs_max"
    """``abs_max`` is ``max_c |g_c|`` (Simonyan et al. 2014, section 3.1), ``abs_sum`` is
    ``sum_c |g_c|``; ``sum`` keeps the sign."""

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        shape = (geometry.input_height, geometry.input_width)
        return (ArraySpec(name="map", dims=("y", "x"), shape=shape, pixels=True),)

    def _reduced(self, pixels: Tensor) -> Maps:
        return Maps.of({"map": reduce_channels(pixels, self.reduction)})


class _Backpropagation(PixelMethod, ABC):
    rule: ClassVar[Rule]

    def backward_passes(self) -> frozenset[tuple[str, Score]]:
        return frozenset({(self.rule, self.score)})

    def explain(self, scene: Scene) -> Maps:
        return self._reduced(pixel_gradients(scene, self.score, self.rule))


class Saliency(_Backpropagation):
    """``|d f / d I|`` with respect to the normalised pixels (of a model that does not show its
    normalisation, the canvas) (Simonyan, Vedaldi and Zisserman 2014,
    "Deep Inside Convolutional Networks", section 3)."""

    rule: ClassVar[Rule] = "saliency"


class InputXGradient(PixelMethod):
    """``x * d f / d x``, summed over the channels (Shrikumar et al. 2016, "Not Just a Black Box");
    ``x`` is the normalised pixel. It shares saliency's backward pass."""

    reduction: Reduction = "sum"

    def backward_passes(self) -> frozenset[tuple[str, Score]]:
        return frozenset({("saliency", self.score)})

    def explain(self, scene: Scene) -> Maps:
        return self._reduced(scene.entered * pixel_gradients(scene, self.score, "saliency"))


class Deconvnet(_Backpropagation):
    """The gradient with ``1[g > 0] g`` at every ReLU (Zeiler and Fergus 2014, "Visualizing and
    Understanding Convolutional Networks", section 2.1).

    As in the papers that compare it, the rest is the gradient: max-pooling uses its switches.
    """

    rule: ClassVar[Rule] = "deconvnet"


class GuidedBackprop(_Backpropagation):
    """The gradient with ``1[x > 0] 1[g > 0] g`` at every ReLU (Springenberg et al. 2015, "Striving
    for Simplicity", figure 1c; on VQA: Goyal et al. 2016, section 3.1)."""

    rule: ClassVar[Rule] = "guided"


class GradCam(ImageMethod):
    """``ReLU(sum_k alpha_k A^k)``, ``alpha_k = mean_ij d f / d A^k_ij`` at the trunk's output
    (Selvaraju et al. 2017, equations 1 and 2).

    Arrays ``(row, y, x)`` over the feature map's cells: ``map``, and ``signed`` before the ReLU,
    because a map that is zero everywhere is a legal outcome.
    """

    needs: ClassVar[frozenset[Capability]] = FEATURES

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        shape = (geometry.feature_height, geometry.feature_width)
        return tuple(ArraySpec(name=n, dims=("y", "x"), shape=shape) for n in ("map", "signed"))

    def explain(self, scene: Scene) -> Maps:
        signed = grad_cam(scene, self.score)
        return Maps.of({"map": signed.relu(), "signed": signed})


class GradCamPlusPlus(ImageMethod):
    """``ReLU(sum_k w_k A^k)``, ``w_k = sum_ij a^k_ij ReLU(g^k_ij)``, where the gradient's own cells
    have weights ``a = g^2 / (2 g^2 + sum_ab A_ab g^3)`` (Chattopadhay et al. 2018, "Grad-CAM++",
    equations 10 and 19: with the exponential of the score, whose factor leaves the ranking).

    A weight is 0 where its denominator is: where the gradient is zero. Array ``map (row, y, x)``
    over the feature map's cells.
    """

    needs: ClassVar[frozenset[Capability]] = FEATURES

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        shape = (geometry.feature_height, geometry.feature_width)
        return (ArraySpec(name="map", dims=("y", "x"), shape=shape),)

    def explain(self, scene: Scene) -> Maps:
        gradients = head_gradients(scene, self.score, "saliency").features
        square = gradients**2
        total = scene.features.sum((2, 3), keepdim=True)
        below = 2 * square + total * gradients**3
        parts = torch.where(below != 0, square / below, 0)
        weights = (parts * gradients.relu()).sum((2, 3), keepdim=True)
        return Maps.of({"map": (weights * scene.features).sum(1).relu()})


class GuidedGradCam(PixelMethod):
    """Guided backpropagation times Grad-CAM, element by element (Selvaraju et al. 2017, section
    3), then reduced over the channels.

    Grad-CAM is scaled up bilinearly, cell centres kept (``align_corners=False``).
    """

    needs: ClassVar[frozenset[Capability]] = PIXELS | FEATURES

    def backward_passes(self) -> frozenset[tuple[str, Score]]:
        return frozenset({("guided", self.score)})

    def explain(self, scene: Scene) -> Maps:
        guided = pixel_gradients(scene, self.score, "guided")
        cam = grad_cam(scene, self.score).relu()[:, None]
        size = guided.shape[2:]
        return self._reduced(
            guided * F.interpolate(cam, size, mode="bilinear", align_corners=False)
        )


def grad_cam(scene: Scene, score: Score) -> Tensor:
    """``sum_k alpha_k A^k`` before the ReLU, ``(row, y, x)``."""
    return weighted_features(scene, head_gradients(scene, score, "saliency").features)


def weighted_features(scene: Scene, gradients: Tensor) -> Tensor:
    """``sum_k alpha_k A^k``, ``alpha_k`` the mean of ``gradients (row, channel, y, x)`` over the
    cells: ``(row, y, x)``."""
    weights = gradients.mean((2, 3), keepdim=True)
    return (weights * scene.features).sum(1)


def reduce_channels(pixels: Tensor, reduction: Reduction) -> Tensor:
    """``(row, channel, y, x)`` -> ``(row, y, x)``."""
    if reduction == "abs_max":
        return pixels.abs().amax(1)
    return pixels.abs().sum(1) if reduction == "abs_sum" else pixels.sum(1)
