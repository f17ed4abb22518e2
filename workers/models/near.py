"""A language model asked about an image that is painted over in parts: what the paint does not
reach is not read again.

A causal token holds nothing of what comes after it. So of the image's own pass the cache of keys
and values is right up to the first token that the paint changes, and whether it changes one is read
off the vision tower's input: a tile that is equal, bit by bit, to the clean one has its tokens.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workers.models.base import Near, Tokens

if TYPE_CHECKING:
    from workers.models.generative import Generative

GROWING = {"DynamicLayer", "DynamicSlidingWindowLayer"}
"""Layers of a cache that leave their tensors as they are when they grow."""
FEW = 8
"""Windows that a group has at least, but for the last one."""
REACH = 3
"""Pixels that a resizing (Lanczos) looks beside a point, in the coarser image of the two."""


@dataclass(frozen=True)
class Clean:
    """The image's own pass, as far as its questions' prompts are the same."""

    values: dict[str, Tensor]
    """What the image processor makes of the canvas."""
    prompts: list[Tensor]
    """Each question's tokens ``(token,)``."""
    embeddings: Tensor
    """Of what they begin with, ``(1, token, channel)``, the image's tokens in their places."""
    positions: Tensor | None
    """Their positions ``(..., 1, token)``, where the net does not just count."""
    image: Tensor
    """The places of the image's tokens, ``(token,)``."""
    cache: Any

    @property
    def length(self) -> int:
        return self.embeddings.shape[1]

    @property
    def tiles(self) -> int:
        """Parts of the image that go through the vision tower by themselves, each with equally
        many tokens, one part after another."""
        pixels = self.values["pixel_values"]
        return pixels.shape[1] if pixels.ndim == 5 else 1


