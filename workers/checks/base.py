"""What a check is: a metric that asks the model about maps that are stored already."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import ClassVar, NamedTuple, TypeVar, cast

import numpy as np
from pydantic import Field
from torch import Tensor

from workers.methods.base import ImageMethod, Row, Scene
from workers.methods.regions import BY_REGION
from workers.metrics.base import Measure, Scores
from workers.models.base import Capability, VQAModel, present
from workers.sweep.engine import Engine

Result = TypeVar("Result")


@dataclass(frozen=True)
class Explained:
    """A stored map of a scene: by which method, and what it explains."""

    label: str
    method: ImageMethod
    row: Row
    question_id: int
    values: np.ndarray
    regions: np.ndarray | None = None
    """Of a method that explains regions their values ``(region,)``, of which the map is painted."""

    def magnitudes(self) -> "Explained":
        """Without signs."""
        regions = None if self.regions is None else np.abs(self.regions)
        return replace(self, values=np.abs(self.values), regions=regions)


@dataclass
class Subject:
    """The model that is asked, its engine, and what checks keep from one image to the next."""

    model: VQAModel
    engine: Engine
    kept: dict[object, object] = field(default_factory=dict)

    def once(self, key: object, compute: Callable[[], Result]) -> Result:
        """``compute()`` the first time a key is asked for, the same object afterwards."""
        if key not in self.kept:
            self.kept[key] = compute()
        return cast(Result, self.kept[key])


class Passes(NamedTuple):
    """Trunk passes at most: for each image that is examined, and for each of its maps."""

    image: int
    map: int


class Check(Measure):
    """A metric of map, model and image. All of an image's maps come at once, so that methods,
    targets and questions share passes."""

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGITS})
    sample: float = Field(1.0, gt=0, le=1)
    """The part of the examples that is examined: each draws its lot from its question id and the
    seed alone, so neither shards nor growth change who is in it."""
    seed: int = Field(0, ge=0)

    def applies(self, method: ImageMethod, model: VQAModel) -> bool:
        """Whether this method's maps are examined at all."""
        return True

    def chooses(self, question_id: int) -> bool:
        """Whether an example belongs to the part that is examined."""
        return lot(question_id, self.seed) < self.sample

    @abstractmethod
    def passes(self, methods: Mapping[str, ImageMethod], model: VQAModel) -> Passes:
        """What the maps of these methods cost, forward; backward passes are not counted."""

    @abstractmethod
    def score(
        self, subject: Subject, scene: Scene, explained: Sequence[Explained]
    ) -> dict[str, Scores]:
        """n maps of a scene; ``scene`` holds the image and the questions their rows count."""


def lot(question_id: int, seed: int) -> float:
    """A number in [0, 1) that an example draws whatever its shard, its run and its neighbours."""
    digest = sha256(f"{seed}:{question_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def scene_like(
    scene: Scene,
    rows: Sequence[Row],
    model: VQAModel | None = None,
    canvas: Tensor | None = None,
    engine: Engine | None = None,
    gradients: bool = False,
) -> Scene:
    """The same questions with these rows to explain, of another model or another canvas."""
    other = Scene(
        model=model or scene.model,
        canvas=scene.canvas if canvas is None else canvas,
        regions=scene.regions,
        questions=scene.questions,
        question_ids=scene.question_ids,
        truths=scene.truths,
        written=scene.written,
        targets=scene.targets,
        batch=scene.batch,
        engine=engine,
        gradients=gradients,
        image_questions=scene.image_questions,
    )
    other.rows = list(rows)
    return other


def distinct_rows(explained: Sequence[Explained]) -> list[Row]:
    """Every row once, in order."""
    return list(dict.fromkeys(e.row for e in explained))


def keeps_graph(explained: Sequence[Explained]) -> bool:
    """Whether a clean pass should keep its graph for one of these methods."""
    return any(Capability.GRADIENTS in e.method.needs for e in explained)


def maps_again(
    scene: Scene, explained: Sequence[Explained], rows: Sequence[Row]
) -> list[np.ndarray]:
    """The primary maps of ``scene``, whose rows stand in for ``rows``, one for each of
    ``explained``, or the values of its regions; each method explains the scene once."""
    maps = {}
    for e in explained:
        if e.label not in maps:
            array = e.method.primary if e.regions is None else BY_REGION
            maps[e.label] = e.method.explain(scene).arrays[array]
    place = {row: i for i, row in enumerate(rows)}
    return [_there(np.asarray(maps[e.label][place[e.row]]), e, scene) for e in explained]


def own_maps(scene: Scene, explained: Sequence[Explained]) -> list[np.ndarray]:
    """What ``maps_again`` is compared with: where two maps are painted of the same boxes, their
    cells are alike whatever the values are."""
    maps = (e.values if e.regions is None else e.regions for e in explained)
    return [_there(values, e, scene) for values, e in zip(maps, explained, strict=True)]


def _there(values: np.ndarray, explained: Explained, scene: Scene) -> np.ndarray:
    """Of regions those alone that the image has."""
    if explained.regions is None:
        return values
    return values[present(scene.seen[0]).cpu().numpy()]
