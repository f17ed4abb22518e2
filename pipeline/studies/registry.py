"""Every study by name; one line each, in the order of the report."""

from collections.abc import Callable

from pipeline.studies.base import Evidence, Study
from pipeline.studies.faithfulness import faithfulness
from pipeline.studies.goyal2016.study import study as goyal2016
from pipeline.studies.overview import overview
from pipeline.studies.question_grad_cam.study import question_grad_cam
from pipeline.studies.sanity import sanity
from pipeline.studies.synthesis import synthesis
from pipeline.studies.tang_yuan.study import tang_yuan

STUDIES: dict[str, Callable[[Evidence], Study]] = {
    "overview": overview,
    "synthesis": synthesis,
    "goyal2016": goyal2016,
    "tang_yuan": tang_yuan,
    "faithfulness": faithfulness,
    "sanity": sanity,
    "question_grad_cam": question_grad_cam,
}
