"""Which way a model is swept, decided by timing, and the sweep itself.

Three ways give the same logits: ``incremental`` recomputes only what a painted window changes,
``dense`` runs the traced trunk on whole painted images, ``plain`` calls the model as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from schemas.base import Frozen
from workers.errors import UserError
from workers.methods.base import Scene
from workers.models.base import Capability, SplitModel, VQAModel
from workers.sweep import plain
from workers.sweep.batches import in_batches
from workers.sweep.cost import rates
from workers.sweep.incremental import Group, Painter, run_group
from workers.sweep.plain import Sweep, classify
from workers.sweep.program import Program
from workers.sweep.schedule import Schedule, best_schedule, whole_live
from workers.sweep.trace import Untraceable, trace
from workers.sweep.trial import Trial, check, time_ways
from workers.sweep.windows import Windows, paint

Way = Literal["incremental", "dense", "plain"]
CHUNK_BYTES = 64 * 2**20
"""On the CPU windows go through in batches of about this size: larger ones leave the caches."""


class Choice(Frozen):
    """How a sweep will run, and what that is expected to cost."""

    way: Way
    reason: str
    speedup: float = 1.0
    """Over calling the model on whole painted images."""
    flop_ratio: float = 1.0
    """Multiply-adds of whole passes over those of this way."""
    seconds: float | None = None
    """Of one image's trunk passes."""
    peak_bytes: int | None = None
    """Weights, clean maps and one batch of windows; None where the trunk cannot be looked into."""


