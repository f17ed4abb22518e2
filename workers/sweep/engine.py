"""Which way a model is swept, decided by timing, and the sweep itself.

Three ways give the same logits: ``incremental`` recomputes only what a painted window changes,
``dense`` runs the traced trunk on whole painted images, ``plain`` calls the model as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from schemas.base import Frozen
from workers.errors import UserError
from workers.methods.base import Scene
from workers.models.base import Capability, SplitModel, VQAModel
from workers.sweep import machine, plain
from workers.sweep.batches import Limit, in_batches, unless_out_of_memory
from workers.sweep.cost import rates
from workers.sweep.passes import Passes, painted_by, passes_of
from workers.sweep.plain import Sweep, classify
from workers.sweep.precision import Precision, arithmetic, check_precision, working_type
from workers.sweep.program import Program
from workers.sweep.recording import Replayed
from workers.sweep.schedule import Schedule, best_schedule, whole_live
from workers.sweep.trace import Untraceable, trace
from workers.sweep.trial import Trial, check, time_ways
from workers.sweep.windows import Request, Window, Windows, paint

Way = Literal["incremental", "dense", "plain"]
WAYS: tuple[Way, ...] = ("plain", "dense", "incremental")
TIMED_IMAGES, TIMED_WINDOWS = 2, 8
"""What is timed on a CPU; on a GPU, which many at once fill, as much as goes through at once."""
CACHED_BYTES = 64 * 2**20
"""On the CPU windows go through in batches of about this size; larger ones leave the caches."""
ALLOCATOR = 1.6
"""Memory taken for each byte in use, at most: freed blocks that are not given back, odd sizes, and
the weights of kernels that are timed and not taken. Measured over many runs: 1.1 to 1.45."""
SCRATCH_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}
"""Scratch of the convolution libraries, and what is timed at the start; cuDNN's fastest algorithms
take most of it."""
SHARE = 4
"""A batch takes at most this part of the free memory: a quarter."""


class Choice(Frozen):
    """How a sweep will run, and what that is expected to cost."""

    way: Way
    reason: str
    passes: int
    """Painted images."""
    speedup: float = 1.0
    """Over calling the model on whole painted images."""
    flop_ratio: float = 1.0
    """Multiply-adds of whole passes over those of this way."""
    seconds: float | None = None
    """Of one image's trunk passes."""
    peak_bytes: int | None = None
    """Weights, clean maps and one batch of windows, beyond the libraries; None where the trunk
    cannot be looked into."""

    def __str__(self) -> str:
        if self.way == "plain":
            return f"plain sweep of {self.passes:,} passes ({self.reason})"
        return (
            f"{self.way} sweep, {self.speedup:.1f} times as fast as {self.passes:,} plain passes "
            f"(multiply-adds: {self.flop_ratio:.1f} times fewer), peak memory "
            f"{(self.peak_bytes or 0) / 2**20:,.0f} MiB ({self.reason})"
        )


class Options(Frozen):
    """What a recipe can ask of the engine."""

    way: Way | Literal["auto"] = "auto"
    precision: Precision = "float32"
    batch: int = 32
    """Whole images that go through at once; windows take as much memory."""


class _Trunk(nn.Module):
    """A model's trunk as a module of its own."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.trunk(pixels)


@dataclass(eq=False)
class Plan:
    """What is prepared for one set of windows. ``batch`` windows (or whole painted images) go
    through at once; it is halved when the device runs out of memory."""

    choice: Choice
    schedule: Schedule | None = None
    passes: Passes | None = None
    batch: int = 1
    rows: list[Tensor] = field(default_factory=list)
    """The rows of each group's windows, on the device."""


