"""Every study by name; one line each."""

from collections.abc import Callable

from pipeline.studies.base import Evidence, Study
from pipeline.studies.overview import overview

STUDIES: dict[str, Callable[[Evidence], Study]] = {
    "overview": overview,
}
