"""Image files to arrays, upright and in 8-bit RGB, or a ``BadExample`` that says what is wrong."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from schemas.limits import Limits
from workers.errors import BadExample, Outage
from workers.objects import TooLargeError
from workers.place import SCHEME, BucketPath, Place, place

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's other readers are for other things than photographs, and some run programs."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise on damaged bytes."""


def decode(path: str | Path, limits: Limits) -> np.ndarray:
    """The upright image as uint8 RGB ``(y, x, 3)``; ``BadExample`` where there is none.

    EXIF orientation is applied, 16-bit grey scaled (not clipped), transparency composited on
    white, CMYK and palettes converted; colour profiles are not applied. Sizes are compared with
    the limits before a pixel is decoded. Several frames are refused, for no one of them is *the*
    image; an MPO photograph's first picture is. Of ``s3://bucket/key`` the object is fetched once;
    a bucket that does not answer is an ``Outage``, no fault of the example.
    """
    with _reading(path, limits) as image:
        return _rgb(path, ImageOps.exif_transpose(image))


class FileSizes:
    """Bytes of image files. A bucket's folder is listed when its first file is asked for, and no
    file of it is asked for by itself."""

    def __init__(self) -> None:
        self.folders: dict[str, Mapping[str, int | None]] = {}

    def of(self, path: str) -> int:
        """-1 where there is no such file."""
        if not path.startswith(SCHEME):
            return file_size(path)
        folder, _, name = path.rpartition("/")
        if folder not in self.folders:
            self.folders[folder] = BucketPath.parse(folder).sizes()
        size = self.folders[folder].get(name)
        return -1 if size is None else size


def file_size(path: str | Path) -> int:
    """Bytes of a file on disk; -1 where there is none."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a Path each would take as long again
    except OSError:
        return -1


def decode_map(path: str | Path) -> np.ndarray:
    """A human attention map: float32 ``(h, w)`` in 0..1, from 8 or 16-bit grey or from colour."""
    with _reading(path, Limits(min_side=1)) as image:
        if image.mode.startswith("I"):
            return (_grey16(path, image) / 65535).astype(np.float32)
        return np.asarray(image.convert("L"), dtype=np.float32) / 255


@contextmanager
def _reading(path: str | Path, limits: Limits) -> Iterator[Image.Image]:
    """The opened image, its header checked; whatever Pillow raises inside tells the file."""
    try:
        source = _source(path, limits)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are checked here; the rest concerns metadata
            with Image.open(source, formats=FORMATS) as image:
                _check_header(path, image, limits)
                yield image
    except Outage:
        raise
    except FileNotFoundError as error:
        raise BadExample(
            f"{path}: the image file is missing; download it or correct the images folder"
        ) from error
    except UnidentifiedImageError as error:
        raise BadExample(
            f"{path}: not an image in a known format ({', '.join(FORMATS)}); "
            "replace the file or convert it to one of them"
        ) from error
    except Image.DecompressionBombError as error:
        raise BadExample(_too_large(path, "more than 178956970", limits)) from error
    except BROKEN as error:
        if isinstance(error, OSError) and error.strerror:
            message = f"cannot be read ({error.strerror}); correct the path or its permissions"
        else:
            message = f"broken image ({error}); download it again"
        raise BadExample(f"{path}: {message}") from error


def _source(path: str | Path, limits: Limits) -> Path | io.BytesIO:
    """What Pillow opens: a file, or an object's bytes."""
    source, size = _sized(place(str(path)), limits.max_bytes)
    if size > limits.max_bytes:
        raise BadExample(
            f"{path}: the image file has {size:,} bytes, the limit is {limits.max_bytes:,}; scale "
            "the image down or raise limits.max_bytes"
        )
    if size == 0:
        raise BadExample(f"{path}: the image file is empty (0 bytes); download it again")
    return source


def _sized(where: Place, most: int) -> tuple[Path | io.BytesIO, int]:
    """A file or an object's bytes, and how many there are; of an object beyond ``most`` none."""
    if isinstance(where, Path):
        return where, where.stat().st_size
    try:
        data = where.read_bytes(most)
    except TooLargeError as error:
        return io.BytesIO(), error.args[0]
    return io.BytesIO(data), len(data)


def _check_header(path: str | Path, image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if min(image.size) < limits.min_side:
        raise BadExample(
            f"{path}: the image is {width} x {height} pixels, its shorter side must have at least "
            f"{limits.min_side}; replace it or lower limits.min_side"
        )
    if max(image.size) > limits.max_aspect * min(image.size):
        raise BadExample(
            f"{path}: the image is {width} x {height} pixels, its longer side may be at most "
            f"{limits.max_aspect:g} times the shorter; crop it or raise limits.max_aspect"
        )
    if width * height > limits.max_pixels:
        raise BadExample(_too_large(path, f"{width} x {height}", limits))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise BadExample(
            f"{path}: the image has {frames} frames, 1 is the limit; save the frame meant alone"
        )


def _too_large(path: str | Path, size: str, limits: Limits) -> str:
    return (
        f"{path}: the image has {size} pixels, the limit is {limits.max_pixels} in all; "
        "scale it down or raise limits.max_pixels"
    )


def _rgb(path: str | Path, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        grey = np.round(_grey16(path, image) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadExample(f"{path}: the pixels are 32-bit floats; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _grey16(path: str | Path, image: Image.Image) -> np.ndarray:
    """Integer grey as 0..65535; Pillow gives 16-bit PNG as ``I;16`` or, when older, as ``I``."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadExample(
            f"{path}: the pixels range from {values.min()} to {values.max()}, 0 to 65535 is the "
            "limit; save it with 8 or 16 bits"
        )
    return values
