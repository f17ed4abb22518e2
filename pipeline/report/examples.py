"""Examples of a run with everything known about them, read shard by shard."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from pipeline.dataset import Run
from schemas.rows import ExampleRow

MAP_COLUMNS = [
    *("question_id", "method", "target", "array", "ordinal", "target_index"),
    *("status", "reason", "minimum", "maximum", "scale", "shard"),
]
WORD_COLUMNS = ["question_id", "method", "target", "importances", "status", "reason"]
Record = Mapping[Hashable, Any]


@dataclass(frozen=True)
class Seen:
    """One example."""

    row: ExampleRow
    maps: Sequence[tuple[Record, np.ndarray | None]]
    """Rows of ``maps`` with their values ``(y, x)``; None where the map failed."""
    words: Sequence[Record]


class Examples:
    """The chosen examples of a run."""

    def __init__(self, run: Run, chosen: Sequence[int]) -> None:
        own = ds.field("question_id").isin(chosen)
        self.group = run.store.arrays()
        self.arrays: dict[str, Any] = {}
        self.maps = run.columns("maps", MAP_COLUMNS, own)
        self.words = run.columns("words", WORD_COLUMNS, own)
        records = run.table("examples").to_table(filter=own).to_pylist()
        by_question = {record["question_id"]: ExampleRow(**record) for record in records}
        self.rows = [by_question[question] for question in chosen]

    def __iter__(self) -> Iterator[Seen]:
        """In the order chosen, but whole shards at a time."""
        words = _by_question(self.words)
        shards: dict[int, list[ExampleRow]] = defaultdict(list)
        for row in self.rows:
            shards[row.shard].append(row)
        for shard, members in shards.items():
            maps = self._maps(self.maps[self.maps["shard"] == shard].reset_index(drop=True))
            for row in members:
                yield Seen(row, maps.get(row.question_id, []), words.get(row.question_id, []))

    def _maps(self, rows: pd.DataFrame) -> dict[int, list[tuple[Record, np.ndarray | None]]]:
        values = self._values(rows)
        found = defaultdict(list)
        for place, record in enumerate(rows.to_dict("records")):
            found[record["question_id"]].append((record, values.get(place)))
        return found

    def _values(self, rows: pd.DataFrame) -> dict[int, np.ndarray]:
        """Place -> the map a row of one shard points at; each array is read once."""
        values: dict[int, np.ndarray] = {}
        for path, own in rows[rows["status"] != "failed"].groupby("array", observed=True):
            stored = self._array(str(path))
            per_target = "target" in (stored.metadata.dimension_names or ())
            ordinals, places = np.unique(own["ordinal"], return_inverse=True)
            block = np.asarray(stored.oindex[ordinals])
            ours = zip(own.index, places, own["target_index"], own["scale"], strict=True)
            for index, place, target, scale in ours:
                one = block[place, target] if per_target else block[place]
                values[index] = one.astype(np.float32) * np.float32(scale)
        return values

    def _array(self, path: str) -> Any:
        if path not in self.arrays:
            self.arrays[path] = self.group[path]
        return self.arrays[path]


def _by_question(rows: pd.DataFrame) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in rows.to_dict("records"):
        found[record["question_id"]].append(record)
    return found
