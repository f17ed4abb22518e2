"""The plan of windows, the painting, and batches that shrink."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import nets
from workers import catalog
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.models.base import Geometry, freeze
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.sweep import patches
from workers.sweep.batches import in_batches
from workers.sweep.plain import masked, sweep
from workers.sweep.windows import Window, grid_windows, paint, strided_windows

GREY = (123.68, 116.779, 103.939)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20))
def test_windows_cover_each_pixel_once(height: int, width: int, grid: int) -> None:
    grid = min(grid, height, width)
    covered = np.zeros((height, width), int)
    areas = []
    for top, bottom, left, right in grid_windows(height, width, grid):
        covered[top:bottom, left:right] += 1
        areas.append((bottom - top) * (right - left))
    assert (covered == 1).all()
    assert len(areas) == grid**2
    assert max(areas) <= -(-height // grid) * -(-width // grid)


def test_windows_of_448_pixels_are_28_pixels_a_side() -> None:
    windows = grid_windows(448, 448, 16)
    assert windows[17] == (28, 56, 28, 56)
    assert {(w.bottom - w.top, w.right - w.left) for w in windows} == {(28, 28)}


@pytest.mark.parametrize("grid", [0, 21])
def test_grid_finer_than_the_input_is_refused(grid: int) -> None:
    with pytest.raises(UserError) as error:
        grid_windows(24, 20, grid)
    assert str(error.value) == (
        f"occlusion: a grid of {grid} does not fit an input of 24 x 20 pixels, whose cells need at "
        "least one pixel each; choose a grid of 1 to 20."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "choose a grid of 1 to 8"),
        ({"window": 9}, "choose a window of 1 x 1 to 8 x 9"),
        ({"window": (3, 4), "stride": (4, 4)}, "choose a stride of 1 x 1 to 3 x 4"),
    ],
)
def test_occlusion_refuses_its_windows_before_any_image_is_read(
    options: dict[str, object], message: str
) -> None:
    geometry = Geometry(input_height=8, input_width=9)
    with pytest.raises(UserError, match=message):
        Occlusion(**options).arrays(geometry)
    with pytest.raises(UserError, match=message):
        Occlusion(**options).passes(geometry)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 16, "window": 4}, "grid and window exclude one another; keep one of them"),
        ({"stride": 4}, "stride needs a window; add that or remove stride"),
        ({"sigma": 0.1}, "sigma needs patch: blur; add that or remove sigma"),
        ({"sigma": 0.1, "patch": "noise"}, "sigma needs patch: blur; add that or remove sigma"),
        ({"seed": 0, "patch": "gray"}, "seed needs patch: noise; add that or remove seed"),
        ({"sigma": 0.26, "patch": "blur"}, "sigma: Input should be less than or equal to 0.25"),
        ({"sigma": 0.0, "patch": "blur"}, "sigma: Input should be greater than 0"),
        ({"window": (4, 0)}, "window.1: Input should be greater than 0"),
        ({"patch": "grey"}, "patch.name: Input should be 'gray', 'mean', 'blur' or 'noise'"),
        ({"patch": (0, 0, 256)}, "patch.colour.2: Input should be less than or equal to 255"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        catalog.methods({"occlusion": options})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "filled_in"),
    [
        ({}, {"grid": 16, "window": None, "stride": None, "sigma": None, "seed": None}),
        ({"window": 5}, {"grid": None, "window": [5, 5], "stride": [5, 5]}),
        ({"window": [5, 6], "stride": 2}, {"grid": None, "window": [5, 6], "stride": [2, 2]}),
        ({"patch": "blur"}, {"grid": 16, "sigma": 10 / 224, "seed": None}),
        ({"patch": "noise"}, {"sigma": None, "seed": 0}),
    ],
)
def test_stored_parameters_state_every_default_and_give_the_method_back(
    options: dict[str, object], filled_in: dict[str, object]
) -> None:
    method = Occlusion(**options)
    stored = method.model_dump(mode="json")
    assert stored.items() >= filled_in.items()
    assert Occlusion(**stored) == method


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (16, 16)),
        ({"grid": 32}, (32, 32)),
        ({"window": 14}, (4, 5)),
        ({"window": 14, "stride": (3, 7)}, (15, 9)),
    ],
)
def test_passes_are_the_windows(options: dict[str, object], shape: tuple[int, int]) -> None:
    method, geometry = Occlusion(**options), Geometry(input_height=56, input_width=70)
    specs = {spec.name: spec.shape for spec in method.arrays(geometry)}
    pixels = {"map": (56, 70)} if "window" in options else {}
    assert specs == dict.fromkeys(("drop", "log_drop", "top_answer"), shape) | pixels
    assert method.primary == ("map" if "window" in options else "drop")
    assert method.passes(geometry) == shape[0] * shape[1]


def test_noise_hangs_on_the_seed_and_the_image_alone() -> None:
    canvas = torch.arange(3 * 40 * 50, dtype=torch.float32).reshape(3, 40, 50) % 251
    noise = patches.noise(canvas, 0)
    assert noise.dtype == torch.float32
    assert noise[0, 0, 0].item() == pytest.approx(172.195465)
    assert torch.equal(noise, patches.noise(canvas.double(), 0).float())
    assert torch.equal(noise, patches.noise(canvas + 1e-3, 0))
    assert 0 <= noise.min() < 1
    assert 254 < noise.max() <= 255
    assert noise.mean().item() == pytest.approx(127.5, abs=2)
    for other in (patches.noise(canvas, 1), patches.noise(canvas.flip(2), 0)):
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.05


def test_patches_are_the_same_whatever_is_asked_in_whatever_batch() -> None:
    model = nets.build("plain")
    for name in ("mean", "blur", "noise"):
        method = Occlusion(grid=4, patch=name)
        together = method.explain(nets.scene(model, batch=16)).arrays["drop"]
        alone = method.explain(nets.scene(model, nets.QUESTIONS[1:2], batch=3)).arrays["drop"]
        np.testing.assert_allclose(together[2:4], alone, rtol=1e-9, atol=1e-15)


def test_blur_keeps_a_constant_image_and_the_mass_of_a_spot() -> None:
    flat = torch.full((3, 30, 50), 77.0, dtype=torch.float64)
    torch.testing.assert_close(patches.blurred(flat, 0.25), flat)
    spot = torch.zeros(3, 61, 81, dtype=torch.float64)
    spot[:, 30, 40] = 1
    blurred = patches.blurred(spot, 5 / 61)
    assert blurred.sum((1, 2)).tolist() == pytest.approx([1, 1, 1])
    offsets = torch.arange(81) - 40
    assert (blurred[0].sum(0) * offsets**2).sum().sqrt().item() == pytest.approx(5, rel=1e-3)
    offsets = torch.arange(61) - 30
    assert (blurred[0].sum(1) * offsets**2).sum().sqrt().item() == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (2, 3), (5, 4)])
def test_blur_of_a_tiny_image_is_still_a_mean_of_its_pixels(sides: tuple[int, int]) -> None:
    canvas = 255 * torch.rand(3, *sides, generator=torch.manual_seed(0))
    blurred = patches.blurred(canvas, 0.25)
    assert blurred.shape == canvas.shape
    assert canvas.min() <= blurred.min() <= blurred.max() <= canvas.max() + 1e-3


@pytest.mark.parametrize(
    ("size", "stride", "rows", "columns"),
    [
        ((12, 10), (12, 10), [(0, 12), (12, 24)], [(0, 10), (10, 20)]),
        ((10, 16), (7, 2), [(0, 10), (7, 17), (14, 24)], [(0, 16), (2, 18), (4, 20)]),
        ((9, 19), (9, 19), [(0, 9), (9, 18), (18, 24)], [(0, 19), (19, 20)]),
        ((24, 20), (1, 20), [(0, 24)], [(0, 20)]),
    ],
)
def test_strided_windows_are_cut_at_the_end(
    size: tuple[int, int], stride: tuple[int, int], rows: list[object], columns: list[object]
) -> None:
    windows = strided_windows(24, 20, size, stride)
    assert (windows.rows, windows.columns) == (tuple(rows), tuple(columns))
    assert windows.shape == (len(rows), len(columns))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70))
def test_strided_windows_reach_every_pixel_and_none_is_empty(
    side: int, size: int, stride: int
) -> None:
    size = min(side, size)
    windows = strided_windows(side, 1, (size, 1), (min(size, stride), 1))
    covered = np.zeros(side, int)
    for top, bottom in windows.rows:
        covered[top:bottom] += 1
    assert (covered > 0).all()
    assert all(0 < bottom - top <= size for top, bottom in windows.rows)
    assert [bottom == side for _, bottom in windows.rows].count(True) == 1


def test_windows_are_listed_in_row_major_order() -> None:
    windows = strided_windows(24, 20, (10, 16), (7, 2))
    assert len(windows) == 9
    assert windows[5] == Window(7, 17, 4, 20)
    assert [windows[i] for i in range(9)] == list(windows)
    with pytest.raises(IndexError):
        windows[9]


@pytest.mark.parametrize("size", [(25, 1), (1, 21), (0, 5)])
def test_window_larger_than_the_input_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError) as error:
        strided_windows(24, 20, size, (1, 1))
    assert str(error.value) == (
        f"occlusion: a window of {size[0]} x {size[1]} pixels does not fit an input of 24 x 20; "
        "choose a window of 1 x 1 to 24 x 20."
    )


@pytest.mark.parametrize("stride", [(7, 4), (6, 5), (0, 1)])
def test_stride_larger_than_the_window_is_refused(stride: tuple[int, int]) -> None:
    with pytest.raises(UserError) as error:
        strided_windows(24, 20, (6, 4), stride)
    assert str(error.value) == (
        f"occlusion: a stride of {stride[0]} x {stride[1]} pixels with a window of 6 x 4 leaves "
        "pixels that are never painted; choose a stride of 1 x 1 to 6 x 4."
    )


def test_paint_shows_the_fill_in_its_window_and_nowhere_else() -> None:
    canvas, fill = nets.canvas(), nets.canvas(seed=1)
    painted = paint(canvas, list(grid_windows(24, 20, 3))[4:6], fill)
    assert torch.equal(painted[0, :, 8:16, 6:13], fill[:, 8:16, 6:13])
    assert torch.equal(painted[1, :, 8:16, 13:20], fill[:, 8:16, 13:20])
    painted[0, :, 8:16, 6:13] = canvas[:, 8:16, 6:13]
    assert torch.equal(painted[0], canvas)


def test_default_patch_is_zero_after_normalisation_in_rgb_only() -> None:
    model = nets.build("plain")
    rgb, bgr = (model.normalise(torch.tensor(c)[:, None, None]) for c in (GREY, GREY[::-1]))
    assert Occlusion().patch == GREY
    assert rgb.abs().max() < 0.01
    assert bgr.abs().max() > 0.3


class Sum(nets.BlackBox):
    """Its first logit is the sum of the canvas: a cell's drop is its area times its brightness."""

    def logits(self, canvas: Tensor, questions: object) -> Tensor:
        return torch.stack([canvas.sum((1, 2, 3)), torch.zeros(len(canvas))], 1)


