"""Faithfulness, sanity and their synthesis, on a real run and on rows with a known truth."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.studies.base import Badge, Evidence, Study, Table, Text
from pipeline.studies.faithfulness import faithfulness, mean_curves
from pipeline.studies.registry import STUDIES
from pipeline.studies.sanity import (
    BAD,
    GOOD,
    OPEN,
    Rule,
    cascade_names,
    cascade_steps,
    half_gone,
    sanity,
)
from pipeline.studies.summary import Bootstrap
from pipeline.studies.synthesis import conclusions, criteria_frame, kendall_rows, synthesis
from schemas.rows import MetricRow
from schemas.shard import Task
from tests.conftest import Recipe
from workers.store import Store

QUICK = Bootstrap(resamples=200)
LAST = "sanity_cascade_02_trunk"
Values = Callable[[np.random.Generator, int], np.ndarray]


def around(mean: float, spread: float = 0.05) -> Values:
    return lambda rng, n: mean + spread * rng.standard_normal(n)


TRUTH: dict[str, dict[str, Values]] = {
    "loud": {"rank_correlation": around(0.6), "deletion_gain": around(0.0), LAST: around(0.8)},
    "honest": {"rank_correlation": around(0.4), "deletion_gain": around(0.3), LAST: around(0.05)},
    "middling": {"rank_correlation": around(0.3), "deletion_gain": around(0.1), LAST: around(0.1)},
    "center": {"rank_correlation": around(0.2), "deletion_gain": around(0.02), LAST: around(1, 0)},
    "random": {"rank_correlation": around(0.0), "deletion_gain": around(0.0), LAST: around(1, 0)},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def planted(places: Path, recipe: Recipe) -> Evidence:
    """A run whose metric rows are made by hand: 24 questions on 8 images."""
    out = places / "planted"
    if not out.exists():
        config = recipe(methods={"center": {}}, store={"shard_size": 64})
        stages.run(config, out)
        commit(out, TRUTH, "planted")
    return Evidence(Run(out), QUICK)


def commit(out: Path, truth: dict[str, dict[str, Values]], label: str) -> None:
    """Rows through the store, as an evaluator writes them; NaN is a degenerate map."""
    store, config = Store(out), stages.stored_config(out)
    (shard,) = stages.stored_layout(config, store).shards
    task, rng = Task(shard=shard, labels=(label,)), np.random.default_rng(0)
    rows = []
    for method, metrics in truth.items():
        for metric, draw in metrics.items():
            for example, value in zip(shard.examples, draw(rng, len(shard.examples)), strict=True):
                ok = bool(np.isfinite(value))
                row = {"question_id": example.question_id, "image_id": example.image_id}
                given = {"method": method, "target": "predicted", "metric": metric}
                told = {"status": "ok" if ok else "degenerate_model", "conventions": "made"}
                rows.append(
                    MetricRow(
                        **row,
                        **given,
                        **told,
                        annotator=-1,
                        value=float(value) if ok else None,
                        shard=shard.number,
                        round=task.round,
                    )
                )
    assert store.attempt("evaluate", task).commit(rows)


@pytest.fixture
def measured(places: Path, recipe: Recipe) -> Evidence:
    """A run as it comes."""
    out = places / "measured"
    if not out.exists():
        metrics = {
            "rank_correlation": {},
            "localisation": {},
            "sparsity": {},
            "deletion_insertion": {"grid": 4, "steps": 4, "draws": 2},
            "max_sensitivity": {"draws": 1},
            "sanity": {"sample": 1.0},
        }
        methods = {"saliency": {}, "grad_cam": {}, "attention": {}}
        stages.run(recipe(methods=methods, metrics=metrics, store={"shard_size": 64}), out)
        stages.evaluate(out)
    return Evidence(Run(out), QUICK)


def table(study: Study, name: str) -> pd.DataFrame:
    (found,) = [p for p in study.parts if isinstance(p, Table) and p.name == name]
    shown = {c for column in found.columns for c in (column.name, column.low, column.high)} - {None}
    assert shown <= set(found.frame.columns)
    return found.frame


def sentences(study: Study) -> str:
    texts = [p for p in study.parts if isinstance(p, Text)]
    return " ".join([f.sentence for f in study.findings] + [s for t in texts for s in t.paragraphs])


@pytest.mark.parametrize("name", ["faithfulness", "sanity", "synthesis"])
def test_study_of_a_real_run_is_whole(name: str, measured: Evidence) -> None:
    study = STUDIES[name](measured)
    assert study.name == name
    assert study.missing == ()
    assert study.parts
    names = [part.name for part in study.parts]
    assert len(set(names)) == len(names)
    assert {finding.source for finding in study.findings} <= set(names)
    assert "nan" not in sentences(study)
    for part in study.parts:
        if isinstance(part, Table):
            table(study, part.name)
            assert {"saliency", "grad_cam"} <= set(
                part.frame.get("method", ["saliency", "grad_cam"])
            )


@pytest.mark.parametrize("name", ["faithfulness", "sanity", "synthesis"])
def test_study_of_a_run_without_its_metrics_says_how_to_get_them(
    name: str, recipe: Recipe, places: Path
) -> None:
    out = places / "bare"
    if not out.exists():
        stages.run(recipe(methods={"center": {}}), out)
    study = STUDIES[name](Evidence(Run(out), QUICK))
    assert study.parts == ()
    assert study.findings == ()
    assert any("evaluate" in text and "--set" in text for text in study.missing)


def test_faithfulness_means_equal_pandas(measured: Evidence) -> None:
    frame = table(faithfulness(measured), "deletion_insertion").set_index(["target", "method"])
    rows = measured.run.metrics
    own = rows[(rows.metric == "insertion_gain") & (rows.method == "saliency")]
    right = measured.examples.query("correct == True")["question_id"]
    only = own[(own.target == "predicted") & own.question_id.isin(right)]
    assert len(only)
    for target, part in own.groupby("target"):
        if target == "truth":  # a correct prediction's only map explains the label too
            part = pd.concat([part, only])
        row = frame.loc[(target, "saliency")]
        assert row["insertion_gain"] == pytest.approx(part.value.mean())
        assert row["insertion_gain_n"] == part.value.count()


def test_faithfulness_curves_have_the_areas_of_the_table(measured: Evidence) -> None:
    frame = table(faithfulness(measured), "deletion_insertion").set_index(["target", "method"])
    data = mean_curves(measured, "deletion", "predicted")
    assert set(data.method) == {
        "saliency",
        "grad_cam",
        "attention",
        "random",
        "center",
        "random order",
    }
    for method, own in data.groupby("method"):
        if method != "random order":
            area = np.trapezoid(own["mean"], own["fraction"])
            assert area == pytest.approx(frame.loc[("predicted", method), "deletion_auc"])


def test_sanity_baselines_fail_in_a_real_run(measured: Evidence) -> None:
    badges = sanity(measured).badges
    assert badges["center"].word == badges["random"].word == BAD
    assert set(badges) == {"saliency", "grad_cam", "attention", "random", "center"}


def test_cascade_of_more_than_a_hundred_stages_ends_with_the_last() -> None:
    names = [f"sanity_cascade_{n:02d}_layer{n}" for n in range(103)]
    both = pd.DataFrame({"metric": [*names[::-1], "sanity_cascade_signed_99_layer99", "ty_iou"]})
    assert cascade_names(both) == names


def test_table_of_more_than_a_hundred_stages_is_in_their_order(planted: Evidence) -> None:
    stages = [f"sanity_cascade_{n:02d}_layer{n}" for n in range(103)]
    rows = [
        {"method": "m", "metric": stage, "target": "predicted", "question_id": i, "image_id": i}
        | {"value": 1.0 if n < 101 else 0.0}
        for n, stage in enumerate(stages)
        for i in range(3)
    ]
    evidence = SimpleNamespace(values=pd.DataFrame(rows), bootstrap=planted.bootstrap)
    steps = cascade_steps(evidence, stages)  # type: ignore[arg-type]
    assert steps["metric"].tolist() == stages
    assert half_gone(steps) == "101_layer101"


def test_sanity_badges_find_the_planted_truth(planted: Evidence) -> None:
    study = sanity(planted)
    words = {method: badge.word for method, badge in study.badges.items()}
    assert words == {"loud": BAD, "honest": GOOD, "middling": GOOD, "center": BAD, "random": BAD}
    assert study.badges["loud"].good is False
    assert "loud: with all weights drawn anew its maps stay" in sentences(study)


@pytest.mark.parametrize(
    ("means", "stage"),
    [([0.9, 0.4, 0.1], "b"), ([0.4, 0.6, 0.1], "c"), ([0.1, 0.1, 0.1], "a"), ([1, 1, 1], "never")],
)
def test_half_gone_is_the_stage_after_the_last_that_keeps_half(
    means: list[float], stage: str
) -> None:
    assert half_gone(pd.DataFrame({"stage": list("abc"), "mean": means})) == stage


@pytest.mark.parametrize(
    ("rho", "high", "n", "word"),
    [
        (0.1, 0.2, 30, GOOD),
        (0.1, 0.31, 30, OPEN),
        (0.3, 0.4, 30, BAD),
        (0.1, 0.2, 9, OPEN),
        (0.9, 0.95, 9, OPEN),
        (np.nan, np.nan, 0, OPEN),
        (0.1, np.nan, 12, OPEN),
    ],
)
def test_rule_decides_as_it_says(rho: float, high: float, n: int, word: str) -> None:
    badge = Rule().badge(rho, high, n, 0.02)
    assert badge.word == word
    assert badge.good is {GOOD: True, BAD: False, OPEN: None}[word]
    assert str(n) in badge.why


def test_synthesis_warns_of_the_method_that_agrees_best(planted: Evidence) -> None:
    study = synthesis(planted)
    first = max(study.findings, key=lambda finding: finding.weight).sentence
    assert first.startswith("loud agrees with people best (rank correlation 0.")
    assert "hardly change when the weights are randomised (mean |rho| 0.8" in first
    assert first.endswith("its agreement says nothing about this model.")
    said = sentences(study)
    assert "The answers hang on what honest marks" in said
    assert "That the answers hang on what loud marks is not shown" in said


def test_synthesis_ranks_methods_and_leaves_baselines_out(planted: Evidence) -> None:
    frame = table(synthesis(planted), "synthesis").set_index("method")
    ranks = frame[["rank_agreement", "rank_deletion", "rank_randomised"]]
    assert ranks.loc["loud"].tolist() == [1, 3, 3]
    assert ranks.loc["honest"].tolist() == [2, 1, 1]
    assert ranks.loc[["center", "random"]].isna().all(axis=None)
    assert frame["mean_rank"].head(3).tolist() == pytest.approx([4 / 3, 7 / 3, 7 / 3])
    assert frame.index[0] == "honest"


def test_synthesis_concordance_finds_the_planted_orders(planted: Evidence) -> None:
    frame = table(synthesis(planted), "concordance").set_index(["first", "second"])
    both = frame.loc[("deletion", "sanity")]
    assert (both["tau"], both["n"]) == (pytest.approx(1), 3)
    assert both["tau_low"] == pytest.approx(1)
    assert frame.loc[("agreement", "deletion"), "tau"] == pytest.approx(-1 / 3)


def test_synthesis_lead_over_the_centre_is_paired(planted: Evidence) -> None:
    frame = criteria_frame(planted).set_index("method")
    values = planted.values[planted.values["metric"] == "rank_correlation"]
    wide = values.pivot(index="question_id", columns="method", values="value")
    lead = (wide["honest"] - wide["center"]).mean()
    assert frame.loc["honest", "over_center"] == pytest.approx(lead)
    assert frame.loc["honest", "over_center_low"] < lead < frame.loc["honest", "over_center_high"]
    assert frame.loc["center", "over_center"] == 0


def test_method_without_a_usable_map_is_a_dash_with_a_reason(
    recipe: Recipe, tmp_path: Path
) -> None:
    stages.run(recipe(methods={"center": {}}, store={"shard_size": 64}), tmp_path / "run")
    empty = {name: around(np.nan) for name in ("rank_correlation", "deletion_gain", LAST)}
    commit(tmp_path / "run", {**TRUTH, "empty": empty}, "planted")
    evidence = Evidence(Run(tmp_path / "run"), QUICK)
    frame = table(synthesis(evidence), "synthesis").set_index("method")
    assert np.isnan(frame.loc["empty", "agreement"])
    assert frame.loc["empty", "agreement_reason"] == "all 24 maps are degenerate"
    assert sanity(evidence).badges["empty"].word == OPEN
    assert "nan" not in sentences(synthesis(evidence)) + sentences(sanity(evidence))


def test_kendall_rows_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 50, 6)).astype(float)
    b[0] = 1
    a[1, 2] = np.nan
    taus = kendall_rows(a, b)
    assert np.isnan(taus[:2]).all()
    wanted = [kendalltau(x, y).statistic for x, y in zip(a[2:], b[2:], strict=True)]
    np.testing.assert_allclose(taus[2:], wanted)


def test_conclusions_hold_back_where_nothing_is_decided(planted: Evidence) -> None:
    frame = criteria_frame(planted)
    open_badge = Badge(OPEN, None, "3 maps could be compared; at least 10 decide.")
    said = conclusions(frame, dict.fromkeys(frame["method"], open_badge))
    assert said[0].sentence.endswith("; that its maps depend on the weights is not shown.")
    assert not said[0].shown
