"""What a curve takes away from an image and brings back: cells of a grid, or a model's regions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.checks.base import Explained
from workers.errors import BadExample
from workers.methods.base import Scene
from workers.methods.regions import cells
from workers.metrics.resampling import resize
from workers.models.base import present
from workers.sweep.batches import in_batches
from workers.sweep.plain import masked
from workers.sweep.windows import grid_windows


class Parts(ABC):
    """An image in ``count`` parts, numbered from 0, each there or not."""

    count: int

    @abstractmethod
    def values(self, explained: Explained) -> np.ndarray:
        """What a map says of each part, ``(count,)``, signed."""

    @abstractmethod
    def logits(self, there: np.ndarray, fill: Tensor) -> Tensor:
        """Of images with the parts ``there (n, count)`` alone, ``(n, question, answer)``."""


class Cells(Parts):
    """Cells of a grid, row by row. One that is not there shows ``fill (3, y, x)``; a map is brought
    to the grid."""

    def __init__(self, scene: Scene, grid: int) -> None:
        self.scene, self.grid, self.count = scene, grid, grid**2

    def values(self, explained: Explained) -> np.ndarray:
        return resize(explained.values, self.grid).ravel()

    def logits(self, there: np.ndarray, fill: Tensor) -> Tensor:
        return masked(self.scene, CellMasks.of(there, self.grid, self.scene.canvas), fill)


class Regions(Parts):
    """A model's regions, those alone that an image has. One that is not there has features of zero,
    as in ``region_occlusion`` with ``how: zero``: nothing is painted, and of no regions at all the
    models have nothing to say. A map counts by its values of regions; one that has none (a
    baseline's) by its mean in each box on a grid."""

    def __init__(self, scene: Scene, grid: int) -> None:
        self.scene, self.grid = scene, grid
        self.numbers = present(scene.seen[0]).nonzero()[:, 0]
        self.count = len(self.numbers)
        if not self.count:
            raise BadExample("the image has no regions: there is nothing to delete or to insert")

    def values(self, explained: Explained) -> np.ndarray:
        numbers = self.numbers.cpu().numpy()
        if explained.regions is not None:
            return explained.regions[numbers]
        boxes = self.scene.seen[0, self.numbers, :4].float().cpu()
        inside = cells(boxes, self.grid).flatten(1).numpy()
        return inside @ resize(explained.values, self.grid).ravel() / inside.sum(1)

    def logits(self, there: np.ndarray, fill: Tensor) -> Tensor:
        seen = self.scene.seen
        kept = seen.new_zeros(len(there), seen.shape[1], 1)
        kept[:, self.numbers, 0] = torch.from_numpy(there).to(kept)

        def answers(batch: slice) -> Tensor:
            features = seen[..., 4:] * kept[batch]
            boxes = seen[..., :4].expand(len(features), -1, -1)
            changed = torch.cat([boxes, features], -1)
            return self.scene.model.answers_to_all(changed, self.scene.questions)

        with torch.no_grad():
            return in_batches(self.scene, len(there), answers)


@dataclass(frozen=True)
class CellMasks:
    """Masks ``(n, y, x)`` of zeros and ones, made from ``cells (n, cell)`` when a slice is asked
    for."""

    cells: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, cells: np.ndarray, grid: int, canvas: Tensor) -> "CellMasks":
        _, height, width = canvas.shape
        windows = grid_windows(height, width, grid)
        rows, columns = (
            torch.tensor([i for i, (a, b) in enumerate(side) for _ in range(a, b)])
            for side in (windows.rows, windows.columns)
        )
        return cls(torch.from_numpy(cells).unflatten(1, (grid, grid)), rows, columns)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, batch: slice) -> Tensor:
        return self.cells[batch][:, self.rows][:, :, self.columns]
