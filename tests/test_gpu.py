"""What only a GPU can show: its kernels, recorded passes, precisions, memory, no waiting."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pipeline import run as stages
from pipeline.dataset import Run
from tests import nets, trunks
from tests.conftest import METHODS, Recipe
from tests.reference import incremental as reference
from tests.test_kernels import CASES, convolution
from tests.test_trunks import sharpened
from workers.methods.base import Scene
from workers.methods.gradients import GuidedBackprop, Saliency
from workers.methods.occlusion import DrillDown, Occlusion
from workers.models.kazemi import Kazemi
from workers.sweep import plain
from workers.sweep.engine import Engine, Options
from workers.sweep.gather import Gather
from workers.sweep.passes import Recorded
from workers.sweep.precision import arithmetic
from workers.sweep.windows import Request, grid_windows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
SIDE, GRID = 130, 8
WINDOWS = grid_windows(SIDE, SIDE, GRID)


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """As a worker has it: float32 convolutions are not rounded."""
    with arithmetic("float32"):
        yield


@cache
def model(trunk: str) -> Kazemi:
    return sharpened(trunk, SIDE).to(GPU)


def scene(trunk: str, **fields: object) -> Scene:
    canvas = (127 + 60 * trunks.picture(SIDE, 8)).to(GPU)
    return Scene(model(trunk), canvas, [("a", "b"), ("c",)], [1, 2], [None, None], **fields)


def fill() -> Tensor:
    return (127 + 60 * trunks.picture(SIDE, 9)).to(GPU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip", [(1, 1), (2, 3)])
def test_gather_is_the_literal_one(dtype: torch.dtype, skip: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 5, 13, 11, generator=generator).to(dtype)
    changed = torch.randn(9, 5, 4, 6, generator=generator).to(dtype)
    table = torch.randint(-3, 9, (9, 4), generator=generator, dtype=torch.int32)
    rows = torch.arange(9)
    found = Gather((7, 5), table.to(GPU), skip, -1.0)(clean.to(GPU), changed.to(GPU), rows.to(GPU))
    wanted = reference.gather(
        clean[0].double().numpy(), changed.double().numpy(), table.numpy(), (7, 5), skip, -1.0
    )
    np.testing.assert_array_equal(found.cpu().double().numpy(), wanted)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_gives_the_same_sums(case: str, padded: bool) -> None:
    torch.manual_seed(0)
    conv = convolution(case)
    x = torch.randn(6, conv.weight.shape[1] * conv.groups, 13, 13)
    exact = conv.to(torch.device("cpu"), torch.float64)
    other = torch.randn_like(exact.kernels(x.double(), None, padded))
    on_gpu = conv.to(GPU, torch.float32)
    inputs = x.to(GPU).contiguous(memory_format=torch.channels_last)
    for added in (None, other):
        wanted = exact.kernels(x.double(), added, padded)
        given = None
        if added is not None:
            given = added.to(GPU, torch.float32).contiguous(memory_format=torch.channels_last)
        at = conv.acting(padded)
        kernels = on_gpu.kernels._candidates(inputs, at)
        assert len(kernels) > 2
        for kernel in kernels:
            found = kernel(on_gpu, inputs, None if given is None else given.clone(), at)
            assert (found.cpu() - wanted).abs().max() < 2e-5, kernel.__name__


@pytest.mark.parametrize("trunk", ["resnet18", "vgg11", "mobilenet_v2", "densenet121"])
def test_recorded_sweep_is_the_plain_one(trunk: str) -> None:
    engine = Engine(model(trunk), Options(way="incremental"))
    asked = scene(trunk, engine=engine)
    wanted = plain.sweep(asked, WINDOWS, fill())
    plan = engine._plan(WINDOWS, None)
    assert isinstance(plan.passes, Recorded)
    for _ in range(2):  # the second is replayed only
        found = engine.sweep(asked, WINDOWS, fill())
        for q, answer in enumerate(asked.predictions):
            ours, theirs = (x.painted[:, q].double().softmax(1).cpu() for x in (found, wanted))
            assert theirs[:, answer].std() > 1e-4
            assert (ours - theirs).abs().max() < 1e-5
            assert spearmanr(ours[:, answer], theirs[:, answer]).statistic >= 0.9999
    for size in (1, 5, len(WINDOWS) - 1):
        some = list(range(size))[::-1]
        part = engine.sweep(asked, WINDOWS, fill(), only=some)
        torch.testing.assert_close(part.painted, found.painted[some], rtol=1e-4, atol=1e-4)


def test_batches_change_nothing() -> None:
    asked = scene("resnet18")
    engine = Engine(model("resnet18"), Options(way="incremental"))
    whole = engine.sweep(asked, WINDOWS, fill())
    for batch in (1, 3, 17):
        engine._plan(WINDOWS, None).batch = batch
        found = engine.sweep(asked, WINDOWS, fill())
        torch.testing.assert_close(found.painted, whole.painted, rtol=1e-4, atol=1e-4)


def test_another_image_takes_the_place_of_the_one_before() -> None:
    """A recording reads where the first image lay."""
    engine = Engine(model("resnet18"), Options(way="incremental"))
    first = engine.sweep(scene("resnet18"), WINDOWS, fill())
    other = scene("resnet18")
    other.canvas = other.canvas.flip(1)
    found = engine.sweep(other, WINDOWS, fill())
    wanted = plain.sweep(other, WINDOWS, fill())
    torch.testing.assert_close(found.painted, wanted.painted, rtol=1e-4, atol=1e-4)
    assert (found.painted - first.painted).abs().max() > 1e-2
    again = engine.sweep(scene("resnet18"), WINDOWS, fill())
    torch.testing.assert_close(again.painted, first.painted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["incremental", "dense", "plain"])
def test_nothing_waits_for_the_gpu_inside_a_sweep(way: str) -> None:
    engine = Engine(model("resnet18"), Options(way=way))
    asked, painted = scene("resnet18"), fill()
    engine.sweep(asked, WINDOWS, painted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        engine.sweep(asked, WINDOWS, painted)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 0.05), ("bfloat16", 0.3)])
def test_reduced_precision_is_near_and_not_the_same(precision: str, limit: float) -> None:
    exact = Engine(model("resnet18"), Options(way="incremental"))
    reduced = Engine(model("resnet18"), Options(way="incremental", precision=precision))
    asked = scene("resnet18")
    a, b = (e.sweep(asked, WINDOWS, fill()).painted.softmax(-1) for e in (exact, reduced))
    assert 1e-7 < (a - b).abs().max() < limit
    assert not torch.backends.cudnn.allow_tf32


def test_drill_down_asks_for_some_windows() -> None:
    engine = Engine(model("resnet18"), Options(way="incremental"))
    everything = Occlusion(grid=GRID, approximate=DrillDown(coarse=2, keep=0.99))
    exact = Occlusion(grid=GRID).explain(scene("resnet18", engine=engine))
    found = everything.explain(scene("resnet18", engine=engine))
    np.testing.assert_allclose(found.arrays["drop"], exact.arrays["drop"], atol=1e-5)


def test_sweep_fits_a_small_memory_by_halving_its_batch() -> None:
    """After the plan was made less memory is left than a batch of all windows takes."""
    engine = Engine(model("vgg11"), Options(way="incremental", batch=256))
    asked = scene("vgg11")
    wanted = plain.sweep(asked, WINDOWS, fill())
    plan = engine._plan(WINDOWS, None)
    plan.batch = len(WINDOWS)
    assert isinstance(plan.passes, Recorded)
    engine.sweep(asked, WINDOWS, fill())
    taken = torch.cuda.memory_reserved()
    plan.passes.windows.clear()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + taken  # half of what a batch of all windows took
    torch.cuda.set_per_process_memory_fraction(room / 2 / torch.cuda.mem_get_info()[1])
    try:
        found = engine.sweep(asked, WINDOWS, fill())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert plan.batch < len(WINDOWS)
    torch.testing.assert_close(found.painted, wanted.painted, rtol=1e-4, atol=1e-4)


class Constants(torch.nn.Module):
    """A trunk that brings a constant from the CPU at every call, which no recording can hold."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x * x.new_tensor([1.0, 0.5, 2.0])[:, None, None])