@pytest.mark.parametrize("grid", [3, 7, 16])
def test_drops_of_a_linear_model_are_cell_areas(grid: int) -> None:
    model = freeze(Sum())
    scene = Scene(model, torch.ones(3, 50, 50), [()], [1], [None])
    occlusion = Occlusion(grid=grid, patch=(0, 0, 0), score="logit")
    edges = np.arange(grid + 1) * 50 // grid
    areas = 3 * np.outer(np.diff(edges), np.diff(edges))
    np.testing.assert_allclose(occlusion.explain(scene).arrays["drop"][0], areas)


@pytest.mark.parametrize("glimpses", [1, 3])
@pytest.mark.parametrize("coordinates", [False, True])
def test_pool_and_classify_of_kazemi_equal_its_head(glimpses: int, coordinates: bool) -> None:
    model = small_kazemi(glimpses=glimpses, coordinates=coordinates)
    features = torch.randn(7, 10, 3, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    states = model.encode(model.words([("what", "is"), (), ("circle",)]))
    pooled = model.pool(features, states)
    wanted = [model.head(features, s.expand(7, -1)).logits for s in states]
    assert pooled.shape == (7, 3, glimpses * (10 + 2 * coordinates))
    torch.testing.assert_close(
        model.classify(pooled, states), torch.stack(wanted, 1), rtol=1e-12, atol=1e-12
    )


def test_kazemi_computes_the_part_without_question_once_for_all_questions() -> None:
    model, calls = small_kazemi(), []
    for part in (model.attention.v_conv, model.attention.x_conv):
        part.register_forward_hook(lambda net, args, out: calls.append(net))
    states = model.encode(model.words([("what", "is"), (), ("circle",)]))
    model.pool(torch.ones(2, 10, 3, 3, dtype=torch.float64), states)
    assert [calls.count(part) for part in (model.attention.v_conv, model.attention.x_conv)] == [
        1,
        3,
    ]


def small_kazemi(**fields: object) -> Kazemi:
    torch.manual_seed(0)
    sizes = {"embedding": 7, "state": 9, "attention": 11, "hidden": 13, "image_size": 40}
    words, answers = ("what", "is", "circle"), ("red", "blue", "yes")
    layout = {"trunk": "small", "channels": (4, 6, 8, 10), "words": words, "answers": answers}
    return freeze(Kazemi(KazemiConfig(**layout, **sizes, **fields)).double())


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_sweep_is_the_models_answer_to_each_painted_canvas(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("workers.sweep.plain.ROWS", rows)
    model = small_kazemi()
    canvas, fill = (255 * torch.rand(3, 40, 40, dtype=torch.float64) for _ in range(2))
    questions = [("what", "is"), (), ("circle",)]
    scene = Scene(model, canvas, questions, [1, 2, 3], [None] * 3, batch=4)
    windows = strided_windows(40, 40, (20, 16), (13, 16))
    clean, painted = sweep(scene, windows, fill)
    torch.testing.assert_close(clean, scene.output.logits, rtol=0, atol=0)
    assert painted.shape == (9, 3, 3)
    for w, (top, bottom, left, right) in enumerate(windows):
        changed = canvas.clone()
        changed[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
        wanted = model.logits(changed.expand(3, -1, -1, -1), questions)
        torch.testing.assert_close(painted[w], wanted, rtol=1e-12, atol=1e-12)


def test_masked_blends_the_image_with_the_fill() -> None:
    scene, fill = nets.scene(nets.build("plain"), batch=2), nets.canvas(seed=1)
    masks = torch.stack([torch.ones(24, 20), torch.zeros(24, 20), nets.canvas(seed=2)[0] / 255])
    got = masked(scene, masks, fill)
    blended = [m * scene.canvas + (1 - m) * fill for m in masks]
    wanted = [scene.model.logits(c.expand(3, -1, -1, -1), nets.QUESTIONS) for c in blended]
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[0], scene.output.logits, rtol=1e-12, atol=1e-12)


class SmallMemory(torch.nn.Module):
    """The device's memory holds a limited number of images."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.tried: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tried.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x


def limited(limit: int) -> tuple[nets.TinyVQA, SmallMemory]:
    model, memory = nets.build("plain"), SmallMemory(limit)
    model.trunk_net.insert(0, memory)
    return model, memory


def test_sweep_out_of_memory_halves_its_batch_and_gives_the_same_map() -> None:
    model, memory = limited(3)
    scene = nets.scene(model, batch=16)
    arrays = Occlusion(grid=4).explain(scene).arrays
    assert memory.tried == [1, 16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert scene.batch == 2
    wanted = Occlusion(grid=4).explain(nets.scene(nets.build("plain"))).arrays
    np.testing.assert_allclose(arrays["drop"], wanted["drop"], rtol=1e-9, atol=1e-15)


def test_sweep_that_fails_with_a_batch_of_one_fails_the_example() -> None:
    model, memory = limited(1)
    scene = nets.scene(model, batch=4)
    memory.limit = 0
    with pytest.raises(BadExample) as error:
        Occlusion(grid=4).explain(scene)
    assert str(error.value) == (
        "out of memory on cpu with a batch of 1 image of 24 x 20 pixels; use a device with more "
        "memory or a smaller input."
    )


def test_batches_out_of_memory_repeat_only_what_failed() -> None:
    scene, tried = nets.scene(nets.build("plain"), batch=6), []

    def compute(items: slice) -> Tensor:
        tried.append((items.start, items.stop))
        if items.stop - items.start > (4 if items.start else 6):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(items.start, items.stop)

    assert in_batches(scene, 12, compute).tolist() == list(range(12))
    assert tried == [(0, 6), (6, 12), (6, 9), (9, 12)]
    assert scene.batch == 3


@given(st.integers(1, 300), st.integers(1, 40))
def test_batches_are_as_few_as_can_be_and_even(total: int, most: int) -> None:
    scene, sizes = nets.scene(nets.build("plain"), batch=most), []

    def compute(items: slice) -> Tensor:
        sizes.append(items.stop - items.start)
        return torch.arange(items.start, items.stop)

    assert in_batches(scene, total, compute).tolist() == list(range(total))
    assert len(sizes) == -(-total // most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_other_errors_of_a_batch_are_not_swallowed() -> None:
    def compute(items: slice) -> Tensor:
        raise FloatingPointError(items)

    with pytest.raises(FloatingPointError):
        in_batches(nets.scene(nets.build("plain")), 2, compute)