class _Trunk(nn.Module):
    """A model's trunk as a module of its own."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.trunk(pixels)


@dataclass(eq=False)
class Plan:
    """What is prepared for one set of windows."""

    choice: Choice
    schedule: Schedule | None = None
    groups: list[tuple[Group, Painter]] = field(default_factory=list)
    batch: int = 1
    """Windows that go through at once; halved when the device runs out of memory."""


class Engine:
    """A model, ready to be swept with any windows; what it learns it keeps."""

    def __init__(
        self, model: VQAModel, way: Way | Literal["auto"] = "auto", batch: int = 32
    ) -> None:
        self.model = model
        self.way = way
        self.batch = batch
        self.plans: dict[Windows, Plan] = {}
        self.program: Program | None = None
        self.refusal = ""
        if Capability.SPLIT not in model.provides:
            self.refusal = "the model gives logits only, its trunk is out of reach"
        elif way != "plain":
            self._trace()
        if way not in ("auto", "plain") and self.program is None:
            raise UserError(
                f"resources.engine {way} cannot sweep {type(model).__name__}: {self.refusal}; "
                "use auto or plain."
            )

    @torch.no_grad()
    def _trace(self) -> None:
        assert isinstance(self.model, SplitModel)
        geometry = self.model.geometry
        canvas = torch.zeros(
            2,
            3,
            geometry.input_height,
            geometry.input_width,
            device=self.model.device,
            dtype=self.model.dtype,
        )
        try:
            program = trace(_Trunk(self.model), self.model.normalise(canvas))
        except Untraceable as reason:
            self.refusal = f"the trunk cannot be traced: {reason}"
            return
        self.program = program.to(self.model.device, self.model.dtype)

    # --- deciding -----------------------------------------------------------------------------

    def choice(self, windows: Windows) -> Choice:
        """How these windows will be swept."""
        return self._plan(windows).choice

    def _plan(self, windows: Windows) -> Plan:
        if windows not in self.plans:
            self.plans[windows] = self._prepare(windows)
        return self.plans[windows]

    @torch.inference_mode()
    def _prepare(self, windows: Windows) -> Plan:
        if self.program is None:
            return Plan(Choice(way="plain", reason=self.refusal or "asked for"))
        assert isinstance(self.model, SplitModel)
        device, dtype = self.model.device, self.model.dtype
        schedule = best_schedule(self.program, windows, rates(device, dtype), dtype.itemsize)
        plan = Plan(Choice(way="incremental", reason="asked for"), schedule, self._groups(schedule))
        plan.batch = self._at_once(schedule)
        trial = Trial(self.model, self.program, schedule, plan.groups)
        fault = check(trial)
        if fault:
            return Plan(Choice(way="plain", reason=fault))
        plan.choice = self._decide(schedule, time_ways(trial))
        return plan

    def _groups(self, schedule: Schedule) -> list[tuple[Group, Painter]]:
        rectangles = np.array([list(window) for window in schedule.windows])
        device = self.model.device
        return [(g.to(device), g.painter(rectangles, device)) for g in schedule.groups]

    def _decide(self, schedule: Schedule, seconds: Mapping[str, float]) -> Choice:
        names: tuple[Way, ...] = ("plain", "dense", "incremental")
        way: Way = min(names, key=lambda name: seconds[name]) if self.way == "auto" else self.way
        return Choice(
            way=way,
            reason="asked for" if self.way == way else _reason(way, schedule, seconds),
            speedup=seconds["plain"] / seconds[way],
            flop_ratio=schedule.flop_ratio if way == "incremental" else 1.0,
            seconds=seconds[way],
            peak_bytes=self._peak_bytes(schedule, way),
        )

    def _peak_bytes(self, schedule: Schedule, way: Way) -> int:
        """Weights of the model and of its program, clean maps, and a batch at its fullest."""
        program, itemsize = schedule.program, self.model.dtype.itemsize
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        if way == "incremental":
            held = schedule.clean_values + self._at_once(schedule) * schedule.live
        else:
            held = self.batch * whole_live(program)
        return 2 * weights + held * itemsize

    def _at_once(self, schedule: Schedule) -> int:
        """Windows that weigh as much as a batch of whole images; on the CPU fewer, for the
        caches."""
        bytes_at_once = self.batch * whole_live(schedule.program) * self.model.dtype.itemsize
        if self.model.device.type == "cpu":
            bytes_at_once = min(bytes_at_once, CHUNK_BYTES)
        return max(1, bytes_at_once // (schedule.live * self.model.dtype.itemsize))

    # --- sweeping -----------------------------------------------------------------------------

    @torch.inference_mode()
    def sweep(self, scene: Scene, windows: Windows, fill: Tensor) -> Sweep:
        """Logits of every question with each window showing ``fill (3, y, x)``."""
        plan = self._plan(windows)
        if plan.choice.way == "plain":
            return plain.sweep(scene, windows, fill)
        canvas, fill = (
            image.to(scene.canvas.device, self.model.dtype) for image in (scene.canvas, fill)
        )
        if plan.choice.way == "dense":
            return self._dense(scene, windows, canvas, fill)
        return self._incremental(scene, plan, canvas, fill)

    def _dense(self, scene: Scene, windows: Windows, canvas: Tensor, fill: Tensor) -> Sweep:
        listed, split = list(windows), scene.split

        def pool(canvases: Tensor) -> Tensor:
            assert self.program is not None
            return split.pool(self.program(split.normalise(canvases)), scene.states)

        pooled = in_batches(
            scene, len(listed), lambda batch: pool(paint(canvas, listed[batch], fill))
        )
        return Sweep(classify(scene, pool(canvas[None]))[0], classify(scene, pooled))

    def _incremental(self, scene: Scene, plan: Plan, canvas: Tensor, fill: Tensor) -> Sweep:
        assert plan.schedule is not None
        program, split = plan.schedule.program, scene.split
        pixels, fill = (
            split.normalise(image[None]).contiguous(memory_format=torch.channels_last)
            for image in (canvas, fill)
        )
        clean = program.run(pixels, plan.schedule.sources)
        first = split.pool(clean[program.output], scene.states)
        pooled = first.new_empty(len(plan.schedule.windows), *first.shape[1:])
        for group, painter in plan.groups:

            def answer(chosen: slice, group: Group = group, painter: Painter = painter) -> Tensor:
                painted = painter(chosen, pixels, fill)
                features = run_group(group, chosen, painted, clean, program.output)
                return split.pool(features, scene.states)

            pooled[group.cells] = in_batches(scene, len(group.cells), answer, plan)
        return Sweep(classify(scene, first)[0], classify(scene, pooled))


def _reason(way: Way, schedule: Schedule, seconds: Mapping[str, float]) -> str:
    times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    groups = len(schedule.groups)
    return f"fastest of {times} an image; windows in {groups} groups"


def sweep(scene: Scene, windows: Windows, fill: Tensor) -> Sweep:
    """By the scene's engine; by plain calls of the model where it has none."""
    if scene.engine is None:
        return plain.sweep(scene, windows, fill)
    return scene.engine.sweep(scene, windows, fill)
