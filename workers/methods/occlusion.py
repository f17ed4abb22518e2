"""Occlusion: how much an answer's score drops when a part of the image is painted over."""

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from torch import Tensor

from schemas.arrays import ArraySpec
from schemas.base import Frozen
from workers.methods.base import ImageMethod, Maps, Scene, Score, score_drops
from workers.models.base import Geometry
from workers.sweep import patches
from workers.sweep.engine import sweep
from workers.sweep.plain import Sweep
from workers.sweep.windows import Request, Windows, grid_windows, spread, strided_windows

Pixels = Annotated[
    tuple[PositiveInt, PositiveInt],
    BeforeValidator(lambda size: (size, size) if isinstance(size, int) else size),
]
"""Height and width, or one number for both."""


class Bounded(Frozen):
    """Windows that stop growing at a part of the map's side (Nakandala et al. 2019, "projective
    field thresholding")."""

    bound: float = Field(gt=0, lt=1)

    def __str__(self) -> str:
        return f"windows bounded at {self.bound:g}"


class DrillDown(Frozen):
    """A coarse grid first, then the fine cells of its most important part (Nakandala et al. 2019,
    "adaptive drill-down")."""

    coarse: int = Field(ge=1)
    """Cells along each side of the first sweep; divides the grid."""
    keep: float = Field(gt=0, lt=1)
    """Part of the coarse cells that is refined, for each question and target."""

    def __str__(self) -> str:
        return f"drill-down from {self.coarse} x {self.coarse}, {self.keep:g} refined"

    def parents(self, grid: int) -> list[int]:
        """The coarse cell that each fine cell lies in."""
        step = grid // self.coarse
        return [(y // step) * self.coarse + x // step for y in range(grid) for x in range(grid)]

    def most_important(self, drops: Tensor) -> set[int]:
        """The coarse cells of largest drop in size, of any row; ``drops (row, cell)``."""
        count = max(1, round(self.keep * drops.shape[1]))
        return set(drops.abs().topk(count, dim=1).indices.flatten().tolist())


class Occlusion(ImageMethod):
    """``drop_ij = f(I) - f(I with window ij painted)`` (Goyal et al. 2016, section 3.2; the idea is
    that of Zeiler and Fergus 2014, section 4.2).

    Arrays: ``drop`` of the chosen score and ``log_drop`` of the log-probability, both
    ``(row, y, x)`` over the windows; ``top_answer (question, y, x)``, the answer each painted
    image gets. The windows are a grid's cells, which cover each pixel once (a side that the grid
    does not divide has cells that differ by one pixel), or slide by a stride and may overlap.
    Sliding windows do not divide the image evenly, so there is also ``map (row, y, x)`` at the
    input's pixels, the mean drop of the windows that cover each, as in Captum.
    """

    score: Score = "probability"
    grid: PositiveInt | None = None
    """Cells along each side; 16 where no window is given."""
    window: Pixels | None = None
    """In place of a grid, the size in pixels of a window that slides."""
    stride: Pixels | None = None
    """Steps of the window down and right, in pixels; its size where none are given."""
    patch: patches.Patch = patches.GRAY
    """What is painted: a colour, RGB in 0..255 before normalisation; ``gray``, ImageNet's mean
    colour, as by default; ``mean``, the image's mean colour; ``blur``, the image blurred (Fong and
    Vedaldi 2017, section 4.1); ``noise``, uniform in each channel of each pixel."""
    sigma: float | None = Field(None, gt=0, le=0.25)
    """Standard deviation of the blur, in shorter sides of the input: 10/224 where none is given."""
    seed: int | None = Field(None, ge=0)
    """Of the noise, which differs from image to image; 0 where none is given."""
    approximate: Bounded | DrillDown | None = None
    """Faster and no longer exact; every map is labelled so in the index."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """The defaults that hang on other fields, so that they are stored with them."""
        if not isinstance(data, dict):
            return data
        window, patch = data.get("window"), data.get("patch")
        defaults: dict[str, Any] = {"grid": 16} if window is None else {"stride": window}
        if patch == "blur":
            defaults["sigma"] = patches.BLUR_SIGMA
        if patch == "noise":
            defaults["seed"] = 0
        return data | {name: value for name, value in defaults.items() if data.get(name) is None}

    @model_validator(mode="after")
    def _every_option_counts(self) -> "Occlusion":
        if self.window is not None and self.grid is not None:
            raise ValueError("grid and window exclude one another; keep one of them")
        drill = self.approximate
        if isinstance(drill, DrillDown) and (self.grid is None or self.grid % drill.coarse):
            raise ValueError(
                f"approximate.coarse is {drill.coarse}; drill-down needs a grid that it divides, "
                f"and the grid is {self.grid}"
            )
        for name, counts, needed in (
            ("stride", self.window is not None, "a window"),
            ("sigma", self.patch == "blur", "patch: blur"),
            ("seed", self.patch == "noise", "patch: noise"),
        ):
            if getattr(self, name) is not None and not counts:
                raise ValueError(f"{name} needs {needed}; add that or remove {name}")
        return self

    @property
    def primary(self) -> str:
        return "drop" if self.window is None else "map"

    def arrays(self, geometry: Geometry) -> tuple[ArraySpec, ...]:
        dims, sides = ("y", "x"), (geometry.input_height, geometry.input_width)
        shape = self._windows(*sides).shape
        over_windows = (
            ArraySpec(name="drop", dims=dims, shape=shape),
            ArraySpec(name="log_drop", dims=dims, shape=shape),
            ArraySpec(name="top_answer", dims=dims, shape=shape, dtype="int32", per_target=False),
        )
        if self.window is None:
            return over_windows
        return (*over_windows, ArraySpec(name="map", dims=dims, shape=sides, pixels=True))

    def passes(self, geometry: Geometry) -> int:
        return sum(len(request.windows) for request in self.sweeps(geometry))

    def sweeps(self, geometry: Geometry) -> tuple[Request, ...]:
        height, width = geometry.input_height, geometry.input_width
        windows = self._windows(height, width)
        if isinstance(self.approximate, DrillDown):
            return Request(grid_windows(height, width, self.approximate.coarse)), Request(windows)
        return (Request(windows, self.approximate.bound if self.approximate else None),)

    @property
    def approximation(self) -> str | None:
        return str(self.approximate) if self.approximate else None

    def exact(self) -> "Occlusion":
        return self.model_copy(update={"approximate": None})

    def explain(self, scene: Scene) -> Maps:
        windows = self._windows(*scene.canvas.shape[1:])
        if isinstance(self.approximate, DrillDown):
            arrays = self._drilled(scene, windows, self.approximate)
        else:
            bound = self.approximate.bound if self.approximate else None
            arrays = self._arrays(scene, self._swept(scene, windows, bound))
        arrays = {name: array.unflatten(1, windows.shape) for name, array in arrays.items()}
        if self.window is not None:
            arrays["map"] = spread(windows, arrays["drop"])
        return Maps.of(arrays)

    def _swept(self, scene: Scene, windows: Windows, bound: float | None = None) -> Sweep:
        key = ("occlusion", windows, self.patch, self.sigma, self.seed, bound)
        return scene.once(key, lambda: sweep(scene, windows, self._fill(scene.canvas), bound))

    def _arrays(self, scene: Scene, swept: Sweep) -> dict[str, Tensor]:
        """Each array flat, ``(row or question, window)``."""
        questions = enumerate(zip(swept.clean, swept.painted.unbind(1), strict=True))
        return {
            "drop": self._drops(scene, swept, self.score),
            "log_drop": self._drops(scene, swept, "log_probability"),
            "top_answer": torch.stack([scene.top_answers(q, *pair) for q, pair in questions]),
        }

    def _drilled(self, scene: Scene, windows: Windows, drill: DrillDown) -> dict[str, Tensor]:
        """Coarse cells first, then the cells inside those that matter most to any row. The others
        keep an equal share of their coarse cell's drop, and its answer."""
        _, height, width = scene.canvas.shape
        coarse_windows = grid_windows(height, width, drill.coarse)
        coarse = self._arrays(scene, self._swept(scene, coarse_windows))
        parents = drill.parents(windows.shape[0])
        chosen = drill.most_important(coarse["drop"])
        cells = [i for i, parent in enumerate(parents) if parent in chosen]
        fine = self._arrays(scene, sweep(scene, windows, self._fill(scene.canvas), only=cells))
        share = len(coarse_windows) / len(windows)
        arrays = {name: array[:, parents] for name, array in coarse.items()}
        for name, array in arrays.items():
            if name != "top_answer":
                array *= share
            array[:, cells] = fine[name]
        return arrays

    def _windows(self, height: int, width: int) -> Windows:
        if self.grid is not None:
            return grid_windows(height, width, self.grid)
        assert self.window is not None
        assert self.stride is not None
        return strided_windows(height, width, self.window, self.stride)

    def _fill(self, canvas: Tensor) -> Tensor:
        return patches.fill(canvas, self.patch, self.sigma, self.seed)

    @staticmethod
    def _drops(scene: Scene, swept: Sweep, score: Score) -> Tensor:
        """Drops ``(row, window)`` of the score."""
        return torch.stack(
            [
                score_drops(
                    swept.clean[row.question], swept.painted[:, row.question], row.answer, score
                )
                for row in scene.rows
            ]
        )
