"""Human attention maps of a run's examples, from the dataset's own files."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from pipeline.studies.base import Evidence
from schemas.example import Example
from schemas.rows import ExampleRow
from workers import catalog
from workers.datasets.base import Dataset
from workers.errors import BadExample, Outage, UserError
from workers.evaluate import frame_of
from workers.metrics.frame import cut


class Humans:
    """Reads them cut to what the model saw; the files may be elsewhere by the time of a report."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.examples: dict[int, Example] = {}
        self.why = ""
        """What is not there, and why."""

    @cached_property
    def dataset(self) -> Dataset:
        return catalog.dataset(self.evidence.config.dataset)

    def find(self, chosen: Sequence[int]) -> None:
        """Look the examples up in the dataset."""
        wanted = set(chosen) - self.examples.keys()
        if not wanted or self.why:
            return
        try:
            found = (e for e in self.dataset.examples() if e.question_id in wanted)
            self.examples |= {e.question_id: e for e in found}
        except (UserError, OSError) as error:
            self.why = f"Human maps are not shown, as the dataset cannot be read: {error}"

    def of(self, row: ExampleRow) -> list[tuple[str, np.ndarray]]:
        """``mean of k`` over annotators, then each one's own; one alone is just itself."""
        example = self.examples.get(row.question_id)
        if example is None:
            return []
        try:
            maps = [cut(m, frame_of(row)) for m in self.dataset.human_maps(example)]
        except Outage as error:
            self.why = f"Human maps are not shown: {error}"
            self.examples.clear()  # each further one would wait for the bucket as long
            return []
        except (BadExample, OSError) as error:
            self.why = f"Some human maps cannot be shown, for instance: {error}"
            return []
        own = [(f"annotator {number}", m) for number, m in enumerate(maps, 1)]
        alike = [m for m in maps if m.shape == maps[0].shape]
        if len(alike) < 2:
            return own
        return [(f"mean of {len(alike)}", np.mean(alike, axis=0)), *own]
