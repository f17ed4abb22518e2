"""Which rectangle of the original image a model's input covers."""

from pydantic import Field

from schemas.base import Frozen


class Frame(Frozen):
    """The visible rectangle as fractions of the upright original image, and the input's size.

    A centre crop does not see the border: ``top=0.1`` says the first tenth of the rows is unseen.
    Human maps, whatever their resolution, are cut to the same fractions before comparison.
    """

    top: float = Field(0.0, ge=0, le=1)
    left: float = Field(0.0, ge=0, le=1)
    bottom: float = Field(1.0, ge=0, le=1)
    right: float = Field(1.0, ge=0, le=1)
    image_height: int
    image_width: int
    input_height: int
    input_width: int
