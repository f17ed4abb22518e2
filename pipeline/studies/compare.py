"""Two runs over the same examples, say two models or two checkpoints: differences, example by
example."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import Column, Evidence, Finding, Part, Study, Table
from pipeline.studies.goyal2016.cross_method import correlations, of_target, row_ranks, sample
from pipeline.studies.statistics.families import benjamini_hochberg
from pipeline.studies.statistics.pairs import paired, sign_flips
from pipeline.studies.statistics.permutation import Permutations
from pipeline.studies.statistics.proportions import mcnemar_test
from pipeline.studies.targets import correct_questions, matrix, usable
from workers.errors import UserError

LEVEL = 0.05
"""Adjusted p up to which a difference counts as told."""
ANSWERS = (("correct", "equal to the label"), ("accuracy", "VQA accuracy"))
MAIN = "rank_correlation"


def compare(a: Evidence, b: Evidence) -> Study:
    """``a`` against ``b``: answers, agreement with people, and the maps themselves.

    Only examples that both models have answered count; how many others there are is told. Every
    difference is the mean of A minus B within examples, with a bootstrap interval over images.
    """
    examples = both_answered(a, b)
    answers, metrics, maps = answer_table(examples, a), metric_table(a, b, examples), own_maps(a, b)
    tables: Sequence[pd.DataFrame] = (answers, metrics, maps)
    makers = (_answers, _metrics, _maps)
    parts: list[Part] = [
        make(frame, a, b) for make, frame in zip(makers, tables, strict=True) if len(frame)
    ]
    return Study(
        name="compare",
        title=f"{_name(a)} against {_name(b)}",
        source="Paired by example; tests: paired t, Wilcoxon 1945, McNemar 1947, sign flips of "
        "whole images; Benjamini and Hochberg 1995",
        parts=tuple(parts),
        findings=tuple(_findings(answers, metrics, a, b)),
        missing=tuple(_missing(a, b, metrics, maps)),
    )


# --- frames -----------------------------------------------------------------------------------


def both_answered(a: Evidence, b: Evidence) -> pd.DataFrame:
    """Examples in both runs by ``question_id``; answers of B have the suffix ``_b``."""
    columns = ["question_id", "image_id", "correct", "accuracy", "prediction"]
    one, two = (e.examples[columns].set_index("question_id") for e in (a, b))
    joined = one.join(two.add_suffix("_b"), how="inner")
    other = joined["image_id"] != joined["image_id_b"]
    if not len(joined) or other.all():
        raise UserError(
            f"{a.run.root} and {b.run.root} have no example in common (question ids "
            f"{_first(one)} and {_first(two)}, ...): compare runs over the same dataset."
        )
    return joined[~other]


def answer_table(examples: pd.DataFrame, a: Evidence) -> pd.DataFrame:
    """Right answers and soft accuracy of both models, and McNemar's test of the former."""
    images = examples["image_id"].to_numpy()
    frames = []
    for column, title in ANSWERS:
        one, two = (_numbers(examples[c]) for c in (column, f"{column}_b"))
        tested = paired(one, two, images, a.bootstrap).assign(measure=title)
        if column == "correct":
            tested = tested.assign(**_mcnemar(one, two))
        frames.append(tested)
    return pd.concat(frames, ignore_index=True)


def _mcnemar(one: np.ndarray, two: np.ndarray) -> dict[str, object]:
    tested = mcnemar_test(one, two).iloc[0]
    return {f"{name}_right": tested[name] for name in ("only_first", "only_second")} | {
        "p_mcnemar": tested["p"]
    }


def metric_table(a: Evidence, b: Evidence, examples: pd.DataFrame) -> pd.DataFrame:
    """One row a (target, method, metric) of both runs; p-values adjusted over all rows."""
    frames = [
        _of_target(a, b, examples, target)
        for target in a.config.targets
        if target in b.config.targets
    ]
    found = [frame for frame in frames if len(frame)]
    if not found:
        return pd.DataFrame()
    table = pd.concat(found, ignore_index=True)
    return table.assign(p_adjusted=benjamini_hochberg(table["p_t"].to_numpy(float)))


