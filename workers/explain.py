"""One shard: examples -> trunk -> heads -> methods -> store."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from schemas.arrays import ArraySpec
from schemas.config import RunConfig
from schemas.example import Example
from schemas.limits import Limits
from schemas.report import Report
from schemas.shard import Task, by_image
from workers import catalog
from workers.ahead import ahead
from workers.asked import Asked as Put
from workers.asked import ask
from workers.crashes import Crashes
from workers.errors import BadExample, Outage
from workers.fidelity import approximation, engine_options
from workers.images import decode
from workers.ledger import Entry, Inexact, Ledger
from workers.methods.base import ImageMethod, Maps, Method, Scene, WordMethod, WordScores
from workers.models.base import Capability, Seen, Tokens, VQAModel
from workers.models.digest import check_weights
from workers.questions import check_question
from workers.store import Store
from workers.sweep.engine import Engine

Result = TypeVar("Result")
AHEAD = 4
"""Images that are decoded while another is explained."""
Asked = Sequence[tuple[Example, Tokens]]


class Explainer:
    """Holds a model on its device and explains one task after another.

    Shards do not depend on one another; running a task twice is harmless.
    """

    def __init__(self, config: RunConfig, root: str) -> None:
        torch.set_num_threads(config.resources.threads)
        torch.backends.cudnn.allow_tf32 = False  # on a GPU PyTorch's convolutions would round to it
        self.config = config
        self.store = Store(root)
        self.crashes = Crashes(self.store.objects)
        record = self.store.record()
        self.targets = record.targets
        self.model = catalog.model_spec(config.model).build(
            catalog.pick_device(config.resources.device)
        )
        check_weights(self.model, record.model)
        self.methods = catalog.methods(config.methods)
        self.engine = Engine(self.model, engine_options(config))
        self.inexact = self._inexact()
        self.batch = config.resources.batch

    def _inexact(self) -> dict[str, Inexact]:
        measured = self.store.fidelity()
        return {
            label: Inexact(name, measured[label].rank_correlation if label in measured else None)
            for label, method in self.methods.items()
            if (name := approximation(self.config, method, self.model))
        }

    def run(self, task: Task) -> Report:
        """Explain every example of a shard by the task's methods, and commit."""
        start = time.perf_counter()
        ledger = Ledger(task, self.model, self.methods, self.targets, self.inexact)
        if not self.store.attempt("explain", task).decided:
            self.explain(ledger)
            ledger.commit(self.store)
        self.crashes.finished(task.shard.number)
        return Report(
            shard=task.shard.number,
            examples=len(task.wanted),
            failed=ledger.failed,
            seconds=time.perf_counter() - start,
            maps=len(ledger.maps) + len(ledger.words),
            batch=self.batch,
        )

    def explain(self, ledger: Ledger) -> None:
        """Fill the ledger, leaving notes for the case that the process dies."""
        careful = self.crashes.interrupted(ledger.task.shard.number)
        self.crashes.breadcrumb(ledger.task.shard.number, None)
        self.fill(ledger, careful)

    def fill(self, ledger: Ledger, careful: bool = False) -> None:
        """Everything a task asks for; nothing is written unless it is careful."""
        task = ledger.task
        self._allocate(ledger)
        if task.retry is not None:
            ledger.restore(self.store, self.store.definitions(["image", "words"]))
        images = by_image(task.wanted)
        decode = partial(self._decoded, task, images, careful)
        for image_id, seen in ahead(images, decode, 0 if careful else AHEAD):
            self._explain_image(ledger, images[image_id], seen)

    def _allocate(self, ledger: Ledger) -> None:
        for label in ledger.task.labels:
            method = self.methods[label]
            if isinstance(method, ImageMethod):
                for spec in stored_specs(method, self.model, self.config.store.pixel_dtype):
                    ledger.allocate(label, spec)

    def _decoded(
        self, task: Task, images: Mapping[int, list[Example]], careful: bool, image_id: int
    ) -> "Seen | Failed":
        """After a worker has died at this shard its images go one by one, each noted first."""
        if careful:
            self.crashes.breadcrumb(task.shard.number, image_id)
        return guarded(lambda: self._prepare(task, image_id, images[image_id][0]))

    def _explain_image(
        self, ledger: Ledger, examples: list[Example], seen: "Seen | Failed"
    ) -> None:
        if isinstance(seen, Failed):
            for example in examples:
                ledger.fail(example, "decode", seen.error)
            return
        asked = [(e, t) for e in examples if (t := self._tokens(ledger, e)) is not None]
        posed = guarded(lambda: self._posed(seen, ledger.images[examples[0].image_id]))
        asked = [one for one in asked if not _refused(ledger, one[0], posed)]
        if asked and isinstance(posed, Posed):
            self._explain_scene(ledger, posed, asked)

    def _prepare(self, task: Task, image_id: int, example: Example) -> Seen:
        if image_id in task.skip:
            raise BadExample(f"image {image_id}: the worker process died twice at this image")
        return self.model.see(decode(example.image, self.config.limits), image_id)

    def _tokens(self, ledger: Ledger, example: Example) -> Tokens | None:
        tokens = guarded(lambda: checked_tokens(self.model, example, self.config.limits))
        if isinstance(tokens, Failed):
            ledger.fail(example, "question", tokens.error)
            return None
        return tokens

    def _posed(self, seen: Seen, examples: Sequence[Example]) -> "Posed":
        """A question that cannot be put to the model does not take its neighbours down."""
        truths = {e.question_id: e.truth for e in examples}
        questions = askable(self.model, examples, self.config.limits)

        def put(numbers: Iterable[int]) -> Put:
            own = {n: questions[n] for n in numbers}
            return ask(self.model, seen.canvas, [*own.values()], [truths[n] for n in own])

        able, errors = list(questions), {}
        together = guarded(lambda: put(able))
        if isinstance(together, Failed):
            alone = {n: guarded(partial(put, [n])) for n in able}
            errors = {n: one.error for n, one in alone.items() if isinstance(one, Failed)}
            able = [n for n in able if n not in errors]
            together = put(able)
        own = dict(zip(able, together.truths, strict=True))
        said = together.predictions
        written = None if said is None else dict(zip(able, said, strict=True))
        return Posed(seen, questions, together.model, own, written, errors)

    def _explain_scene(self, ledger: Ledger, posed: "Posed", asked: Asked) -> None:
        """All questions of an image at once; should that fail, each alone, so that a bad question
        does not take its neighbours down."""
        scene = guarded(lambda: _answered(self._scene(ledger.task.labels, posed, asked)))
        if isinstance(scene, Failed):
            if len(asked) == 1:
                ledger.fail(asked[0][0], "clean pass", scene.error)
            for one in asked if len(asked) > 1 else ():
                self._explain_scene(ledger, posed, [one])
            return
        for q, (example, tokens) in enumerate(asked):
            ledger.asked(example, posed.seen.frame, tokens, scene, q)
        for label in ledger.task.labels if scene.rows else ():
            self._explain_by(ledger, label, posed, scene, asked)
        self.batch = scene.batch  # what has not fitted once is not tried again

    def _explain_by(
        self, ledger: Ledger, label: str, posed: "Posed", scene: Scene, asked: Asked
    ) -> None:
        start = time.perf_counter()
        result = guarded(lambda: explain_scene(self.methods[label], scene))
        if isinstance(result, Failed):
            if len(asked) == 1:
                ledger.fail(asked[0][0], "explain", result.error, label)
            for one in asked if len(asked) > 1 else ():
                self._explain_alone(ledger, label, posed, one)
            return
        seconds = (time.perf_counter() - start) / max(1, len(scene.rows))
        for r, row in enumerate(scene.rows):
            example, tokens = asked[row.question]
            entry = Entry(label, example, row, scene.model.answers, tokens, seconds)
            ledger.record(entry, r, result)

    def _explain_alone(
        self, ledger: Ledger, label: str, posed: "Posed", one: tuple[Example, Tokens]
    ) -> None:
        alone = guarded(lambda: self._scene([label], posed, [one]))
        if isinstance(alone, Failed):
            ledger.fail(one[0], "explain", alone.error, label)
            return
        self._explain_by(ledger, label, posed, alone, [one])

    def _scene(self, labels: Sequence[str], posed: "Posed", asked: Asked) -> Scene:
        numbers = [example.question_id for example, _ in asked]
        return Scene(
            model=posed.model,
            canvas=posed.seen.canvas,
            regions=posed.seen.regions,
            questions=[tokens for _, tokens in asked],
            question_ids=numbers,
            cut_off=[self.model.cut_off(example.question) for example, _ in asked],
            truths=[posed.truths[n] for n in numbers],
            written=None if posed.written is None else [posed.written[n] for n in numbers],
            targets=self.targets,  # type: ignore[arg-type]
            batch=self.batch,
            engine=self.engine,
            gradients=wants_gradients(self.methods[label] for label in labels),
            image_questions=posed.questions,
        )


