"""Every study by name; one line each."""

from collections.abc import Callable

from pipeline.studies.base import Evidence, Study
from pipeline.studies.faithfulness import faithfulness
from pipeline.studies.sanity import sanity
from pipeline.studies.synthesis import synthesis

STUDIES: dict[str, Callable[[Evidence], Study]] = {
    "faithfulness": faithfulness,
    "sanity": sanity,
    "synthesis": synthesis,
}
