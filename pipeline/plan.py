"""Configuration + store -> what is still to do. Refuses what cannot work before work starts."""

import gc
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checks import Cost, check_metrics, costs, image_methods, labels, lacking
from pipeline.parts import Layout, lay_out
from pipeline.progress import clock
from schemas.config import RunConfig
from schemas.example import Example
from schemas.fidelity import Fidelity
from schemas.run import Definition, RunRecord
from schemas.shard import Shard, Task, by_image
from workers import catalog
from workers.crashes import Crashes
from workers.datasets.base import BadRecord
from workers.encoding import array_shape
from workers.errors import UserError
from workers.explain import stored_specs
from workers.fidelity import engine_options, measure
from workers.methods.base import ImageMethod, Method
from workers.models.base import Capability, VQAModel
from workers.models.digest import weights_digest
from workers.probe import forward_seconds, threads
from workers.store import Store, fragment_key
from workers.sweep.engine import Choice, Engine


@dataclass(frozen=True)
class Plan:
    """Everything the driver knows before the first task runs."""

    config: RunConfig
    record: RunRecord
    shards: list[Shard]
    layout: Layout
    definitions: list[Definition]
    tasks: list[Task]
    """What is still to be explained."""
    bad_records: list[BadRecord]
    passes_per_image: int
    """Trunk forward passes."""
    shares: bool
    """Whether one trunk pass serves all questions of an image."""
    backward_per_example: int
    """Trunk backward passes for one target; a wrong answer has a second one."""
    seconds_per_pass: float
    choices: dict[str, list[Choice]]
    """How each method's sweeps will run."""
    fidelity: list[Fidelity]
    """Of the methods that are not exact, measured now or when the run began."""
    checks: list[Cost]
    """What evaluating the examples still to be explained will cost where metrics ask the model."""

    @property
    def examples(self) -> int:
        return sum(len(shard.examples) for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(len(by_image(shard.examples)) for shard in self.shards)

    @property
    def images_to_do(self) -> int:
        return sum(len(by_image(task.shard.examples)) for task in self.tasks)

    @property
    def examples_to_do(self) -> int:
        return sum(len(task.shard.examples) for task in self.tasks)

    @property
    def passes(self) -> int:
        """Trunk forward passes still to make; a black box makes them anew for every question."""
        return (self.images_to_do if self.shares else self.examples_to_do) * self.passes_per_image

    @property
    def seconds(self) -> float:
        """Estimated wall time of what is left, from passes and sweeps timed on this machine; a
        backward pass is taken for two forward ones."""
        timed = [c for choices in self.choices.values() for c in choices if c.seconds is not None]
        swept = sum(choice.passes for choice in timed)
        rest = self.passes - self.images_to_do * swept + 2 * self.backward_passes
        sweeping = self.images_to_do * sum(choice.seconds or 0 for choice in timed)
        return (rest * self.seconds_per_pass + sweeping) / self.config.resources.workers

    @property
    def backward_passes(self) -> int:
        """Trunk backward passes still to make, at least: one target an example."""
        return self.examples_to_do * self.backward_per_example

    @property
    def summary(self) -> str:
        """One line before the work starts."""
        done = len(self.shards) - len(self.tasks)
        before = f"{done:,} of {len(self.shards):,} shards are done already; " if done else ""
        if self.layout.grown is not None:
            before += f"the run grows by {self.layout.grown.examples:,} examples; "
        return (
            f"{before}to explain: {self.examples_to_do:,} examples on {self.images_to_do:,} "
            f"images, {self.passes:,} trunk passes, about {clock(self.seconds)}"
        )

    @property
    def sweeps(self) -> list[str]:
        """One line for each sweep and each inexact method."""
        lines = [
            f"{label}: {choice}" for label, choices in self.choices.items() for choice in choices
        ]
        return [*lines, *map(str, self.fidelity)]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all arrays uncompressed, places of whole shards included."""
        record = self.record
        return sum(
            int(np.prod(array_shape(spec, len(self.shards), record.capacity, record.targets)))
            * np.dtype(spec.dtype).itemsize
            for definition in self.definitions
            for spec in definition.arrays
        )


@contextmanager
def uncollected() -> Iterator[None]:
    """Millions of records hold no cycle: looking for one, over and over, is a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@uncollected()
def make_plan(config: RunConfig, out: Path | str | None) -> Plan:
    """Read the dataset, build the model once, check every pair, list the shards to do."""
    methods, metrics = catalog.methods(config.methods), catalog.metrics(config.metrics)
    dataset = catalog.dataset(config.dataset)
    examples = list(dataset.examples())
    if not examples:
        raise UserError(
            f"dataset {config.dataset.name}: no example is left of {dataset.root} with "
            f"{config.dataset.options}; name files that hold questions, or choose more of them"
        )
    model = catalog.model_spec(config.model).build(catalog.pick_device(config.resources.device))
    check_capabilities(methods, model)
    check_metrics(catalog.checks(config.metrics), model)
    definitions = method_definitions(config, methods, model)
    store = Store(out) if out is not None else None
    layout = lay_out(config, examples, store)
    tasks = _todo(layout.shards, [d.label for d in definitions], store)
    scoring = tuple(sorted(labels(metrics, image_methods(config), methods, model)))
    scored = [task.model_copy(update={"labels": scoring}) for task in tasks]
    return Plan(
        config=config,
        record=_record(config, layout, model),
        shards=layout.shards,
        layout=layout,
        definitions=[*definitions, *metric_definitions(config)],
        tasks=tasks,
        bad_records=dataset.bad_records(),
        checks=costs(config, model, scored),
        passes_per_image=1 + sum(m.passes(model.geometry) for m in methods.values()),
        shares=Capability.SPLIT in model.provides,
        backward_per_example=len(
            frozenset().union(*(m.backward_passes() for m in methods.values()))
        ),
        **_measured(config, model, methods, examples, store, bool(tasks)),
    )


def _measured(
    config: RunConfig,
    model: VQAModel,
    methods: dict[str, Method],
    examples: Sequence[Example],
    store: Store | None,
    anything: bool,
) -> dict[str, Any]:
    """Times and fidelity, as far as there is anything to do and they are not known."""
    if not anything:
        return {"seconds_per_pass": 0.0, "choices": {}, "fidelity": []}
    known = store.fidelity() if store is not None and store.exists else {}
    unknown = {label: m for label, m in methods.items() if label not in known}
    engine = Engine(model, engine_options(config))
    geometry = model.geometry
    with threads(config.resources.threads):
        return {
            "seconds_per_pass": forward_seconds(model, config.resources.batch),
            "choices": {
                label: [engine.choice(request) for request in method.sweeps(geometry)]
                for label, method in methods.items()
            },
            "fidelity": [*known.values(), *measure(config, model, unknown, examples)],
        }


def check_capabilities(methods: dict[str, Method], model: VQAModel) -> None:
    """Refuse a method that needs what the model does not provide."""
    for label, method in methods.items():
        if reason := obstacle(method, model):
            raise UserError(f"methods.{label} {reason}")


def obstacle(method: Method, model: VQAModel) -> str | None:
    """Why a method cannot explain a model, and the remedy; None where it can."""
    if lack := lacking(method.needs, model):
        return f"{lack} Remove the method or choose another model."
    if reason := method.objection(model):
        return reason
    arrays = method.arrays(model.geometry) if isinstance(method, ImageMethod) else ()
    tokens = bool(arrays) and Capability.TOKENS in method.needs
    if model.geometry.varies and (tokens or any(spec.pixels for spec in arrays)):
        return (
            f"stores maps at the {'image tokens' if tokens else 'pixels'} of the input, which must "
            "be equally many for all images, and "
            f"the input of model {type(model).__name__} follows the image's shape. Give the model "
            "an image_size (every image is squashed to it) or remove the method."
        )
    return None


def unfit(method: Method, model: VQAModel) -> str | None:
    """As ``obstacle``, options that do not fit the model's input among them."""
    try:
        return obstacle(method, model)
    except UserError as error:
        return str(error)


def method_definitions(
    config: RunConfig, methods: dict[str, Method], model: VQAModel
) -> list[Definition]:
    """What the store records of every method: parameters and arrays."""
    return [
        Definition(
            label=label,
            name=config.methods[label].get("method", label),
            parameters=method.model_dump(mode="json"),
            kind=method.kind,
            library=method.library,
            primary=method.primary if isinstance(method, ImageMethod) else None,
            arrays=tuple(stored_specs(method, model, config.store.pixel_dtype))
            if isinstance(method, ImageMethod)
            else (),
        )
        for label, method in methods.items()
    ]


def metric_definitions(config: RunConfig) -> list[Definition]:
    """What the store records of every metric; two that write the same names are refused."""
    metrics = catalog.metrics(config.metrics)
    for (first, a), (second, b) in combinations(metrics.items(), 2):
        if shared := set(a.names) & set(b.names):
            raise UserError(
                f"metrics.{first} and metrics.{second} would both write {', '.join(sorted(shared))}"
                ": keep one of them, and use a run of its own for the other."
            )
    return [
        Definition(
            label=label,
            name=config.metrics[label].get("metric", label),
            parameters=metric.model_dump(mode="json"),
            kind="metric",
        )
        for label, metric in metrics.items()
    ]


def evaluation_tasks(
    config: RunConfig, store: Store, shards: Sequence[Shard], model: VQAModel | None = None
) -> list[Task]:
    """Every (metric, method) pair whose maps are committed and that has no metric rows yet;
    ``model`` is the run's, where a metric asks it."""
    explained, scored = store.committed("explain"), store.committed("evaluate")
    metrics, methods = catalog.metrics(config.metrics), image_methods(config)
    decoys = decoys_of([e for shard in shards for e in shard.examples], config.seed)
    tasks = _stale_tasks(store, shards, decoys)
    for shard in shards:
        wanted = labels(metrics, methods, explained.get(shard.number, set()), model)
        left = tuple(sorted(wanted - scored.get(shard.number, set())))
        if left and shard.number in explained:
            others = tuple(decoys[example.question_id] for example in shard.examples)
            tasks.append(Task(shard=shard, labels=left, decoys=others))
    return tasks


def _stale_tasks(
    store: Store, shards: Sequence[Shard], decoys: Mapping[int, Example]
) -> list[Task]:
    """Metrics of shards with maps that have been computed again since, round by round."""
    stale = store.stale()
    tasks = []
    for name in sorted(store.covered("metrics")) if stale else ():
        number, round_name = fragment_key(name)
        for shard in (shard for shard in shards if shard.number == number and number in stale):
            ids = tuple(example.question_id for example in shard.examples)
            others = tuple(decoys[question_id] for question_id in ids)
            own = store.labels(round_name, "metrics")
            tasks.append(Task(shard=shard, labels=own, decoys=others, retry=ids))
    return tasks


def decoys_of(examples: Sequence[Example], seed: int) -> dict[int, Example]:
    """For every example one about another image: a seeded cyclic shift over shuffled images.

    Examples that list human maps are paired among themselves, so that each is compared with
    another image's map however few they are; where only one image has any, no partner has one.
    Where the dataset has one image only, an example is its own decoy.
    """
    mapped = [example for example in examples if example.human_maps]
    decoys = _shifted(by_image(examples), seed)
    if len(images := by_image(mapped)) > 1:
        decoys |= _shifted(images, seed)
    return decoys


def _shifted(images: Mapping[int, list[Example]], seed: int) -> dict[int, Example]:
    """Question -> an example of the next image, in a random order that ends where it began."""
    shuffled = list(images.values())
    random.Random(seed).shuffle(shuffled)
    return {
        example.question_id: other[i % len(other)]
        for image, other in zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True)
        for i, example in enumerate(image)
    }


