"""What the studies of checks share: a method's means over questions, and how they are told."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import Column, Evidence
from pipeline.studies.summary import Bootstrap, summarise

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
"""Okabe and Ito's, which colour-blind readers tell apart; no yellow, black is for references."""
DASHES = ("-", "--", ":", "-.")


def line_style(i: int) -> dict[str, Any]:
    """The i-th line's colour and dashes, all different up to 28 lines."""
    dashes = DASHES[i // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes}


def main_target(values: pd.DataFrame) -> str:
    """``predicted``, or where a run has none the first there is."""
    targets = sorted(set(values["target"].astype(str)) - {"human"})
    return targets[0] if targets else "predicted"


def wide_means(
    values: pd.DataFrame, names: Sequence[str], evidence: Evidence, by: Sequence[str] = ("method",)
) -> pd.DataFrame:
    """One row a group of ``by``: of each metric ``<name>``, ``<name>_low``, ``<name>_high``,
    ``<name>_n`` and ``<name>_degenerate``; and ``baseline``. NaN and 0 where there are no rows."""
    own = values[values["metric"].isin(names)]
    table = own[list(by)].drop_duplicates().sort_values(list(by)).set_index(list(by))
    for name in names:
        part = own[own["metric"] == name]
        if len(part):
            found = summarise(part, list(by), evidence.bootstrap).set_index(list(by))
            columns = {"mean": name, "ci_low": f"{name}_low", "ci_high": f"{name}_high"}
            counts = {"n_used": f"{name}_n", "n_degenerate": f"{name}_degenerate"}
            shown = found[[*columns, *counts]].rename(columns={**columns, **counts})
        else:
            shown = pd.DataFrame(
                {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}, index=table.index
            )
        table = table.join(shown)
        for column in (f"{name}_n", f"{name}_degenerate"):
            counted = table[column] if column in table else pd.Series(0, index=table.index)
            table[column] = counted.fillna(0).astype(int)
        table[f"{name}_reason"] = [
            _reason(value, degenerate)
            for value, degenerate in zip(table[name], table[f"{name}_degenerate"], strict=True)
        ]
    table = table.reset_index()
    return table.assign(baseline=table["method"].isin(BASELINES))


def _reason(value: float, degenerate: int) -> str:
    if np.isfinite(value):
        return ""
    return f"all {degenerate} maps are degenerate" if degenerate else "not computed of this method"


def leads(values: pd.DataFrame, floor: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Method -> ``mean``, ``low`` and ``high`` of its lead over the method ``floor``, question by
    question; ``values`` is of one target and one metric."""
    wide = values.pivot(index=["image_id", "question_id"], columns="method", values="value")
    over = wide.sub(wide[floor], axis=0)
    clusters = wide.index.get_level_values("image_id").to_numpy()
    low, high = bootstrap.intervals(over.to_numpy(float), clusters)
    return pd.DataFrame({"mean": over.mean(), "low": low, "high": high})


def mean_column(name: str, header: str, text: str) -> Column:
    """A column of ``wide_means`` with its interval."""
    return Column(
        name=name,
        header=header,
        low=f"{name}_low",
        high=f"{name}_high",
        reason=f"{name}_reason",
        help=text,
    )


def told(value: float, low: float, high: float) -> str:
    """A mean and its interval in a sentence."""
    if not np.isfinite(low):
        return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def not_computed(evidence: Evidence, what: str, metric: str, options: str = "{}") -> str:
    """What is missing and the command that computes it."""
    return (
        f"{what} has not been computed: `python run_pipeline.py evaluate {evidence.run.root} "
        f"--set 'metrics.{metric}={options}'`, then report again."
    )
