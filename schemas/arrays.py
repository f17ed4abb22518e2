"""The shape of every stored array, per example; the store adds the example axis."""

from typing import Literal

from schemas.base import Frozen

Dtype = Literal["float32", "float16", "int32"]


class ArraySpec(Frozen):
    """One Zarr array of a method: ``(example, target, *dims)`` or ``(example, *dims)``."""

    name: str
    dims: tuple[str, ...]
    """Names of the trailing axes, for instance ``("y", "x")``."""
    shape: tuple[int, ...]
    """Lengths of the trailing axes."""
    dtype: Dtype = "float32"
    per_target: bool = True
    """False for arrays that do not depend on the target, such as the top answer under occlusion."""
    pixels: bool = False
    """True for maps at the input's pixel resolution, whose storage type the recipe chooses."""
