"""The model's own attention over the image's cells."""

from typing import ClassVar

from schemas.arrays import ArraySpec
from workers.methods.base import ImageMethod, Maps, Scene
from workers.models.base import Capability, Geometry


class Attention(ImageMethod):
    """``alpha_gl``, the softmax over cells l of each glimpse g (Kazemi and Elqursh 2017, "Show,
    Ask, Attend, and Answer", section 3.3) or of each attention layer g (Yang et al. 2016, "Stacked
    Attention Networks", section 3.3). It is the same whichever answer is to be explained.

    Arrays: ``map (row, y, x)``, the mean over glimpses, or of a stacked attention network its last
    layer, as Das et al. 2016 compare it with people; and ``glimpses (question, glimpse, y, x)``.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.SPLIT, Capability.ATTENTION})

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        cells = (geometry.feature_height, geometry.feature_width)
        return (
            ArraySpec(name="map", dims=("y", "x"), shape=cells),
            ArraySpec(
                name="glimpses",
                dims=("glimpse", "y", "x"),
                shape=(geometry.glimpses, *cells),
                per_target=False,
            ),
        )

    def explain(self, scene: Scene) -> Maps:
        glimpses = scene.output.attention
        assert glimpses is not None  # what Capability.ATTENTION promises
        last = scene.model.geometry.glimpse_map == "last"
        maps = glimpses[:, -1] if last else glimpses.mean(1)
        rows = [row.question for row in scene.rows]
        return Maps.of({"map": maps[rows], "glimpses": glimpses})
