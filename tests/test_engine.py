"""The incremental engine: random networks, batches and memory, and what makes it step back."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import nets, random_nets, sweeps
from tests.random_nets import Gate, Net, Overwritten
from tests.reference import incremental as reference
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.models.base import freeze
from workers.sweep import gather, intervals, machine, plain
from workers.sweep.batches import evenly
from workers.sweep.engine import Engine, Options, Way
from workers.sweep.incremental import Group, Spread
from workers.sweep.intervals import Intervals
from workers.sweep.operations import Convolution, Operation
from workers.sweep.plain import Sweep
from workers.sweep.program import Program
from workers.sweep.trace import trace
from workers.sweep.windows import Request, Windows, grid_windows, strided_windows

CPU = torch.device("cpu")
GRID = grid_windows(24, 20, 5)
OVERLAPPING = strided_windows(24, 20, (9, 7), (4, 3))


# --- random networks ------------------------------------------------------------------------------


def some_windows(data: st.DataObject, height: int, width: int) -> Windows:
    """A grid, or windows that overlap."""
    if data.draw(st.booleans()):
        return grid_windows(height, width, data.draw(st.integers(1, 9)))
    least = max(1, height // 12), max(1, width // 12)
    size = tuple(data.draw(st.integers(*ends)) for ends in zip(least, (height, width), strict=True))
    stride = tuple(data.draw(st.integers(*ends)) for ends in zip(least, size, strict=True))
    return strided_windows(height, width, size, stride)


def some_groups(data: st.DataObject, spread: Spread, windows: Windows) -> list[Group]:
    """Cut anywhere, whole maps from any step on."""
    parts = []
    for count in windows.shape:
        cuts = data.draw(st.sets(st.integers(1, count - 1), max_size=4)) if count > 1 else set()
        edges = [0, *sorted(cuts), count]
        parts.append([np.arange(a, b) for a, b in pairwise(edges)])
    steps = st.integers(0, len(spread.program.steps))
    return [spread.group(r, c, data.draw(steps)) for r in parts[0] for c in parts[1]]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(net=random_nets.nets(whole=True), data=st.data())
def test_random_networks_give_the_features_of_the_painted_image(
    net: Net, data: st.DataObject
) -> None:
    pixels = torch.zeros(2, 3, net.height, net.width, dtype=torch.float64)
    program = trace(net.trunk, pixels).to(CPU, torch.float64)
    mixes = any(step.operation.mixes for step in program.steps)
    assert mixes or not any(isinstance(layer, Gate) for layer in net.trunk)
    # A single channel is overwritten as a whole, and nothing is left to mix.
    assert not mixes or any(isinstance(layer, Gate | Overwritten) for layer in net.trunk)
    windows = some_windows(data, net.height, net.width)
    spread = Spread.of(program, Intervals.of(windows.rows), Intervals.of(windows.columns))
    groups = some_groups(data, spread, windows)
    cells = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=9))
    image, fill = torch.randn(2, 3, net.height, net.width, dtype=torch.float64)
    found = sweeps.swept(program, groups, windows, image, fill, cells)
    wanted = reference.features(net.trunk, image, fill, [windows[cell] for cell in cells])
    assert found.shape == wanted.shape
    scale = max(1e-2, float(wanted.abs().max()))
    assert (found - wanted).abs().max() <= 1e-12 * scale
    assert not changed_outside(spread, windows, cells[0], image, fill)


def changed_outside(
    spread: Spread, windows: Windows, cell: int, image: Tensor, fill: Tensor
) -> list[str]:
    """Maps that a window changes outside their intervals."""
    top, bottom, left, right = windows[cell]
    painted = image.clone()
    painted[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
    names = set(spread.rows)
    clean, changed = (spread.program.run(x[None], names) for x in (image, painted))
    row, column = divmod(cell, len(windows.columns))
    outside = []
    for name in names:
        differs = (clean[name] != changed[name])[0].any(0)
        rows, columns = spread.rows[name], spread.columns[name]
        differs[rows.start[row] : rows.stop[row], columns.start[column] : columns.stop[column]] = 0
        outside += [name] * bool(differs.any())
    return outside


# --- whole sweeps ---------------------------------------------------------------------------------


@cache
def traced(trunk: str) -> tuple[nn.Module, Program]:
    """A network and its program; it is traced once, because that is what takes the time."""
    model = nets.build(trunk)
    program = Engine(model, Options(way="incremental")).exact
    assert program is not None
    return model.trunk_net, program


def ready(
    way: Way | Literal["auto"],
    trunk: str = "resnet",
    head: Literal["attention", "pooled"] = "attention",
) -> Engine:
    """An engine that has its program."""
    model = nets.build(trunk, head)
    model.trunk_net, program = traced(trunk)
    engine = Engine(model, Options(way=way))
    engine.exact = program
    return engine


def both(engine: Engine, scene: Scene, windows: Windows) -> tuple[Sweep, Sweep]:
    """By the engine, and by plain calls."""
    fill = nets.canvas(seed=1)
    return engine.sweep(scene, windows, fill), plain.sweep(scene, windows, fill)


def agree(found: Sweep, wanted: Sweep) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert (wanted.painted - wanted.clean).abs().max() > 1e-5


@pytest.mark.parametrize("way", ["incremental", "dense"])
@pytest.mark.parametrize("trunk", nets.TRUNKS)
def test_sweep_of_every_net_equals_the_plain_one(trunk: str, way: Way) -> None:
    engine = ready(way, trunk, "attention" if way == "dense" else "pooled")
    for windows in (GRID, OVERLAPPING):
        assert engine.choice(Request(windows)).way == way
        agree(*both(engine, nets.scene(engine.model, batch=7), windows))


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("rates", [(1, 1e30, 0), (1e30, 1e30, 1), (1e9, 1e9, 1e-9)])
def test_batch_groups_and_cut_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    groups: int,
    rates: tuple[float, float, float],
) -> None:
    """The rates of flops, bytes and calls move the cut from windows to whole maps."""
    monkeypatch.setattr("workers.sweep.schedule.GROUPS", (groups,))
    monkeypatch.setenv("VQATLAS_CACHE", str(tmp_path))
    for name, rate in zip(("flops", "bandwidth", "call"), rates, strict=True):
        machine.once(f"rate {name} torch.float64", CPU, lambda rate=rate: rate)
    engine = ready("incremental")
    schedule = engine.schedule(Request(GRID))
    assert len(schedule.groups) == groups**2
    assert (schedule.flop_ratio > 1.1) == (rates[2] != 1)
    for batch in (1, 3, 25):
        engine.plans[GRID, None].batch = batch
        agree(*both(engine, nets.scene(engine.model), GRID))


def test_chosen_windows_come_in_the_order_asked_for() -> None:
    engine = ready("incremental")
    scene = nets.scene(engine.model)
    fill = nets.canvas(seed=1)
    everything = engine.sweep(scene, GRID, fill).painted
    some = engine.sweep(scene, GRID, fill, only=[24, 0, 7]).painted
    torch.testing.assert_close(some, everything[[24, 0, 7]], rtol=1e-12, atol=1e-12)


# --- memory ---------------------------------------------------------------------------------------


class SmallMemory(Operation):
    """Another operation, on a device whose memory holds a limited number of its windows, and whose
    memory something else fills during the next ``crowded`` calls on whole maps."""

    def __init__(self, inner: Operation, limit: int) -> None:
        self.inner, self.limit = inner, limit
        self.supports, self.border = inner.supports, inner.border
        self.tried: list[int] = []
        self.crowded = 0

    def __call__(self, operands: list[Tensor], padded: bool) -> Tensor:
        if padded:
            self.crowded -= 1
        else:
            self.tried.append(len(operands[0]))
        if self.crowded >= 0 if padded else self.tried[-1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(operands, padded)


def squeezed(program: Program, limit: int) -> tuple[Program, SmallMemory]:
    """Its second step runs out of memory."""
    steps = list(program.steps)
    memory = SmallMemory(steps[1].operation, limit)
    steps[1] = replace(steps[1], operation=memory)
    return replace(program, steps=tuple(steps)), memory


def limited(limit: int, way: Way = "incremental") -> tuple[Engine, SmallMemory]:
    """An engine whose program runs out of memory from after its trial on."""
    engine = ready(way)
    engine.choice(Request(GRID))
    plan = engine.plans[GRID, None]
    plan.batch = 16
    engine.program, memory = squeezed(engine.program, limit)
    assert plan.passes is not None
    plan.passes.program = engine.program
    return engine, memory


def test_sweep_out_of_memory_halves_its_batch_and_gives_the_same() -> None:
    engine, memory = limited(3)
    plan = engine.plans[GRID, None]
    scene = nets.scene(engine.model)
    agree(*both(engine, scene, GRID))
    assert plan.batch <= 3
    assert scene.batch == 32  # of whole images
    assert plan.passes is not None
    sizes = [len(group.cells) for group, _ in plan.passes.groups]
    assert max(memory.tried) == max(evenly(size, 16) for size in sizes) > 3
    memory.tried.clear()
    agree(*both(engine, scene, GRID))
    assert max(memory.tried) <= 3


def test_sweep_that_fails_with_one_window_fails_the_example() -> None:
    engine, memory = limited(0)
    with pytest.raises(BadExample, match="out of memory on cpu with a batch of 1 image of 24 x 20"):
        engine.sweep(nets.scene(engine.model), GRID, nets.canvas(seed=1))
    assert memory.tried[-1] == 1


def test_sweep_whose_clean_maps_do_not_fit_paints_whole_images() -> None:
    engine, memory = limited(16)
    memory.crowded = 1
    agree(*both(engine, nets.scene(engine.model), GRID))
    assert memory.tried == []
    agree(*both(engine, nets.scene(engine.model), GRID))
    assert sum(memory.tried) == len(GRID)


@pytest.mark.parametrize("way", ["incremental", "dense"])
def test_clean_image_that_does_not_fit_fails_the_example(way: Way) -> None:
    engine, memory = limited(16, way)
    memory.crowded = sys.maxsize
    with pytest.raises(BadExample, match="out of memory on cpu with a batch of 1 image of 24 x 20"):
        engine.sweep(nets.scene(engine.model), GRID, nets.canvas(seed=1))


def untried(limit: int, way: Way | Literal["auto"]) -> tuple[Engine, SmallMemory]:
    """An engine whose trial runs out of memory."""
    engine = ready(way)
    assert engine.exact is not None
    engine.exact, memory = squeezed(engine.exact, limit)
    return engine, memory


def test_trial_out_of_memory_times_fewer_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VQATLAS_CACHE", str(tmp_path))
    engine, memory = untried(1, "incremental")
    assert engine.choice(Request(GRID)).way == "incremental"
    assert memory.tried[-1] == 1 < max(memory.tried)
    agree(*both(engine, nets.scene(engine.model), GRID))


def test_trial_that_fails_with_one_window_leaves_plain_calls() -> None:
    engine, _ = untried(0, "auto")
    choice = engine.choice(Request(GRID))
    assert choice.way == "plain"
    assert choice.reason == "a trial of its traced trunk ran out of memory on cpu"
    agree(*both(engine, nets.scene(engine.model), GRID))
    with pytest.raises(UserError, match="because a trial of its traced trunk ran out of memory"):
        untried(0, "incremental")[0].choice(Request(GRID))


# --- stepping back --------------------------------------------------------------------------------


class Spelled(nn.Module):
    """A trunk of one convolution whose forward pass is a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 6, 3, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv, x)


