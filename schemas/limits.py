"""How large an image and how long a question may be before an example is refused."""

from pydantic import Field

from schemas.base import Frozen


class Limits(Frozen):
    """Bounds of one example, checked before anything is computed from it.

    An example outside them is recorded as failed; its neighbours are unaffected.
    """

    min_side: int = Field(default=8, ge=1)
    """Pixels the shorter side must have."""
    max_aspect: float = Field(default=32.0, ge=1)
    """Longer side over shorter; resizing the shorter side scales the longer too."""
    max_pixels: int = Field(default=64_000_000, ge=1, le=178_956_970)
    """Pixels in all, by the header, before decoding. Pillow opens none above the bound."""
    max_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of the image's file or object, before it is read."""
    max_words: int = Field(default=128, ge=1)
    """Words a question may have."""
