"""An image's stored maps and the model -> what the checks say of them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from schemas.config import RunConfig
from schemas.example import Example
from schemas.rows import MapRow
from workers import catalog
from workers.checks.base import Explained, Subject
from workers.errors import BadExample
from workers.explain import Failed, guarded
from workers.fidelity import engine_options
from workers.images import decode
from workers.methods.base import ImageMethod, Row, Scene
from workers.metrics.base import Scores
from workers.objects import OUTAGE
from workers.sweep.engine import Engine


@dataclass(frozen=True)
class Stored:
    """A stored map's row and the example it explains."""

    example: Example
    row: MapRow


@dataclass(frozen=True)
class Examined:
    """What a check says of some maps of an image."""

    check: str
    maps: Sequence[Stored]
    scores: Mapping[str, Scores]


@dataclass(frozen=True)
class Refused:
    """An example that could not be examined, by one check or by any."""

    example: Example
    check: str | None
    error: Exception


Wanted = Mapping[str, Collection[str]]
"""Label of a check -> labels of the methods whose maps it is asked about."""


class Examiner:
    """Asks the model about one image after another. Every check of an image shares its decoding and
    its clean pass; what else they share is in their own hands."""

    def __init__(self, config: RunConfig, fetch: Callable[[MapRow], np.ndarray]) -> None:
        self.config, self.fetch = config, fetch
        self.methods = catalog.methods(config.methods)
        self.checks = catalog.checks(config.metrics)
        self.batch = config.resources.batch
        self.read: dict[tuple[int, str, str], np.ndarray] = {}

    @cached_property
    def subject(self) -> Subject:
        """The model, built when the first map is to be examined."""
        resources = self.config.resources
        torch.set_num_threads(resources.threads)
        torch.backends.cudnn.allow_tf32 = False  # as when the maps were made
        model = catalog.model_spec(self.config.model).build(catalog.pick_device(resources.device))
        return Subject(model, Engine(model, engine_options(self.config)))

    def examine(self, wanted: Wanted, maps: Sequence[Stored]) -> Iterator[Examined | Refused]:
        """All maps of one image."""
        self.read.clear()
        chosen = {label: self._chosen(label, methods, maps) for label, methods in wanted.items()}
        chosen = {label: own for label, own in chosen.items() if own}
        examples = _examples([stored for own in chosen.values() for stored in own])
        if not examples:
            return
        scene = self._scene(examples)
        for label, own in chosen.items():
            yield from self._check(label, own, scene)

    def _chosen(self, label: str, methods: Collection[str], maps: Sequence[Stored]) -> list[Stored]:
        check = self.checks[label]
        own = [stored for stored in maps if stored.row.method in methods]
        return [stored for stored in own if check.chooses(stored.example.question_id)]

    def _check(
        self, label: str, maps: Sequence[Stored], scene: Scene | Failed
    ) -> Iterator[Examined | Refused]:
        """All questions at once; should that fail, each alone, so that a bad one does not take its
        neighbours down."""
        examples = _examples(maps)
        outcome = guarded(lambda: self._scores(label, maps, scene))
        if not isinstance(outcome, Failed):
            yield Examined(label, maps, outcome)
        elif isinstance(outcome.error, OUTAGE):
            raise outcome.error  # the store's fault, not the example's
        elif len(examples) == 1:
            yield Refused(examples[0], label, outcome.error)
        else:
            for example in examples:
                own = [stored for stored in maps if stored.example is example]
                yield from self._check(label, own, self._scene([example]))

    def _scores(
        self, label: str, maps: Sequence[Stored], scene: Scene | Failed
    ) -> Mapping[str, Scores]:
        if isinstance(scene, Failed):
            raise scene.error
        explained = [self._explained(stored, scene) for stored in maps]
        scores = self.checks[label].score(self.subject, scene, explained)
        self.batch = scene.batch  # what has not fitted once is not tried again
        return scores

    def _explained(self, stored: Stored, scene: Scene) -> Explained:
        row, method = stored.row, self.methods[stored.row.method]
        answer = scene.model.answer_index(row.answer)
        assert isinstance(method, ImageMethod)
        if answer is None:
            raise BadExample(
                f"{row.method} explains {row.answer!r}, which is no answer of this model; put back "
                "the model that the maps were made with"
            )
        question = list(scene.question_ids).index(row.question_id)
        explained = Row(question, row.target, answer)  # type: ignore[arg-type]
        return Explained(row.method, method, explained, row.question_id, self._values(row))

    def _values(self, row: MapRow) -> np.ndarray:
        """The map, read from the store once for all checks."""
        key = (row.question_id, row.method, row.target)
        if key not in self.read:
            self.read[key] = self.fetch(row)
        return self.read[key]

    def _scene(self, examples: Sequence[Example]) -> Scene | Failed:
        return guarded(lambda: self._clean(examples))

    def _clean(self, examples: Sequence[Example]) -> Scene:
        """The image and its questions, answered once."""
        model = self.subject.model
        image = decode(examples[0].image, self.config.limits)
        seen = model.see(image, examples[0].image_id)
        scene = Scene(
            model=model,
            canvas=seen.canvas,
            regions=seen.regions,
            questions=[model.tokenise(example.question) for example in examples],
            question_ids=[example.question_id for example in examples],
            truths=[None] * len(examples),
            batch=self.batch,
            engine=self.subject.engine,
        )
        if not torch.isfinite(scene.output.logits).all():
            raise BadExample("the model's logits on the clean input are not finite")
        return scene


def _examples(maps: Sequence[Stored]) -> list[Example]:
    """Every example once, in order."""
    return list({stored.example.question_id: stored.example for stored in maps}.values())