class NearPrompt(Near):
    """Questions whose prompts begin with the same text and image, for a causal model."""

    def __init__(self, model: "Generative", canvas: Tensor, questions: Sequence[Tokens]) -> None:
        super().__init__(model, questions)
        self.generative, self.canvas = model, canvas

    @cached_property
    def clean(self) -> Clean | None:
        """None where the questions' prompts differ before the image ends."""
        return self.generative.read_clean(self.canvas, [" ".join(q) for q in self.questions])

    def groups(self, windows: Sequence[tuple[int, int, int, int]]) -> list[list[int]]:
        """By the first tile that a window reaches, as a batch is read on from the first change in
        any of its canvases; of a few windows together with the next tile's."""
        grid = self._grid()
        if grid is None:
            return super().groups(windows)
        tiles = [(grid[0].tile(top), grid[1].tile(left)) for top, _, left, _ in windows]
        found: list[list[int]] = [[]]
        for tile in sorted(set(tiles)):
            if len(found[-1]) >= FEW:
                found.append([])
            found[-1] += [number for number, own in enumerate(tiles) if own == tile]
        return found

    def _grid(self) -> "tuple[Side, Side] | None":
        if self.clean is None or self.clean.tiles == 1:
            return None
        pixels, (height, width) = self.clean.values["pixel_values"], self.canvas.shape[1:]
        rows, columns = self.generative.tile_grid(height, width)
        if rows * columns + 1 != self.clean.tiles:
            return None
        return Side(height, rows, pixels.shape[-2]), Side(width, columns, pixels.shape[-1])

    def __call__(self, canvases: Tensor) -> Tensor:
        if self.clean is None:
            return super().__call__(canvases)
        model, values = self.generative, self.generative.seen(canvases)
        changed = self._changed(values, len(canvases))
        start = self._first(changed)
        cache = self._begun(start, len(canvases))
        embeddings = self._embeddings(values, changed)[:, start:]
        model.read_on(cache, self._positions(start, self.clean.length), inputs_embeds=embeddings)
        scores = [self._answers(branched(cache), p, len(canvases)) for p in self.clean.prompts]
        return model.with_rest(torch.stack(scores, 1))

    def inputs(self, canvas: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings and positions that one painted canvas ``(1, 3, y, x)`` is read by."""
        assert self.clean is not None
        values = self.generative.seen(canvas)
        embeddings = self._embeddings(values, self._changed(values, 1))
        return embeddings, self._positions(0, self.clean.length)

    def _changed(self, values: dict[str, Tensor], count: int) -> Tensor:
        """Which tiles are not the clean ones, ``(n, tile)``."""
        assert self.clean is not None
        own, pixels = values["pixel_values"], self.clean.values["pixel_values"]
        if self.clean.tiles == 1:
            return torch.ones(count, 1, dtype=torch.bool, device=own.device)
        return (own != pixels).flatten(2).any(-1)

    def _first(self, changed: Tensor) -> int:
        """The first token that is not the clean one in all canvases; one is left to be read."""
        assert self.clean is not None
        firsts = self.clean.image.unflatten(0, (self.clean.tiles, -1))[:, 0]
        places = firsts[changed.any(0)].tolist()
        return min([*places, self.clean.length - 1])

    def _embeddings(self, values: dict[str, Tensor], changed: Tensor) -> Tensor:
        """``(n, token, channel)``: the clean ones, and those of the tiles that changed."""
        assert self.clean is not None
        whole = self.clean.embeddings.repeat(len(changed), 1, 1)
        if changed.any():
            tokens = self.clean.image.unflatten(0, (self.clean.tiles, -1))
            features = self.generative.features(_only(values, changed, self.clean.tiles))
            rows, tiles = changed.nonzero().unbind(1)
            own = features.to(whole).unflatten(0, (len(rows), -1))
            whole[rows[:, None], tokens[tiles]] = own
        return whole

    def _begun(self, start: int, count: int) -> Any:
        """A cache of the first tokens for every canvas. One that forgets (sliding windows) cannot
        be cut: it is made again."""
        assert self.clean is not None
        cache = branched(self.clean.cache)
        kept = all(layer.is_croppable and not layer.is_sliding for layer in cache.layers)
        if start and kept:
            cache.crop(start - self.clean.length)
        else:
            cache = self.generative.new_cache()
            positions = self._positions(0, start)
            if start:
                embeddings = self.clean.embeddings[:, :start]
                self.generative.read_on(cache, positions, inputs_embeds=embeddings)
        if start:
            cache.batch_repeat_interleave(count)
        return cache

    def _positions(self, start: int, end: int) -> Tensor | None:
        """Of tokens of the prompt, those of text behind what the clean pass has read included;
        the text goes on behind the largest, as in Qwen2-VL's M-RoPE."""
        assert self.clean is not None
        known, length = self.clean.positions, self.clean.length
        if known is None:
            return None
        behind = known.max() + 1 + torch.arange(max(0, end - length), device=known.device)
        more = behind.expand(*known.shape[:-1], -1)
        return torch.cat([known, more], -1)[..., start:end]

    def _answers(self, cache: Any, prompt: Tensor, count: int) -> Tensor:
        """Candidates after one question, ``(n, candidate)``."""
        assert self.clean is not None
        model, length = self.generative, self.clean.length
        rest = prompt[None, length:].expand(count, -1)
        first = model.read_on(cache, self._positions(length, len(prompt)), input_ids=rest)
        end = len(prompt) + model.ids.shape[1] - 1
        return model.choose(cache, first, model.ids, {}, self._positions(len(prompt), end))


@dataclass(frozen=True)
class Side:
    """How one side of a canvas is cut: its pixels, the tiles along it, a tile's pixels."""

    pixels: int
    tiles: int
    size: int

    def tile(self, start: int) -> int:
        """The first tile that a window from here on reaches, resizing included."""
        margin = ceil(REACH * max(1.0, self.pixels / (self.tiles * self.size)))
        return floor(max(0, start - margin) * self.tiles / self.pixels)


def branched(cache: Any) -> Any:
    """The same cache, to be read on from here, while the first stays as it is."""
    assert {type(layer).__name__ for layer in cache.layers} <= GROWING
    other = copy(cache)
    other.layers = [copy(layer) for layer in cache.layers]
    return other


def _only(values: dict[str, Tensor], changed: Tensor, tiles: int) -> dict[str, Tensor]:
    """What the vision tower is given of those tiles alone, each as an image of its own."""
    if tiles == 1:
        return values
    own = {name: value for name, value in values.items() if value.shape[:2] == changed.shape}
    return {name: value[changed][:, None] for name, value in own.items()}
