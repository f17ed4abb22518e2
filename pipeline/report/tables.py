"""Tables as a reader sees them, and the same as files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.studies.base import Badge, Column, Table
from pipeline.studies.tables import number

DASH = "–"
NO_REASON = "the study gives no value here and no reason"
MOST = 1000
"""Rows of a table on the page; the files have all."""
MOST_DATA = 100
"""Rows of a figure's data on the page."""


@dataclass(frozen=True)
class Mark:
    """An interval drawn in its cell: places along the column's range, in per cent."""

    low: float
    value: float
    high: float
    zero: float | None


@dataclass(frozen=True)
class Cell:
    """What one place of a table shows."""

    text: str
    interval: str = ""
    order: str = ""
    """What the column is sorted by; a missing value has none and goes last."""
    reason: str = ""
    """Why there is only a dash."""
    letter: str = ""
    """Of the footnote with the reason."""
    mark: Mark | None = None
    badges: Sequence[Badge] = ()


@dataclass(frozen=True)
class Row:
    """A row, drawn apart where it is no method."""

    cells: list[Cell]
    marked: bool


@dataclass(frozen=True)
class View:
    """A table ready to be drawn."""

    columns: Sequence[Column]
    rows: list[Row]
    notes: dict[str, str]
    """Letter -> reason."""
    total: int
    """Rows of the frame; more than are shown where the page has not all."""


def view(table: Table, badges: Mapping[str, Sequence[Badge]], most: int = MOST) -> View:
    """The cells of a table; methods carry their badges where it asks for them."""
    shown = table.frame.head(most)
    notes: dict[str, str] = {}
    badges = badges if table.badged else {}
    columns = [_cells(shown, column, notes, badges) for column in table.columns]
    marked = shown[table.marked].eq(True).tolist() if table.marked else [False] * len(shown)
    rows = [Row(list(cells), mark) for *cells, mark in zip(*columns, marked, strict=True)]
    letters = {letter: reason for reason, letter in notes.items()}
    return View(table.columns, rows, letters, len(table.frame))


def data_table(name: str, frame: pd.DataFrame) -> Table:
    """The table behind a figure."""
    return Table(
        name=name,
        title="",
        frame=frame,
        columns=tuple(_plain_column(frame, str(name)) for name in frame.columns),
        caption="",
    )


def _plain_column(frame: pd.DataFrame, name: str) -> Column:
    kinds = pd.api.types
    if kinds.is_bool_dtype(frame[name]) or not kinds.is_numeric_dtype(frame[name]):
        return Column(name=name, header=name, kind="text")
    kind: Any = "count" if kinds.is_integer_dtype(frame[name]) else "number"
    return Column(name=name, header=name.replace("_", " "), kind=kind)


# --- cells ------------------------------------------------------------------------------------


def _cells(
    frame: pd.DataFrame,
    column: Column,
    notes: dict[str, str],
    badges: Mapping[str, Sequence[Badge]],
) -> list[Cell]:
    values = frame[column.name]
    if column.kind == "text":
        own = badges if column.name == "method" else {}
        return [_text(value, own) for value in values]
    values = pd.to_numeric(values).astype(float).to_numpy()
    low, high = (_bound(frame, name) for name in (column.low, column.high))
    reasons = frame[column.reason].tolist() if column.reason else [None] * len(frame)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    marks = _marks(values, low, high)
    cells = zip(values, low, high, reasons, marks, strict=True)
    return [
        _missing(reason, notes)
        if math.isnan(value)
        else _number((value, low, high), column, _scale(value, largest), mark)
        for value, low, high, reason, mark in cells
    ]


def _bound(frame: pd.DataFrame, name: str | None) -> np.ndarray:
    if name is None:
        return np.full(len(frame), np.nan)
    return pd.to_numeric(frame[name]).astype(float).to_numpy()


def _text(value: Any, badges: Mapping[str, Sequence[Badge]]) -> Cell:
    if isinstance(value, list | tuple | np.ndarray):
        text = ", ".join(map(str, value))
    elif pd.isna(value):
        return Cell("")
    else:
        text = {True: "yes", False: "no"}[bool(value)] if _is_bool(value) else str(value)
    return Cell(text, order=text.lower(), badges=tuple(badges.get(text, ())))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _missing(reason: Any, notes: dict[str, str]) -> Cell:
    text = NO_REASON if reason is None or pd.isna(reason) or not reason else str(reason)
    letter = notes.setdefault(text, _letter(len(notes)))
    return Cell(DASH, reason=text, letter=letter)


def _letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    high, low = divmod(index, 26)
    return (_letter(high - 1) if high else "") + chr(ord("a") + low)


def _scale(value: float, largest: float) -> float:
    """What fixes a cell's decimals: its column, unless that mixes units, as large values betray."""
    return largest if largest < 1000 else max(abs(value), 1.0)


def _number(
    numbers: tuple[float, float, float], column: Column, scale: float, mark: Mark | None
) -> Cell:
    value, low, high = numbers
    text = shown(value, column.kind, scale)
    interval = ""
    if math.isfinite(low) and math.isfinite(high):
        bounds = (shown(bound, column.kind, scale) for bound in (low, high))
        interval = "[" + ", ".join(bound.removesuffix("%") for bound in bounds) + "]"
    return Cell(text, interval, order=repr(float(value)), mark=mark)


def shown(value: float, kind: str, scale: float) -> str:
    """A number as a table prints it; ``scale`` is the largest magnitude beside it."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if kind == "count":
        text = f"{value:,.0f}"
    elif kind == "percent":
        text = f"{value:.1%}"
    elif kind == "p_value":
        text = "< 0.001" if value < 0.001 else f"{value:.3f}"
    else:
        text = number(value, scale)
    return (text[1:] if _is_zero(text) else text).replace("-", "−")


def _is_zero(text: str) -> bool:
    """Whether a negative number has been rounded to nothing."""
    return text.startswith("-0") and not text.strip("-0.%")


def _marks(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Mark | None]:
    """Where each interval lies along the range of all; none where there is nothing to compare."""
    drawn = np.isfinite(values) & np.isfinite(low) & np.isfinite(high)
    if drawn.sum() < 2:
        return [None] * len(values)
    first = min(low[drawn].min(), values[drawn].min())
    last = max(high[drawn].max(), values[drawn].max())
    span = (last - first) or 1.0

    def place(value: float) -> float:
        return round(float(100 * (value - first) / span), 1)

    zero = place(0.0) if first < 0 < last else None
    return [
        Mark(place(a), place(v), place(b), zero) if good else None
        for a, v, b, good in zip(low, values, high, drawn, strict=True)
    ]


# --- files ------------------------------------------------------------------------------------


def csv(frame: pd.DataFrame) -> bytes:
    """A frame as CSV in UTF-8, floats in full."""
    return frame.to_csv(index=False, lineterminator="\n").encode()


def parquet(frame: pd.DataFrame) -> bytes:
    """A frame as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
