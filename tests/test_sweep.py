"""The plan of windows, the painting, and batches that shrink."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import nets
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.models.base import Geometry, freeze
from workers.sweep.batches import in_batches
from workers.sweep.windows import grid_windows, paint

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


def test_occlusion_refuses_its_grid_before_any_image_is_read() -> None:
    with pytest.raises(UserError, match="choose a grid of 1 to 8"):
        Occlusion().arrays(Geometry(input_height=8, input_width=9))


def test_paint_fills_its_window_and_nothing_else() -> None:
    canvas = nets.canvas()
    painted = paint(canvas, grid_windows(24, 20, 3)[4:6], (1, 2, 3))
    assert (painted[0, :, 8:16, 6:13] == torch.tensor([1, 2, 3])[:, None, None]).all()
    assert (painted[1, :, 8:16, 13:20] == torch.tensor([1, 2, 3])[:, None, None]).all()
    painted[0, :, 8:16, 6:13] = canvas[:, 8:16, 6:13]
    assert torch.equal(painted[0], canvas)


def test_default_patch_is_zero_after_normalisation_in_rgb_only() -> None:
    model = nets.build("plain")
    rgb = model.normalise(paint(nets.canvas(), grid_windows(24, 20, 1), GREY))
    bgr = model.normalise(paint(nets.canvas(), grid_windows(24, 20, 1), GREY[::-1]))
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
        if items.stop - items.start > 4 - items.start // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(items.start, items.stop)

    assert in_batches(scene, 7, compute).tolist() == list(range(7))
    assert tried == [(0, 6), (0, 3), (3, 6), (6, 7)]
    assert scene.batch == 3


def test_other_errors_of_a_batch_are_not_swallowed() -> None:
    def compute(items: slice) -> Tensor:
        raise FloatingPointError(items)

    with pytest.raises(FloatingPointError):
        in_batches(nets.scene(nets.build("plain")), 2, compute)