def _todo(shards: list[Shard], labels: list[str], store: Store | None) -> list[Task]:
    if store is None or not store.exists:
        return [Task(shard=shard, labels=tuple(labels)) for shard in shards]
    done, fatal = store.committed("explain"), Crashes(store.objects).quarantine()
    tasks = []
    for shard in shards:
        left = tuple(label for label in labels if label not in done.get(shard.number, set()))
        if left:
            tasks.append(Task(shard=shard, labels=left, skip=fatal.get(shard.number, ())))
    return tasks


def retry_tasks(store: Store, shards: Sequence[Shard], whole: Collection[int]) -> list[Task]:
    """Every example with a failure again, and all examples of the shards in ``whole``."""
    again = _failed(store, whole)
    known = {shard.number: shard for shard in shards}
    tasks = []
    for name in sorted(store.covered("maps")):
        shard, round_name = fragment_key(name)
        ids = tuple(e.question_id for e in known[shard].examples) if shard in whole else ()
        ids = ids or tuple(sorted(again.get((shard, round_name), ())))
        if ids:
            labels = store.labels(round_name, "maps")
            tasks.append(Task(shard=known[shard], labels=labels, retry=ids))
    return [*tasks, *_lost(store, shards, whole)]


def _lost(store: Store, shards: Sequence[Shard], whole: Collection[int]) -> list[Task]:
    """What was computed for the shards in ``whole`` and is committed no longer."""
    chosen = [shard for shard in shards if shard.number in whole]
    return _todo(chosen, list(store.definitions(["image", "words"])), store) if chosen else []


def _failed(store: Store, whole: Collection[int]) -> dict[tuple[int, str], set[int]]:
    """Shard and round -> question ids with a recorded failure."""
    columns = ["shard", "round", "question_id"]
    found: dict[tuple[int, str], set[int]] = {}
    for row in store.dataset("failures").to_table(columns=columns).to_pylist():
        if row["shard"] is not None and row["shard"] not in whole:
            found.setdefault((row["shard"], row["round"]), set()).add(row["question_id"])
    return found


def _record(config: RunConfig, layout: Layout, model: VQAModel) -> RunRecord:
    first = layout.first
    return RunRecord(
        recipe=config.model_dump(mode="json", exclude={"resources": {"address"}}),
        dataset=first.dataset,
        model=weights_digest(model),
        targets=config.targets,
        shards=first.shards,
        capacity=layout.capacity,
        examples=first.examples,
        images=first.images,
        shard_size=config.store.shard_size,
    )
