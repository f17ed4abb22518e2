"""Decoding: what an image file becomes, and the exact words for each one that is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from schemas.limits import Limits
from workers.errors import BadExample
from workers.images import decode, decode_map

LIMITS = Limits()
FORMATS = "JPEG, PNG, WEBP, BMP, TIFF, GIF"


def colours(height: int = 12, width: int = 20) -> np.ndarray:
    """Random RGB ``(y, x, 3)`` without any symmetry."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def refusal(path: Path, limits: Limits = LIMITS) -> str:
    with pytest.raises(BadExample) as caught:
        decode(path, limits)
    return str(caught.value)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_decode_rgb_png_is_exact_and_writable(tmp_path: Path) -> None:
    expected = colours()
    decoded = decode(saved(tmp_path / "a.png", Image.fromarray(expected)), LIMITS)
    assert_array_equal(decoded, expected)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable


STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, -1),
}
"""How the pixels of an upright image lie in a file, by EXIF orientation."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_decode_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = colours()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    assert_array_equal(decode(saved(tmp_path / f"a.{suffix}", image, exif=exif), LIMITS), upright)


def test_decode_exif_rotated_jpeg_swaps_its_sides(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", Image.fromarray(colours()), exif=exif)
    assert decode(path, LIMITS).shape == (20, 12, 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_decode_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    decoded = decode(saved(tmp_path / f"a.{suffix}", Image.fromarray(grey)), LIMITS)
    assert_array_equal(decoded, np.round(grey[:, :, None] / 257).repeat(3, axis=2))


def test_decode_16_bit_grey_in_32_bit_container_is_scaled(tmp_path: Path) -> None:
    grey = np.full((12, 20), 257 * 100, np.int32)
    assert (decode(saved(tmp_path / "a.tiff", Image.fromarray(grey)), LIMITS) == 100).all()


def test_decode_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (20, 12), (255, 0, 0, 0))
    decoded = decode(saved(tmp_path / "a.jpg", cyan, quality=95), LIMITS)
    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 70, (70, 70, 70)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (0, 51), (204, 204, 204)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 255, 0, 51), (204, 255, 204)),
    ],
)
def test_decode_grey_and_alpha_are_composited_on_white(
    tmp_path: Path, mode: str, pixel: object, expected: tuple[int, ...]
) -> None:
    path = saved(tmp_path / "a.png", Image.new(mode, (20, 12), pixel))  # type: ignore[arg-type]
    assert_array_equal(decode(path, LIMITS), np.broadcast_to(expected, (12, 20, 3)))


@pytest.mark.parametrize(
    ("options", "first"), [({}, (200, 10, 10)), ({"transparency": 0}, (255, 255, 255))]
)
def test_decode_palette_gives_its_colours_or_white(
    tmp_path: Path, options: dict[str, object], first: tuple[int, ...]
) -> None:
    image = Image.new("P", (20, 12), 0)
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.paste(1, (10, 0, 20, 12))
    decoded = decode(saved(tmp_path / "a.png", image, **options), LIMITS)
    assert tuple(decoded[0, 0]) == first
    assert tuple(decoded[0, 19]) == (10, 200, 10)


def test_decode_several_pictures_in_one_photograph_takes_the_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (20, 12), "red"), Image.new("RGB", (20, 12), "blue")
    path = saved(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert decode(path, LIMITS)[0, 0, 0] > 250


def test_decode_real_photo_has_its_size_and_channels(shared_data: Path) -> None:
    photos = sorted((shared_data / "vqav2-mini").rglob("*.jpg"))
    assert [decode(path, LIMITS).shape for path in photos] == [
        (480, 640, 3),
        (512, 640, 3),
        (428, 640, 3),
    ]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_decode_animated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.roll(colours(), shift, axis=1)) for shift in range(3)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert refusal(path) == (
        f"{path}: the image has 3 frames, 1 is the limit; save the frame meant alone"
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_decode_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(colours(200, 200)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    reason = refusal(path)
    assert reason.startswith(f"{path}: broken image (image file is truncated")
    assert reason.endswith("); download it again")


def test_decode_damaged_png_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(colours(200, 200)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: broken image (")


def test_decode_zero_byte_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.touch()
    assert refusal(path) == f"{path}: the image file is empty (0 bytes); download it again"


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"\x89PNG\r\n", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_decode_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert refusal(path) == (
        f"{path}: not an image in a known format ({FORMATS}); "
        "replace the file or convert it to one of them"
    )


def test_decode_missing_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    assert refusal(path) == (
        f"{path}: the image file is missing; download it or correct the images folder"
    )


def test_decode_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path}: cannot be read (Is a directory); correct the path or its permissions"
    )


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (7, 100)])
def test_decode_too_small_side_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", size))
    assert refusal(path) == (
        f"{path}: the image is {size[0]} x {size[1]} pixels, "
        "its shorter side must have at least 8; replace it or lower limits.min_side"
    )


def test_decode_too_long_side_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (257, 8)))
    assert refusal(path) == (
        f"{path}: the image is 257 x 8 pixels, "
        "its longer side may be at most 32 times the shorter; crop it or raise limits.max_aspect"
    )
    assert decode(saved(path, Image.new("RGB", (256, 8))), LIMITS).shape == (8, 256, 3)


def test_decode_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (101, 100)))
    assert refusal(path, Limits(max_pixels=10_000)) == (
        f"{path}: the image has 101 x 100 pixels, the limit is 10000 in all; "
        "scale it down or raise limits.max_pixels"
    )


def test_decode_too_many_bytes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.bmp", Image.new("RGB", (20, 20)))
    assert refusal(path, Limits(max_bytes=1000)) == (
        f"{path}: the image file has 1,254 bytes, the limit is 1,000; "
        "scale the image down or raise limits.max_bytes"
    )
    assert decode(path, Limits(max_bytes=1254)).shape == (20, 20, 3)


def header_only_bmp(path: Path, width: int, height: int) -> Path:
    """A file that claims a size and has no pixels: decoding it would fail differently."""
    small = saved(path, Image.new("RGB", (8, 8))).read_bytes()
    path.write_bytes(
        small[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + small[26:54]
    )
    return path


@pytest.mark.parametrize(
    ("side", "told"), [(10_000, "10000 x 10000"), (20_000, "more than 178956970")]
)
def test_decode_decompression_bomb_is_refused_by_its_header(
    tmp_path: Path, side: int, told: str
) -> None:
    path = header_only_bmp(tmp_path / "a.bmp", side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = refusal(path)
    assert reason == (
        f"{path}: the image has {told} pixels, the limit is 64000000 in all; "
        "scale it down or raise limits.max_pixels"
    )


def test_decode_float_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.new("F", (20, 12), 0.5))
    assert refusal(path) == f"{path}: the pixels are 32-bit floats; save it with 8 or 16 bits"


def test_decode_integer_pixels_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", Image.new("I", (20, 12), 70_000))
    assert refusal(path) == (
        f"{path}: the pixels range from 70000 to 70000, 0 to 65535 is the limit; "
        "save it with 8 or 16 bits"
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_decode_map_any_mode_gives_grey_in_0_to_1(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.array([[0, 51], [255, 102]], np.uint8)).convert(mode)
    decoded = decode_map(saved(tmp_path / "a.png", image))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [[0, 0.2], [1, 0.4]], atol=1e-6)


def test_decode_map_16_bit_gives_0_to_1(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 65535], [13107, 0]], np.uint16))
    decoded = decode_map(saved(tmp_path / "a.png", image))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [[0, 1], [0.2, 0]], atol=1e-6)