class Counting(nn.Module):
    """A trunk that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) / self.calls


UNTRACEABLE: dict[str, tuple[nn.Module, str]] = {
    "branch": (Spelled(lambda conv, x: conv(x) if x.sum() > 0 else conv(-x)), "data-dependent"),
    "item": (Spelled(lambda conv, x: conv(x) * float(x.mean())), "data-dependent"),
    "numpy": (Spelled(lambda conv, x: conv(torch.from_numpy(x.numpy()))), r".numpy() is not"),
    "batch": (Spelled(lambda conv, x: conv(x) if len(x) > 4 else conv(-x)), "Constraints violated"),
    "buffer": (Counting(), "it changes its own buffers or its input"),
    "input": (nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 6, 3)), "it changes its own buffe"),
    "turned": (Spelled(lambda conv, x: conv(x).permute(0, 1, 3, 2)), "its output is no map"),
    "no convolution": (nn.AvgPool2d(4), "it has no convolution that windows could save"),
}
"""Trunk, and what the reason must name."""


def tiny(trunk: nn.Module) -> nets.TinyVQA:
    torch.manual_seed(0)
    return freeze(nets.TinyVQA(trunk, "pooled").double())


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_trunk_that_cannot_be_traced_is_swept_by_plain_calls_and_the_reason_named(
    name: str,
) -> None:
    trunk, reason = UNTRACEABLE[name]
    engine = Engine(tiny(trunk))
    choice = engine.choice(Request(GRID))
    assert (choice.way, choice.passes) == ("plain", 25)
    assert reason in choice.reason
    if name != "buffer":
        agree(*both(engine, nets.scene(engine.model), GRID))
    with pytest.raises(UserError) as error:
        Engine(engine.model, Options(way="incremental")).choice(Request(GRID))
    assert reason in str(error.value)


def test_black_box_is_swept_by_plain_calls() -> None:
    engine = Engine(nets.black_box())
    choice = engine.choice(Request(GRID))
    assert choice.way == "plain"
    assert choice.reason == "the model gives logits only, its trunk is out of reach"
    agree(*both(engine, nets.scene(engine.model), GRID))


UNTRUE = {
    "dropout": Spelled(lambda conv, x: F.dropout(conv(x), 0.5, training=True)),
    "noise": Spelled(lambda conv, x: conv(x) + torch.randn_like(x[:, :1, ::2, ::2])),
    "batch mean": Spelled(lambda conv, x: conv(x - x.mean(0, keepdim=True) / 2)),
    "batch statistics": nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "masked mean": Spelled(lambda conv, x: conv(x) + x[x > 0].mean()),
}
"""Trunks that are no function of one image: two say so in their operations, the program of the
others runs, and is not what they give for an image alone."""
SAID = {
    "dropout": "it has dropout in training mode",
    "batch statistics": "it has batch normalisation in training mode",
}


@pytest.mark.parametrize("name", UNTRUE)
def test_trunk_that_is_no_function_of_one_image_is_swept_by_plain_calls(name: str) -> None:
    choice = Engine(tiny(UNTRUE[name])).choice(Request(GRID))
    assert choice.way == "plain"
    assert SAID.get(name, "the traced trunk differs from the model by ") in choice.reason


def wrong_weight(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    assert engine.exact is not None
    steps = list(engine.exact.steps)
    last = max(i for i, s in enumerate(steps) if isinstance(s.operation, Convolution))
    convolution = steps[last].operation
    weight = convolution.weight.clone()
    weight[0, 0, 0, 0] += 1e-3
    steps[last] = replace(steps[last], operation=replace(convolution, weight=weight))
    engine.exact = replace(engine.exact, steps=tuple(steps))


def shifted_table(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def shifted(top: np.ndarray, *others: np.ndarray) -> Tensor:
        return gather.table_of(top + 1, *others)

    patch.setattr("workers.sweep.incremental.table_of", shifted)


def narrow_interval(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def narrow(x: Intervals, support: intervals.Support, size: int) -> Intervals:
        found = intervals.through(x, support, size)
        return Intervals(np.minimum(found.start + 1, found.stop - 1), found.stop)

    patch.setattr("workers.sweep.incremental.through", narrow)


def wrong_border(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("workers.sweep.operations.Convolution.border", 1.0)


@pytest.mark.parametrize("fault", [wrong_weight, shifted_table, narrow_interval, wrong_border])
def test_wrong_program_is_found_out_before_any_sweep(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[Engine, pytest.MonkeyPatch], None]
) -> None:
    engine = ready("auto")
    fault(engine, monkeypatch)
    choice = engine.choice(Request(GRID))
    assert choice.way == "plain"
    assert "the traced trunk differs from the model by " in choice.reason
    agree(*both(engine, nets.scene(engine.model), GRID))
