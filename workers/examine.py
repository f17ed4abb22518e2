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
from workers.asked import ask
from workers.checks.base import Explained, Subject
from workers.errors import BadExample
from workers.explain import Failed, askable, guarded
from workers.fidelity import engine_options
from workers.images import decode
from workers.methods.base import ImageMethod, Row, Scene
from workers.methods.regions import BY_REGION, RegionMethod
from workers.metrics.base import Scores
from workers.models.digest import check_weights
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

    def __init__(
        self, config: RunConfig, model: str, fetch: Callable[[MapRow], np.ndarray]
    ) -> None:
        """``model`` is the digest of the one that the maps were made with."""
        self.config, self.model, self.fetch = config, model, fetch
        self.methods = catalog.methods(config.methods)
        self.checks = catalog.checks(config.metrics)
        self.batch = config.resources.batch
        self.read: dict[tuple[int, str, str], np.ndarray] = {}
        """Question, path of an array and target -> what is stored there, of one image."""
        self.of_image: Sequence[Example] = ()
        """All questions of that image."""

    @cached_property
    def subject(self) -> Subject:
        """The model, built when the first map is to be examined."""
        resources = self.config.resources
        torch.set_num_threads(resources.threads)
        torch.backends.cudnn.allow_tf32 = False  # as when the maps were made
        model = catalog.model_spec(self.config.model).build(catalog.pick_device(resources.device))
        check_weights(model, self.model)
        return Subject(model, Engine(model, engine_options(self.config)))

    def examine(
        self, wanted: Wanted, maps: Sequence[Stored], of_image: Sequence[Example]
    ) -> Iterator[Examined | Refused]:
        """All maps of one image, and all of its questions."""
        self.read.clear()
        self.of_image = of_image
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
        assert isinstance(method, ImageMethod)
        question = list(scene.question_ids).index(row.question_id)
        explained = Row(question, row.target, _answer(scene, row, question))  # type: ignore[arg-type]
        by_region = None
        if isinstance(method, RegionMethod):
            path = f"{row.array.rpartition('/')[0]}/{BY_REGION}"
            by_region = self._values(row.model_copy(update={"array": path}))
        values = self._values(row)
        return Explained(row.method, method, explained, row.question_id, values, by_region)

    def _values(self, row: MapRow) -> np.ndarray:
        """The map, read from the store once for all checks."""
        key = (row.question_id, row.array, row.target)
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
        questions = [model.tokenise(example.question) for example in examples]
        asked = ask(model, seen.canvas, questions, [example.truth for example in examples])
        scene = Scene(
            model=asked.model,
            canvas=seen.canvas,
            regions=seen.regions,
            questions=questions,
            question_ids=[example.question_id for example in examples],
            truths=asked.truths,
            written=asked.predictions,
            batch=self.batch,
            engine=self.subject.engine,
            image_questions=askable(model, self.of_image, self.config.limits),
        )
        if not torch.isfinite(scene.output.logits).all():
            raise BadExample("the model's logits on the clean input are not finite")
        return scene


def _answer(scene: Scene, row: MapRow, question: int) -> int:
    """The explained answer's number. Of a model that writes it is what it writes, or what it is
    given: two texts of one name may differ in their sub-tokens."""
    answer = scene.model.answer_index(row.answer)
    if scene.written is not None:
        own = scene.written if row.target == "predicted" else scene.truths
        answer = own[question]
    if answer is None or scene.model.answers[answer] != row.answer:
        now = "no answer of this model" if answer is None else "not what this model writes now"
        raise BadExample(
            f"{row.method} explains {row.answer!r}, which is {now}; put back the model and the "
            "device that the maps were made with"
        )
    return answer


def _examples(maps: Sequence[Stored]) -> list[Example]:
    """Every example once, in order."""
    return list({stored.example.question_id: stored.example for stored in maps}.values())
