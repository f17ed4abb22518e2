"""From a photo to what an image processor of Hugging Face makes of it, with a canvas in between.

Occlusion paints the canvas, in pixels and before normalisation, and what follows is the
processor's own. Two cases, told apart by asking the processor:

* its output is one image: the canvas is that image after its resizing and cropping, in 0..255,
  and only its scaling and normalisation are left;
* its output is tiles or patches, or the photo between bars: the canvas is the photo itself, scaled
  down to a longest side, and the whole processor works on each painted canvas.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schemas.frame import Frame
from workers.errors import UserError
from workers.models.base import Geometry
from workers.models.preprocessing import Crop, centre_crop

TYPICAL = (480, 640)
"""Height and width of a photo, for the sizes that a plan needs."""
RESIZED = 10
"""Of 255: how far a photo resized in two ways differs at most on average. Processors that resize
are within 0.1 of ours on a smooth photo, those that pad, cut or shuffle it are 30 away."""


class Pixels:
    """One image processor's way with images.

    ``size`` squashes every photo to a square first, so that all inputs are alike; ``longest`` is
    the canvas' longer side where the processor makes tiles or patches.
    """

    def __init__(self, processor: Any, size: int | None, longest: int) -> None:
        self.processor, self.size, self.longest = processor, size, longest
        self.whole = True
        """Whether the processor's output is one image, which shows the photo as the frame says."""
        shapes = [self._shape(*sides) for sides in (TYPICAL, TYPICAL[::-1])]
        self.whole = None not in shapes
        self.varies = size is None and (not self.whole or shapes[0] != shapes[1])

    def _shape(self, height: int, width: int) -> tuple[int, ...] | None:
        """Of the processor's output where that is one image of a smooth photo."""
        given = self._scaled(_ramps(height, width))
        found = self._resized(given)
        if found.ndim != 3 or len(found) != 3:
            return None
        try:
            frame = self._frame(found, given)
        except UserError:  # of larger photos there may be enough to crop
            return tuple(found.shape)
        (tall, wide), (_, high, broad) = given.shape[:2], found.shape
        box = (frame.left * wide, frame.top * tall, frame.right * wide, frame.bottom * tall)
        wanted = Image.fromarray(given).resize((broad, high), Image.Resampling.BILINEAR, box)
        difference = found.permute(1, 2, 0).float() - torch.from_numpy(np.array(wanted)).float()
        return tuple(found.shape) if difference.abs().mean() < RESIZED else None

    def _resized(self, image: np.ndarray, cropped: bool = True) -> Tensor:
        """The processor's output in 0..255: one image ``(3, y, x)``, or something else."""
        steps = {"do_rescale": False, "do_normalize": False}
        if not cropped:
            steps["do_center_crop"] = False
        made = self.processor(image, **steps, return_tensors="pt")
        values = made["pixel_values"]
        return values[0] if values.ndim == 4 and values.shape[:2] == (1, 3) else values

    @property
    def geometry(self) -> Geometry:
        """Of a photo of ``TYPICAL`` size."""
        canvas, _ = self.prepare(np.zeros((*TYPICAL, 3), np.uint8))
        return Geometry(
            input_height=canvas.shape[1], input_width=canvas.shape[2], varies=self.varies
        )

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """Upright uint8 RGB ``(y, x, 3)`` -> canvas ``(3, y, x)`` and its frame."""
        height, width = image.shape[:2]
        given = self._scaled(image)
        if self.whole:
            canvas = self._resized(given).float()
        else:
            canvas = torch.from_numpy(given.copy()).permute(2, 0, 1).float()
        return canvas, self._frame(canvas, given).model_copy(
            update={"image_height": height, "image_width": width}
        )

    def _scaled(self, image: np.ndarray) -> np.ndarray:
        """The photo as the processor gets it."""
        height, width = image.shape[:2]
        if self.size is not None:
            height, width = self.size, self.size
        elif not self.whole and max(height, width) > self.longest:
            scale = self.longest / max(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        if (height, width) == image.shape[:2]:
            return image
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        return np.array(resized)

    def _frame(self, canvas: Tensor, given: np.ndarray) -> Frame:
        """The part of the photo that the canvas shows: all of it but for a centre crop."""
        (height, width), (tall, wide) = given.shape[:2], canvas.shape[1:]
        if self.whole and getattr(self.processor, "do_center_crop", False):
            return self._crop(given, tall, wide).frame(height, width)
        return Frame(image_height=height, image_width=width, input_height=tall, input_width=wide)

    def _crop(self, given: np.ndarray, height: int, width: int) -> Crop:
        """Where the processor's centre crop lies in what it makes of the photo without one."""
        tall, wide = self._resized(given, cropped=False).shape[1:]
        if tall < height or wide < width:
            raise UserError(
                f"the image processor crops {height} x {width} pixels out of {tall} x {wide} and "
                "pads the rest: give the model an image_size, or a processor that resizes first"
            )
        return centre_crop(height, width, tall, wide)

    def values(self, canvases: Tensor) -> dict[str, Tensor]:
        """Canvases ``(n, 3, y, x)`` -> all that the processor tells a model of its images."""
        if self.whole:
            return {"pixel_values": self._normalised(canvases)}
        return dict(self.processor(self.listed(canvases), return_tensors="pt"))

    def listed(self, canvases: Tensor) -> list[list[Tensor]]:
        """One image a prompt, as processors of several images want it; in 8 bits, which is what
        their resizing rounds to, unless a gradient is to pass through."""
        if not self.whole and not canvases.requires_grad:
            canvases = canvases.round().clamp(0, 255).to(torch.uint8)
        return [[canvas] for canvas in canvases]

    def _normalised(self, canvases: Tensor) -> Tensor:
        p = self.processor
        pixels = canvases * p.rescale_factor if p.do_rescale else canvases
        if not p.do_normalize:
            return pixels
        mean, std = (canvases.new_tensor(v)[:, None, None] for v in (p.image_mean, p.image_std))
        return (pixels - mean) / std


def _ramps(height: int, width: int) -> np.ndarray:
    """A photo whose red grows downwards and whose green to the right."""
    y, x = np.mgrid[:height, :width]
    colours = [255 * (y + 0.5) / height, 255 * (x + 0.5) / width, np.full((height, width), 255.0)]
    return np.stack(colours, -1).round().astype(np.uint8)


def check_processor(processor: Any, path: str) -> None:
    """Refuse one whose pixels are not a photo's."""
    if not hasattr(processor, "image_mean"):
        raise UserError(
            f"{path}: its image processor {type(processor).__name__} has no image_mean, so it is "
            "not known how it scales pixels; give a checkpoint with preprocessor_config.json"
        )
