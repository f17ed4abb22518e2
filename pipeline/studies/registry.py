"""Every study by name; one line each."""

from collections.abc import Callable

from pipeline.studies.base import Evidence, Study
from pipeline.studies.tang_yuan.study import tang_yuan

STUDIES: dict[str, Callable[[Evidence], Study]] = {
    "tang_yuan": tang_yuan,
}
