"""What a study is: tables, figures, panels and findings, made from a run's rows and maps alone
(that of question_grad_cam reads the objects' masks from the dataset too).

A study is a function ``Evidence -> Study``, listed in ``pipeline/studies/registry.py``. It
computes; ``pipeline/report`` writes and draws. What a run does not hold is said in ``missing``,
with the remedy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pandas as pd
import pyarrow.dataset as ds
from matplotlib.figure import Figure

from pipeline.dataset import Run
from pipeline.run import stored_config
from pipeline.studies.agreement import KEYS, Confidence, question_values
from pipeline.studies.summary import Bootstrap
from schemas.base import Frozen
from schemas.config import RunConfig
from workers.evaluate import NO_ANNOTATOR

Kind = Literal["text", "number", "count", "percent", "p_value"]
"""``number`` has three decimals, or as many as its column needs; ``percent`` is a share, 0 to 1,
shown times 100 with its sign; ``p_value`` below 0.001 says so."""


class Column(Frozen):
    """How a column of a table is read."""

    name: str
    header: str
    kind: Kind = "number"
    low: str | None = None
    """Column with the interval's lower bound, shown after the value, not by itself."""
    high: str | None = None
    reason: str | None = None
    """Column that says why a value is missing; the reader sees a dash and, on it, the reason."""
    help: str = ""
    """Definition and convention, a sentence: the header's tooltip."""


@dataclass(frozen=True)
class Table:
    """A table as it is shown, and all its figures."""

    name: str
    """Of its files: letters, digits, ``_`` and ``-``."""
    title: str
    frame: pd.DataFrame
    """Everything, shown or not; written as CSV and Parquet."""
    columns: tuple[Column, ...]
    caption: str
    """What n counts, the convention and the kind of interval."""
    marked: str | None = None
    """Boolean column of rows that are no methods (baselines, published figures): drawn apart."""
    badged: bool = False
    """Methods (column ``method``) carry the badges that the studies give them."""
    folded: bool = False
    """A long table that few readers need: closed until it is opened."""


@dataclass(frozen=True)
class Picture:
    """A figure and its data."""

    name: str
    title: str
    figure: Figure
    data: pd.DataFrame
    caption: str


@dataclass(frozen=True)
class Shown:
    """An example worth looking at."""

    question_id: int
    note: str
    """Why this one, in a few words."""


@dataclass(frozen=True)
class Panels:
    """Examples chosen by a rule, opened with all their maps."""

    name: str
    title: str
    rule: str
    """The rule, so that anyone could choose them again."""
    examples: tuple[Shown, ...]


@dataclass(frozen=True)
class Text:
    """Paragraphs between the other parts."""

    name: str
    title: str
    paragraphs: tuple[str, ...]


Part = Table | Picture | Panels | Text


@dataclass(frozen=True)
class Finding:
    """A sentence generated from the numbers, with what it rests on."""

    sentence: str
    weight: float
    """0 to 1: how much it matters to a reader; the report opens with the three largest."""
    source: str
    """Name of the table or figure it stands on."""
    topic: str = ""
    """What several studies may say in their own words: the report opens with one of them."""


BEST_AGREEMENT = "best agreement"
"""The topic: which method agrees with people most."""


@dataclass(frozen=True)
class Badge:
    """A method's verdict in one word, shown beside its scores."""

    word: str
    """For instance ``depends on weights``."""
    good: bool | None
    """None: not decided."""
    why: str
    """The numbers behind it, in a sentence."""


@dataclass(frozen=True)
class Study:
    """One study of one run."""

    name: str
    title: str
    source: str
    """The paper."""
    parts: tuple[Part, ...] = ()
    findings: tuple[Finding, ...] = ()
    badges: Mapping[str, Badge] = field(default_factory=dict)
    """Method -> badge."""
    missing: tuple[str, ...] = ()
    """What could not be computed from this run: why, and what to do."""


@dataclass(frozen=True)
class Evidence:
    """What studies read of a run; every frame is loaded once."""

    run: Run
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    confidence: Confidence = field(default_factory=Confidence)

    @cached_property
    def config(self) -> RunConfig:
        """The recipe as the run stands now, with the methods and metrics added since."""
        return stored_config(self.run.root)

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Examples that the model has answered."""
        examples = self.run.examples
        return examples[examples["status"] == "ok"]

    @cached_property
    def values(self) -> pd.DataFrame:
        """One row a (method, target, metric, question_id): ``value``, the mean over annotators,
        NaN where none is ok, and ``image_id``.

        Read as codes, six columns of eleven: a tenth of what ``run.metrics`` takes."""
        columns = [*KEYS, "question_id", "value", "status"]
        values = question_values(self.run.columns("metrics", columns), self.run.examples)
        return values.astype(dict.fromkeys(KEYS, "str"))

    @cached_property
    def human_values(self) -> pd.DataFrame:
        """``values`` of the metrics that compare a map with people's."""
        against = ds.field("annotator") != NO_ANNOTATOR
        names = self.run.columns("metrics", ["metric"], against)["metric"].unique()
        return self.values[self.values["metric"].isin(names)]

    def has_metric(self, name: str) -> bool:
        """Whether any value of this name has been computed."""
        return bool((self.values["metric"] == name).any())
