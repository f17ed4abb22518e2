"""Every study by name; one line each."""

from collections.abc import Callable

from pipeline.studies.base import Evidence, Study

STUDIES: dict[str, Callable[[Evidence], Study]] = {}
