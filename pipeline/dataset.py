"""The reader: open a finished or running run, query it with pandas, fetch its maps."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import zarr

from schemas.run import Definition, RunRecord
from workers.errors import UserError
from workers.store import Store

Root = Path | str
"""A run's folder, or its ``s3://`` URL."""


class Run:
    """A run's tables as pandas frames and its maps as arrays; committed rows only."""

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.store = Store(root)
        self.record: RunRecord = self.store.record()

    def table(self, name: str) -> ds.Dataset:
        """A table as a pyarrow dataset, for filters and columns that need not all be read."""
        return self.store.dataset(name)

    @cached_property
    def examples(self) -> pd.DataFrame:
        return self._frame("examples")

    @cached_property
    def maps(self) -> pd.DataFrame:
        return self._frame("maps")

    @cached_property
    def words(self) -> pd.DataFrame:
        return self._frame("words")

    @cached_property
    def metrics(self) -> pd.DataFrame:
        return self._frame("metrics")

    @cached_property
    def failures(self) -> pd.DataFrame:
        return self._frame("failures")

    @property
    def explained(self) -> pd.DataFrame:
        """The examples that have a target: where only the labelled answer is explained, those whose
        answer is another one that the model knows, and those that failed."""
        rows = self.examples
        if "predicted" in self.record.targets:
            return rows
        known, correct = rows.truth_in_vocabulary.eq(True), rows.correct.eq(True)
        return rows[(rows.status == "failed") | (known & ~correct)]

    @property
    def failed_examples(self) -> int:
        """Distinct examples with at least one recorded failure; a record whose number could not be
        read is one."""
        numbers = self.failures.question_id
        return int(numbers.nunique() + numbers.isna().sum())

    @property
    def left_out(self) -> int:
        """Failures that are records of the dataset's files, which never became examples."""
        return int(self.failures.stage.eq("dataset").sum())

    @cached_property
    def timings(self) -> pd.DataFrame:
        """One row a task: what it took, and where."""
        return self._frame("timings")

    def columns(
        self, name: str, columns: Sequence[str], where: pc.Expression | None = None
    ) -> pd.DataFrame:
        """Some columns of a table, of the rows that ``where`` selects; strings as categories.

        Strings are encoded batch by batch, so a table that would not fit as text does as codes.
        Categories are in alphabetical order.
        """
        schema = pa.schema([_encoded(self.table(name).schema.field(c)) for c in columns])
        frame = self._again(lambda: self._batches(name, columns, where, schema)).to_pandas()
        for column in frame.select_dtypes("category"):
            ordered = sorted(frame[column].cat.categories)
            frame[column] = frame[column].cat.reorder_categories(ordered)
        return frame

    def _batches(
        self,
        name: str,
        columns: Sequence[str],
        where: pc.Expression | None,
        schema: pa.Schema,
    ) -> pa.Table:
        batches = self.table(name).to_batches(columns=list(columns), filter=where)
        encoded = (batch.cast(schema) for batch in batches if len(batch))
        return pa.Table.from_batches(encoded, schema=schema).unify_dictionaries()

    @property
    def definitions(self) -> dict[str, Definition]:
        """Label -> parameters and arrays of every method of the run."""
        return self.store.definitions(["image", "words"])

    def fetch(self, rows: pd.DataFrame, array: str | None = None) -> list[np.ndarray]:
        """The maps that rows of ``.maps`` point at: float32 ``(y, x)``, in the rows' order.

        ``array`` picks another of the method's arrays, for instance ``top_answer``. Rows of failed
        maps have none: leave them out (``rows[rows.status != "failed"]``).
        """
        failed = rows[rows.status == "failed"]
        if len(failed):
            raise ValueError(
                f"{len(failed)} of {len(rows)} rows are failed maps, the first of question "
                f"{failed.iloc[0].question_id} ({failed.iloc[0].reason}); "
                'select rows[rows.status != "failed"]'
            )
        group = self.store.arrays()
        return [self._read(group, row, array) for row in rows.itertuples()]

    def _read(self, group: zarr.Group, row: Any, array: str | None) -> np.ndarray:
        path = row.array if array is None else f"{row.method}/{array}"
        stored = group[path]
        per_target = "target" in (stored.metadata.dimension_names or ())  # type: ignore[union-attr]
        place = (row.ordinal, row.target_index) if per_target else (row.ordinal,)
        try:
            values = np.asarray(stored[place])  # type: ignore[index]
        except (ValueError, RuntimeError) as error:  # a checksum, or what decompresses
            raise UserError(
                f"{self.store.root_anywhere}/maps.zarr/{path}: the map of question "
                f"{row.question_id} is damaged ({error}). `verify` finds all that are; "
                f"`retry {self.store.root_anywhere} --shard {row.shard}` makes this one again"
            ) from error
        scale = row.scale if path == row.array else 1.0
        return values if values.dtype.kind == "i" else values.astype(np.float32) * np.float32(scale)

    def _frame(self, name: str) -> pd.DataFrame:
        """All rows."""
        return self._again(lambda: self.table(name).to_table()).to_pandas()

    def _again(self, read: Callable[[], pa.Table]) -> pa.Table:
        """What ``read`` reads; a fragment that is compacted away meanwhile is looked up again."""
        for _ in range(2):
            try:
                return read()
            except FileNotFoundError:
                continue
        return read()


def _encoded(field: pa.Field) -> pa.Field:
    if pa.types.is_string(field.type):
        return field.with_type(pa.dictionary(pa.int32(), pa.string()))
    return field


def open_run(root: Path | str) -> Run:
    """Open a run's folder for reading."""
    return Run(root)