class Engine:
    """A model, ready to be swept with any windows; what it learns it keeps."""

    def __init__(self, model: VQAModel, options: Options | None = None) -> None:
        self.model = model
        self.options = options or Options()
        self.refusal = "asked for"
        self.plans: dict[tuple[Windows, float | None], Plan] = {}
        self.clean: tuple[tuple[int, ...], Replayed] | None = None
        """Where the weights lie, and the recorded trunk that reads them there."""
        check_precision(self.options.precision, model.device)

    @property
    def split(self) -> SplitModel:
        assert isinstance(self.model, SplitModel)
        return self.model

    @cached_property
    def exact(self) -> Program | None:
        """The trunk's program in the model's own type; None, and ``refusal`` says why."""
        if self.options.way == "plain" and self.options.precision == "float32":
            return None
        try:
            return self._trace()
        except Untraceable as reason:
            self.refusal = str(reason)
            return None

    @torch.no_grad()
    def _trace(self) -> Program:
        if Capability.SPLIT not in self.model.provides:
            raise Untraceable("the model gives logits only, its trunk is out of reach")
        if self.model.device.type == "cuda" and find_spec("triton") is None:
            raise Untraceable("Triton is not installed beside PyTorch")
        height, width = self.model.geometry.input_height, self.model.geometry.input_width
        canvas = torch.zeros(2, 3, height, width, device=self.model.device, dtype=self.model.dtype)
        program = trace(_Trunk(self.split), self.split.normalise(canvas))
        return program.to(self.model.device, self.model.dtype)

    @cached_property
    def program(self) -> Program:
        """The program in the precision asked for."""
        assert self.exact is not None
        dtype = working_type(self.options.precision, self.model.dtype)
        return self.exact if dtype == self.exact.dtype else self.exact.to(self.model.device, dtype)

    # --- deciding -------------------------------------------------------------------------------

    def choice(self, request: Request) -> Choice:
        """How these windows will be swept."""
        return self._plan(*request).choice

    def schedule(self, request: Request) -> Schedule:
        """The groups of these windows; a trunk that is swept by plain calls has none."""
        schedule = self._plan(*request).schedule
        if schedule is None:
            raise UserError(f"no schedule: {self.choice(request)}")
        return schedule

    def _plan(self, windows: Windows, bound: float | None) -> Plan:
        key = (windows, bound)
        if key not in self.plans:
            with arithmetic(self.options.precision), torch.inference_mode():
                plan = unless_out_of_memory(lambda: self._prepare(windows, bound))
            self.plans[key] = plan or self._plainly(
                windows, f"a trial of its traced trunk ran out of memory on {self.model.device}"
            )
            machine.save()
        return self.plans[key]

    def _prepare(self, windows: Windows, bound: float | None) -> Plan:
        if self.exact is None:
            return self._plainly(windows, self.refusal)
        if bound and self._plan(windows, None).schedule is None:
            raise UserError(f"windows cannot be bounded: {self.choice(Request(windows))}")
        device, dtype = self.model.device, self.program.dtype
        schedule = best_schedule(
            self.exact, windows, rates(device, dtype), dtype.itemsize, bound=bound
        )
        groups = painted_by(schedule.groups, windows, device)
        exact = Passes(self.exact, schedule.sources, groups)
        with arithmetic("float32"):
            fault = "" if bound else check(Trial(self.split, self.exact, schedule, exact, 1, 1))
        if fault:
            return self._plainly(windows, fault)
        passes = passes_of(device, self.program, schedule.sources, groups)
        trial = Trial(self.split, self.program, schedule, passes, *self._timed(schedule))
        choice = self._decide(schedule, time_ways(trial), bound)
        rows = [torch.arange(len(group.cells), device=device) for group, _ in groups]
        return Plan(choice, schedule, passes, self._at_once(schedule, choice.way), rows)

    def _timed(self, schedule: Schedule) -> tuple[int, int]:
        """Whole images and windows of a trial."""
        if self.model.device.type == "cpu":
            return TIMED_IMAGES, TIMED_WINDOWS
        return self._at_once(schedule, "dense"), self._at_once(schedule, "incremental")

    def _plainly(self, windows: Windows, reason: str) -> Plan:
        """Plain calls, unless something was asked for that they cannot give."""
        if self.options.way in ("auto", "plain") and self.options.precision != "bfloat16":
            return Plan(Choice(way="plain", reason=reason, passes=len(windows)))
        raise UserError(
            f"{type(self.model).__name__} can be swept by plain calls in float32 only, because "
            f"{reason}; set resources.engine to auto and precision to float32."
        )

    def _decide(
        self, schedule: Schedule, seconds: Mapping[str, float], bound: float | None
    ) -> Choice:
        way: Way = min(WAYS, key=lambda name: seconds[name])
        if bound:
            way = "incremental"
        elif self.options.way != "auto":
            way = self.options.way
        if way == "plain" and self.options.precision != "float32":
            way = "dense"
        return Choice(
            way=way,
            reason=_reason(schedule, seconds),
            passes=len(schedule.windows),
            speedup=seconds["plain"] / seconds[way],
            flop_ratio=schedule.flop_ratio if way == "incremental" else 1.0,
            seconds=seconds[way],
            peak_bytes=self._peak_bytes(schedule, way),
        )

    def _peak_bytes(self, schedule: Schedule, way: Way) -> int:
        """Weights of the model and of its program, the kernels' own orders of them, clean maps,
        and a batch at its fullest."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        each = schedule.live if way == "incremental" else whole_live(schedule.program)
        held = schedule.clean_values + self._at_once(schedule, way) * each
        steps = self.program.steps if way != "plain" else ()
        copies = sum(s.operation.copied_weights(self.model.device) for s in steps)
        counted = weights + (copies + held) * self.program.dtype.itemsize
        return round(ALLOCATOR * counted) + SCRATCH_BYTES[self.model.device.type]

    def _at_once(self, schedule: Schedule, way: Way) -> int:
        """Whole images of a batch, or windows that weigh as much, within a share of the memory
        that is free; of windows on the CPU no more than the caches like."""
        device, itemsize = self.model.device, self.program.dtype.itemsize
        each = whole_live(schedule.program)
        room = min(self.options.batch * each * itemsize, machine.free_memory(device) // SHARE)
        if way != "incremental":
            return max(1, room // (each * itemsize))
        if device.type == "cpu":
            room = min(room, CACHED_BYTES)
        return max(1, room // (schedule.live * itemsize))

    # --- the clean image ------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The trunk's output ``(1, channel, y, x)`` for one normalised image, by the model itself;
        on a GPU recorded, as the launches of one image take longer than its sums."""
        if self.model.device.type == "cpu":
            return self.split.trunk(pixels.clone())
        held = chain(self.model.parameters(), self.model.buffers())
        weights = tuple(tensor.data_ptr() for tensor in held)
        if self.clean is None or self.clean[0] != weights:
            with arithmetic("float32"):
                self.clean = weights, Replayed(self.split.trunk, pixels)
        return self.clean[1](pixels)

    # --- sweeping -------------------------------------------------------------------------------

    def sweep(
        self,
        scene: Scene,
        windows: Windows,
        fill: Tensor,
        bound: float | None = None,
        only: Sequence[int] | None = None,
    ) -> Sweep:
        """Logits of every question with each window showing ``fill (3, y, x)``.

        ``only`` some windows, in the order given; ``bound`` limits how far a window may grow, as a
        part of the map's side, which is no longer exact.
        """
        plan = self._plan(windows, bound)
        if plan.choice.way == "plain":
            with arithmetic(self.options.precision):
                return plain.sweep(scene, windows, fill, only)
        canvas = scene.canvas.to(self.model.device, self.model.dtype)
        fill = fill.to(canvas)
        with arithmetic(self.options.precision), torch.inference_mode():
            if plan.choice.way == "dense":
                swept = self._dense(scene, plan, canvas, fill, _some(windows, only))
            else:
                swept = self._incremental(scene, plan, canvas, fill, only)
        machine.save()  # kernels that the first sweep has timed
        return swept

    def _dense(
        self, scene: Scene, limit: Limit, canvas: Tensor, fill: Tensor, windows: list[Window]
    ) -> Sweep:
        def pool(canvases: Tensor) -> Tensor:
            return self._pool(scene, self.program(self._pixels(canvases)))

        clean = in_batches(scene, 1, lambda _: pool(canvas[None]))
        pooled = in_batches(
            scene,
            len(windows),
            lambda batch: pool(paint(canvas, windows[batch], fill)),
            limit,
        )
        return Sweep(classify(scene, clean)[0], classify(scene, pooled))

    def _incremental(
        self, scene: Scene, plan: Plan, canvas: Tensor, fill: Tensor, only: Sequence[int] | None
    ) -> Sweep:
        """Where the clean maps cannot be kept, whole painted images, which need none."""
        assert plan.schedule is not None and plan.passes is not None
        passes, windows = plan.passes, plan.schedule.windows
        start = partial(passes.image, self._pixels(canvas[None]), self._pixels(fill[None]))
        image = unless_out_of_memory(start)
        if image is None:
            return self._dense(scene, scene, canvas, fill, _some(windows, only))
        first = self._pool(scene, image.clean[self.program.output])
        pooled = first.new_empty(len(windows), *first.shape[1:])
        for number, rows in enumerate(self._rows(plan, only)):

            def answer(batch: slice, number: int = number, rows: Tensor = rows) -> Tensor:
                return self._pool(scene, passes.features(image, number, rows[batch]))

            if len(rows):
                cells = passes.groups[number][1].cells[rows]
                pooled[cells] = in_batches(scene, len(rows), answer, plan)
        if only is not None:
            pooled = pooled[self.model.moved(torch.tensor(list(only)))]
        return Sweep(classify(scene, first)[0], classify(scene, pooled))

    def _rows(self, plan: Plan, only: Sequence[int] | None) -> list[Tensor]:
        """For each group the rows of its chosen windows, on the device before the first pass, so
        that nothing waits for a copy."""
        if only is None:
            return plan.rows
        assert plan.schedule is not None
        rows = [np.flatnonzero(np.isin(group.cells, only)) for group in plan.schedule.groups]
        return [self.model.moved(torch.from_numpy(own)) for own in rows]

    def _pixels(self, canvases: Tensor) -> Tensor:
        pixels = self.split.normalise(canvases).to(self.program.dtype)
        return pixels.contiguous(memory_format=torch.channels_last)

    def _pool(self, scene: Scene, features: Tensor) -> Tensor:
        return self.split.pool(features.to(self.model.dtype), scene.states)


def _some(windows: Windows, only: Sequence[int] | None) -> list[Window]:
    return list(windows) if only is None else [windows[i] for i in only]


def _reason(schedule: Schedule, seconds: Mapping[str, float]) -> str:
    times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    mixing = [step for step in schedule.program.steps if step.operation.mixes]
    where = f"; whole maps from {mixing[0].value} on" if mixing else ""
    return f"measured an image: {times}; windows in {len(schedule.groups)} groups{where}"


def sweep(
    scene: Scene,
    windows: Windows,
    fill: Tensor,
    bound: float | None = None,
    only: Sequence[int] | None = None,
) -> Sweep:
    """By the scene's engine; by plain calls of the model where it has none."""
    engine = scene.engine or Engine(scene.model, Options(way="auto" if bound else "plain"))
    return engine.sweep(scene, windows, fill, bound, only)
