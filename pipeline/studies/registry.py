"""Every study by name; one line each."""

from collections.abc import Callable

from pipeline.studies.base import Evidence, Study
<<<<<<< HEAD
from pipeline.studies.tang_yuan.study import tang_yuan

STUDIES: dict[str, Callable[[Evidence], Study]] = {
    "tang_yuan": tang_yuan,
=======
from pipeline.studies.goyal2016.study import study as goyal2016

STUDIES: dict[str, Callable[[Evidence], Study]] = {
    "goyal2016": goyal2016,
>>>>>>> goyal
}
