"""The one base of every schema: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable record whose fields are all declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