@dataclass(frozen=True)
class Posed:
    """An image and all its questions that can be asked, put to the model at once, whichever of them
    are to be explained: what one gets, the numbers of the answers to an open model among it, does
    not depend on which others are explained with it. All by the question's id."""

    seen: Seen
    questions: Mapping[int, Tokens]
    model: VQAModel
    """An open one bound to what it writes to all of them and to all their truths."""
    truths: Mapping[int, int | None]
    written: Mapping[int, int] | None
    errors: Mapping[int, Exception]
    """What kept a question from being put."""


@dataclass(frozen=True)
class Failed:
    """What went wrong, in place of a result."""

    error: Exception


def checked_tokens(model: VQAModel, example: Example, limits: Limits) -> Tokens:
    """A question's words; ``BadExample`` for one that cannot be asked."""
    tokens = model.tokenise(example.question)
    check_question(example.question, tokens, model.known, limits)
    return tokens


def askable(model: VQAModel, examples: Sequence[Example], limits: Limits) -> dict[int, Tokens]:
    """Every question of an image that can be asked, so that what one gets does not depend on which
    others are explained, or examined, with it."""
    tokens = {e.question_id: guarded(partial(checked_tokens, model, e, limits)) for e in examples}
    return {number: t for number, t in tokens.items() if not isinstance(t, Failed)}