def _of_target(a: Evidence, b: Evidence, examples: pd.DataFrame, target: str) -> pd.DataFrame:
    one, two = (matrix(e.values, usable(e.examples), target) for e in (a, b))
    columns = one.columns.intersection(two.columns)
    rows = one.index.intersection(two.index).intersection(examples.index)
    if not len(rows) or not len(columns):
        return pd.DataFrame()
    first, second = (m.loc[rows, columns].to_numpy(float) for m in (one, two))
    images = examples.loc[rows, "image_id"].to_numpy()
    frame = paired(first, second, images, a.bootstrap)
    flips = sign_flips(first - second, images, Permutations(seed=a.bootstrap.seed))
    keys = columns.to_frame(index=False)
    frame = pd.concat([keys, frame.assign(p_flips=flips["p"].to_numpy())], axis=1)
    frame.insert(0, "target", target)
    return frame.assign(baseline=frame["method"].isin(BASELINES))


def own_maps(a: Evidence, b: Evidence) -> pd.DataFrame:
    """Rank correlation of A's map and B's of the same example, a row a (target, method)."""
    rows = [_sampled(e) for e in (a, b)]
    frames = []
    for method in sorted(set(rows[0]["method"]) & set(rows[1]["method"])):
        own = [r[r["method"] == method] for r in rows]
        frames.append(_similarity(str(method), own, (a, b)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _sampled(evidence: Evidence) -> pd.DataFrame:
    rows = evidence.run.maps
    rows = rows[rows["status"] != "failed"]
    return sample(evidence.run, rows, evidence.bootstrap.seed) if len(rows) else rows


def _similarity(
    method: str, rows: Sequence[pd.DataFrame], runs: Sequence[Evidence]
) -> pd.DataFrame:
    ranks = [row_ranks(e.run, own) for e, own in zip(runs, rows, strict=True)]
    correct = [correct_questions(e.run.examples) for e in runs]
    images = rows[0].drop_duplicates("question_id").set_index("question_id")["image_id"]
    found = []
    for target in sorted(set(rows[0]["target"]) & set(rows[1]["target"])):
        told = zip(ranks, correct, strict=True)
        rho = correlations(*(of_target(of, target, images.index, right) for of, right in told))
        low, high = runs[0].bootstrap.intervals(rho[:, None], images.to_numpy())[:, 0]
        n = int((~np.isnan(rho)).sum())
        row = {"target": target, "method": method, "n": n, "ci_low": low, "ci_high": high}
        row["mean"] = np.nanmean(rho) if n else np.nan
        row["reason"] = None if n else "no example has a map in both runs that is not constant"
        found.append(row | {"baseline": method in BASELINES})
    return pd.DataFrame(found)


def _numbers(column: pd.Series) -> np.ndarray:
    return column.astype("Float64").to_numpy(float, na_value=np.nan)


# --- as they are read -------------------------------------------------------------------------


def _name(evidence: Evidence) -> str:
    return f"{evidence.config.model.name} ({evidence.run.record.model[:8]})"


def _first(frame: pd.DataFrame) -> str:
    return str(frame.index[0]) if len(frame) else "none"


_TARGET = Column(name="target", header="target", kind="text", help="The answer explained.")
_METHOD = Column(name="method", header="method", kind="text")
_N = Column(name="n", header="n", kind="count", help="Examples with a value in both runs.")


def _paired_columns() -> tuple[Column, ...]:
    return (
        Column(name="mean_first", header="A", reason="reason", help="Mean of the first run."),
        Column(name="mean_second", header="B", reason="reason", help="Mean of the second run."),
        Column(
            name="difference",
            header="A - B",
            low="ci_low",
            high="ci_high",
            reason="reason",
            help="Mean difference within examples; interval by resampling whole images.",
        ),
        Column(name="p_t", header="p (t)", kind="p_value", reason="reason", help="Paired t."),
        Column(
            name="p_wilcoxon",
            header="p (Wilcoxon)",
            kind="p_value",
            reason="reason",
            help="Signed ranks.",
        ),
    )


def _caption(a: Evidence, b: Evidence) -> str:
    return (
        f"A is {a.run.root}, B is {b.run.root}. n counts examples in both. Brackets: "
        f"{a.bootstrap.level:.0%} bootstrap intervals that resample whole images; p-values of the "
        "t and Wilcoxon tests take examples as independent."
    )


def _answers(frame: pd.DataFrame, a: Evidence, b: Evidence) -> Table:
    mcnemar = (
        Column(name="only_first_right", header="only A right", kind="count"),
        Column(name="only_second_right", header="only B right", kind="count"),
        Column(name="p_mcnemar", header="p (McNemar)", kind="p_value", help="Exact."),
    )
    return Table(
        name="answers",
        title="Answers",
        frame=frame,
        columns=(
            Column(name="measure", header="measure", kind="text"),
            *_paired_columns(),
            *mcnemar,
            _N,
        ),
        caption=_caption(a, b),
    )


def _metrics(frame: pd.DataFrame, a: Evidence, b: Evidence) -> Table:
    adjusted = Column(
        name="p_adjusted",
        header="p (BH)",
        kind="p_value",
        reason="reason",
        help="Paired t, adjusted over all rows for the false discovery rate.",
    )
    flips = Column(
        name="p_flips",
        header="p (flips)",
        kind="p_value",
        reason="reason",
        help="All differences of an image change sign together.",
    )
    metric = Column(name="metric", header="metric", kind="text")
    return Table(
        name="metrics",
        title="What the maps score",
        frame=frame,
        columns=(_TARGET, _METHOD, metric, *_paired_columns(), flips, adjusted, _N),
        caption=_caption(a, b) + " A map explains its own model's answer. Human maps compared with "
        "one another are the same in both.",
        marked="baseline",
    )


def _maps(frame: pd.DataFrame, a: Evidence, b: Evidence) -> Table:
    mean = Column(
        name="mean",
        header="rank correlation",
        low="ci_low",
        high="ci_high",
        reason="reason",
        help="Of A's |map| and B's on 14 x 14 cells, the mean over examples.",
    )
    return Table(
        name="maps",
        title="How alike the maps of the two are",
        frame=frame,
        columns=(_TARGET, _METHOD, mean, _N),
        caption=_caption(a, b) + " Baselines that know nothing of a model are alike by nature.",
        marked="baseline",
    )


def _findings(
    answers: pd.DataFrame, metrics: pd.DataFrame, a: Evidence, b: Evidence
) -> list[Finding]:
    found = []
    right = answers.iloc[0]
    if np.isfinite(right["difference"]):
        found.append(Finding(_of_answers(right, a, b), 1.0, "answers"))
    if len(metrics):
        own = metrics[~metrics["baseline"] & (metrics["metric"] == MAIN)]
        told = own[own["p_adjusted"] <= LEVEL].sort_values("difference", key=abs)
        found += [Finding(_of_method(row), 0.8, "metrics") for row in told.tail(2).itertuples()]
        if len(own) and not len(told):
            sentence = f"No difference in agreement with people can be told (n = {own['n'].max()})."
            found.append(Finding(sentence, 0.7, "metrics"))
    return found


def _of_answers(row: pd.Series, a: Evidence, b: Evidence) -> str:
    verdict = "" if row["p_mcnemar"] <= LEVEL else "; a difference cannot be told"
    interval = f" [{row['ci_low']:.1%}, {row['ci_high']:.1%}]" if pd.notna(row["ci_low"]) else ""
    return (
        f"{_name(a)} is right on {row['mean_first']:.1%}, {_name(b)} on {row['mean_second']:.1%} "
        f"of {row['n']:,} examples (difference {row['difference']:+.1%}"
        f"{interval}{verdict})."
    )


def _of_method(row: object) -> str:
    way = "more" if row.difference > 0 else "less"  # type: ignore[attr-defined]
    return (
        f"{row.method} agrees with people {way} in A than in B (target: {row.target}): "  # type: ignore[attr-defined]
        f"{row.mean_first:.3f} against {row.mean_second:.3f}, difference {row.difference:+.3f} "  # type: ignore[attr-defined]
        f"[{row.ci_low:.3f}, {row.ci_high:.3f}], n = {row.n}."  # type: ignore[attr-defined]
    )


def _missing(a: Evidence, b: Evidence, metrics: pd.DataFrame, maps: pd.DataFrame) -> list[str]:
    found = []
    for one, two in ((a, b), (b, a)):
        alone = ~one.examples["question_id"].isin(two.examples["question_id"])
        if alone.any():
            found.append(
                f"{int(alone.sum()):,} examples answered in {one.run.root} are not in "
                f"{two.run.root}; they are left out. Run both over the same dataset."
            )
    if not len(metrics):
        found.append("No (method, metric) is in both runs: evaluate both by the same metrics.")
    if not len(maps):
        found.append("No image method is in both runs.")
    return found
