"""Result tables for the terminal and for READMEs: the same cells, readable numbers."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

_HEADERS = {
    "mean": "mean ± s.e.",
    "accuracy": "accuracy ± s.e.",
    "ci_low": "interval",
    "n_used": "n",
    "n_degenerate": "degenerate",
    "n_unscored": "unscored",
}


def render(table: pd.DataFrame, title: str | None = None) -> Table:
    """A table of ``agreement``, ``crossings`` or ``accuracy_table`` for a rich console.

    Baselines are dim; groups, or else blocks of one metric and target, are ruled off.
    """
    shown = _columns(table)
    drawn = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in shown:
        numeric = pd.api.types.is_numeric_dtype(table[column])
        drawn.add_column(_header(column), justify="right" if numeric else "left")
    by = ["group"] if "group" in table else ["metric", "target"]
    blocks = table[[column for column in by if column in table]]
    ends = blocks.ne(blocks.shift(-1)).any(axis=1)
    for cells, row, end in zip(_rows(table, shown), table.to_dict("records"), ends, strict=True):
        style = "dim" if row.get("baseline") else ""
        drawn.add_row(*map(Text, cells), style=style, end_section=bool(end))
    return drawn


def side_by_side(table: pd.DataFrame, target: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One row a method of ``agreement``'s table: mean and interval a metric, counts of the first.

    Best first by the first metric. Cells are text, for reading; figures are in ``agreement``.
    """
    own = table[table.target == target]
    first = own[own.metric == metrics[0]].set_index("method")
    wide = pd.DataFrame({"method": first.index})
    for metric in metrics:
        cells = own[own.metric == metric].set_index("method").reindex(first.index)
        wide[metric] = [
            f"{number(row['mean'])} {_short_interval(row['ci_low'], row['ci_high'])}"
            for row in cells.to_dict("records")
        ]
    counts = first[["n_used", "n_degenerate", "baseline"]].reset_index(drop=True)
    return pd.concat([wide, counts], axis=1)


def to_markdown(table: pd.DataFrame) -> str:
    """The same cells as a GitHub table; baselines in italics."""
    shown = _columns(table)
    lines = [[_header(column) for column in shown]]
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in shown]
    lines.append(["---:" if number else "---" for number in numeric])
    for cells, row in zip(_rows(table, shown), table.to_dict("records"), strict=True):
        marked = {"method": f"*{row['method']}*"} if row.get("baseline") else {}
        lines.append([marked.get(c, cell) for c, cell in zip(shown, cells, strict=True)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def number(value: float, scale: float | None = None) -> str:
    """``value`` with the decimals that suit ``scale``, the largest magnitude beside it."""
    scale = abs(value) if scale is None else scale
    if not np.isfinite(value):
        return "-"
    if 0 < scale < 0.001:
        return f"{value:.1e}"
    return f"{value:.0f}" if scale >= 1000 else f"{value:.3f}"


def _header(column: str) -> str:
    return _HEADERS.get(column, column.replace("_", " "))


def _columns(table: pd.DataFrame) -> list[str]:
    """Columns with a cell of their own; bounds and errors stand in their neighbour's."""
    return [c for c in table.columns if c not in ("standard_error", "ci_high", "baseline")]


def _rows(table: pd.DataFrame, shown: list[str]) -> Iterator[list[str]]:
    for row in table.to_dict("records"):
        floats = [abs(v) for v in row.values() if isinstance(v, float) and np.isfinite(v)]
        yield [_cell(row, column, max(floats, default=0.0)) for column in shown]


def _cell(row: dict[Hashable, Any], column: str, scale: float) -> str:
    value = row[column]
    if not isinstance(value, float):
        return str(value)
    if column == "ci_low":
        return _interval(value, row["ci_high"], scale)
    error = row.get("standard_error", np.nan)
    if column in ("mean", "accuracy") and np.isfinite(error):
        return f"{number(value, scale)} ± {number(error, scale)}"
    return number(value, scale)


def _short_interval(low: float, high: float) -> str:
    low, high = round(low, 2) + 0.0, round(high, 2) + 0.0  # no negative zero
    return f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""


def _interval(low: float, high: float, scale: float) -> str:
    if not np.isfinite(low):
        return "-"
    return f"[{number(low, scale)}, {number(high, scale)}]"