def test_trunk_that_cannot_be_recorded_is_run_as_it_is() -> None:
    net = nets.build("resnet").to(GPU)
    net.trunk_net = Constants(net.trunk_net)
    engine = Engine(net, Options(way="incremental"))
    windows, shown = grid_windows(nets.HEIGHT, nets.WIDTH, 4), nets.canvas(seed=1).to(GPU)
    found = engine.sweep(nets.scene(net, engine=engine), windows, shown)
    wanted = plain.sweep(nets.scene(net), windows, shown)
    torch.testing.assert_close(found.painted, wanted.painted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.clean, wanted.clean, rtol=1e-11, atol=1e-11)


def test_clean_features_are_of_the_weights_there_are() -> None:
    net = nets.build("resnet").to(GPU)
    engine = Engine(net)
    for factor in (1.0, 1.5):
        net.trunk_net[0].weight = torch.nn.Parameter(factor * net.trunk_net[0].weight, False)
        found, wanted = (nets.scene(net, engine=e).features for e in (engine, None))
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_stated_memory_is_enough() -> None:
    engine = Engine(model("resnet18"), Options(way="incremental"))
    stated = engine.choice(Request(WINDOWS)).peak_bytes
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine.sweep(scene("resnet18"), WINDOWS, fill())
    weights = sum(p.numel() * p.element_size() for p in engine.model.parameters())
    assert stated is not None
    assert torch.cuda.max_memory_allocated() - before + weights < stated


@pytest.mark.parametrize("method", [Saliency(), GuidedBackprop()])
def test_gradients_are_those_of_the_cpu(method: Saliency | GuidedBackprop) -> None:
    net = nets.build("resnet")
    wanted = method.explain(nets.scene(net, gradients=True)).arrays
    on_gpu = nets.build("resnet").to(GPU)
    found = method.explain(nets.scene(on_gpu, gradients=True)).arrays
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)


def test_run_on_the_gpu_stores_the_maps_of_the_cpu(recipe: Recipe, tmp_path: Path) -> None:
    maps = {}
    for device in ("cpu", "cuda"):
        resources = {"executor": "local", "device": device}
        stages.run(recipe(methods=METHODS, resources=resources), tmp_path / device)
        run = Run(tmp_path / device)
        assert (run.maps.status != "failed").all()
        for label in METHODS:
            rows = run.maps[run.maps.method == label]
            maps[device, label] = np.stack(run.fetch(rows)) if len(rows) else None
    for label in METHODS:
        if maps["cpu", label] is not None:
            scale = np.abs(maps["cpu", label]).max()
            assert np.abs(maps["cuda", label] - maps["cpu", label]).max() < 1e-3 * scale, label