def guarded(compute: Callable[[], Result]) -> Result | Failed:
    """The actor's boundary: whatever one example raises becomes a value, and work goes on.

    An ``Outage`` is no example's: it is raised.
    """
    try:
        return compute()
    except Outage:
        raise
    except Exception as error:  # noqa: BLE001 - recorded with its traceback by the caller
        return Failed(error)


def stored_specs(method: ImageMethod, model: VQAModel, pixel_dtype: str) -> list[ArraySpec]:
    """A method's arrays with the recipe's storage type for pixel maps."""
    return [
        spec.model_copy(update={"dtype": pixel_dtype}) if spec.pixels else spec
        for spec in method.arrays(model.geometry)
    ]


def wants_gradients(methods: Iterable[Method]) -> bool:
    """Whether a scene's clean pass should keep its graph for one of these methods."""
    return any(Capability.GRADIENTS in method.needs for method in methods)


def explain_scene(method: Method, scene: Scene) -> Maps | WordScores:
    """A method's result for all rows of a scene."""
    if isinstance(method, ImageMethod | WordMethod):
        return method.explain(scene)
    raise TypeError(f"{type(method).__name__} is neither an ImageMethod nor a WordMethod")


def _answered(scene: Scene) -> Scene:
    """With its clean pass made and its rows known."""
    if not torch.isfinite(scene.output.logits).all():
        raise BadExample("the model's logits on the clean input are not finite")
    _ = scene.rows
    return scene


def _refused(ledger: Ledger, example: Example, posed: Posed | Failed) -> bool:
    """Whether the model could not be asked this question; if so its failure is recorded."""
    number = example.question_id
    error = posed.error if isinstance(posed, Failed) else posed.errors.get(number)
    if error is not None:
        ledger.fail(example, "clean pass", error)
    return error is not None
