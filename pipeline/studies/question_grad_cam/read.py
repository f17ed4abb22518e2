"""What the study reads of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from PIL import Image

from pipeline.report.sheet import seen
from pipeline.studies.base import Evidence
from pipeline.studies.question_grad_cam.localisation import Maps
from pipeline.studies.question_grad_cam.masses import UNIFORM, maps_of, uniform
from pipeline.studies.question_grad_cam.pairs import Pairs
from pipeline.studies.question_grad_cam.ranks import Vectors
from pipeline.studies.question_grad_cam.settings import NAMES, Setting, settings
from schemas.rows import ExampleRow
from workers.evaluate import frame_of


@dataclass(frozen=True)
class Read:
    """The maps and vectors of the pairs' questions; each is read once."""

    evidence: Evidence
    pairs: Pairs

    @cached_property
    def examples(self) -> pd.DataFrame:
        """The pairs' questions, by ``question_id``."""
        examples = self.evidence.examples
        own = examples["question_id"].isin(self.pairs.sides["question_id"])
        return examples[own].set_index("question_id", drop=False)

    @cached_property
    def settings(self) -> list[Setting]:
        """The run's, and the map that is the same everywhere."""
        return [*settings(self.evidence.run), Setting(UNIFORM, UNIFORM, float("nan"))]

    @cached_property
    def maps(self) -> list[Maps]:
        """Of each setting the maps of the answer; the answers are right."""
        return [
            uniform(self.pairs) if s.label == UNIFORM else self._stored(s.label)
            for s in self.settings
        ]

    @cached_property
    def vectors(self) -> dict[str, Vectors]:
        """Sensitivity -> question -> its vector, where a label has stored them."""
        return {name: self._stored(label, "sensitivity") for name, label in self._storing.items()}

    @cached_property
    def places(self) -> Mapping[int, int]:
        """Question -> position of the word to which the layer is most sensitive."""
        label = self._storing.get(NAMES["word"])
        stored = self._stored(label, "word") if label else {}
        return {question: int(value[0]) for question, value in stored.items()}

    @property
    def _storing(self) -> dict[str, str]:
        """Sensitivity -> the first label that keeps its vectors."""
        found: dict[str, str] = {}
        for s in self.settings[:-1]:
            arrays = self.evidence.run.definitions[s.label].arrays
            if any(array.name == "sensitivity" for array in arrays):
                found.setdefault(s.variant.removesuffix(", not shared"), s.label)
        return found

    def _stored(self, label: str, array: str | None = None) -> dict[int, np.ndarray]:
        run = self.evidence.run
        target = "predicted" if "predicted" in run.record.targets else run.record.targets[0]
        return maps_of(run, label, self.examples.index.tolist(), target, array)

    def picture(self, question: int) -> tuple[np.ndarray, np.ndarray]:
        """What the model saw, uint8 RGB, and the object's mask at the same size; ``BadExample``
        where the image cannot be read."""
        own = ds.field("question_id") == question
        (row,) = self.evidence.run.table("examples").to_table(filter=own).to_pylist()
        example = ExampleRow(**row)
        image = seen(example.image, frame_of(example), self.evidence.config.limits)
        mask = Image.fromarray(self.pairs.masks[question])
        height, width = image.shape[:2]
        return image, np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))
