"""Two runs paired by example: what is the same has no difference, what is planted is found."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.report.document import compare_report
from pipeline.studies.base import Evidence, Table
from pipeline.studies.compare import answer_table, both_answered, compare, metric_table, own_maps
from tests.conftest import Recipe
from workers.errors import UserError
from workers.models import kazemi

METHODS = {"saliency": {}, "grad_cam": {}, "word_gradient": {}}


@pytest.fixture(scope="module")
def runs(
    recipe: Recipe, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same examples through two checkpoints; the second one's answers lean another way."""
    root = tmp_path_factory.mktemp("compare")
    model = kazemi.load(checkpoint)
    with torch.no_grad():
        model.classifier.lin2.bias.add_(torch.linspace(0, 4, len(model.classifier.lin2.bias)))
    kazemi.save(model, root / "other.safetensors")
    for name, path in (("a", checkpoint), ("b", root / "other.safetensors")):
        config = recipe(methods=METHODS, model={"name": "kazemi", "checkpoint": str(path)})
        stages.run(config, root / name)
        stages.evaluate(root / name)
    return root / "a", root / "b"


@pytest.fixture(scope="module")
def both(runs: tuple[Path, Path]) -> tuple[Evidence, Evidence]:
    return Evidence(Run(runs[0])), Evidence(Run(runs[1]))


def test_differences_equal_those_of_scipy(both: tuple[Evidence, Evidence]) -> None:
    table = metric_table(*both, both_answered(*both)).set_index(["target", "method", "metric"])
    keys = ["question_id", "method", "metric", "target"]
    one, two = (e.values.set_index(keys)["value"].astype(float) for e in both)
    for method in ("saliency", "center"):
        key = ("predicted", method, "rank_correlation")
        change = pd.concat(
            [v.xs((method, "rank_correlation", "predicted"), level=keys[1:]) for v in (one, two)],
            axis=1,
        ).dropna()
        known = both[0].examples.set_index("question_id")["truth_in_vocabulary"].eq(False)
        change = change[~known.reindex(change.index).fillna(False).to_numpy(bool)]
        first, second = change.to_numpy(float).T
        assert table.loc[key, "n"] == len(change)
        np.testing.assert_allclose(
            table.loc[key, "difference"], (first - second).mean(), atol=1e-12
        )
        if method == "saliency":
            expected = stats.ttest_rel(first, second).pvalue
            np.testing.assert_allclose(table.loc[key, "p_t"], expected, rtol=1e-9)
    told = table["p_adjusted"].dropna()
    assert (told >= table.loc[told.index, "p_t"] - 1e-15).all()


def test_a_run_against_itself_differs_in_nothing(runs: tuple[Path, Path]) -> None:
    a, same = Evidence(Run(runs[0])), Evidence(Run(runs[0]))
    answers = answer_table(both_answered(a, same), a)
    assert (answers["difference"] == 0).all()
    assert answers["reason"].notna().all()  # no spread to test
    maps = own_maps(a, same)
    np.testing.assert_allclose(maps["mean"].dropna(), 1, atol=1e-6)
    assert not [f for f in compare(a, same).findings if "agrees with people" in f.sentence]


def test_baselines_are_alike_and_methods_are_not(both: tuple[Evidence, Evidence]) -> None:
    maps = own_maps(*both).set_index(["target", "method"])["mean"]
    np.testing.assert_allclose(maps["predicted", "center"], 1, atol=1e-6)
    assert maps["predicted", "saliency"] < 0.999


def test_every_table_is_shown_and_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    written = compare_report(*runs, tmp_path, lambda text: None)
    assert {path.name for path in (tmp_path / "tables").glob("*.csv")} == {
        "compare_answers.csv",
        "compare_metrics.csv",
        "compare_maps.csv",
    }
    assert written.findings
    study = compare(Evidence(Run(runs[0])), Evidence(Run(runs[1])))
    for table in (part for part in study.parts if isinstance(part, Table)):
        assert {column.name for column in table.columns} <= set(table.frame)


def test_examples_of_one_run_only_are_told(
    both: tuple[Evidence, Evidence], runs: tuple[Path, Path]
) -> None:
    fewer = Evidence(Run(runs[1]))
    fewer.__dict__["examples"] = both[1].examples.iloc[3:]
    study = compare(both[0], fewer)
    assert any(text.startswith("3 examples answered in ") for text in study.missing)


def test_runs_without_a_common_example_are_refused(
    both: tuple[Evidence, Evidence], runs: tuple[Path, Path]
) -> None:
    other = Evidence(Run(runs[1]))
    shifted = both[1].examples.assign(question_id=both[1].examples["question_id"] + 10**9)
    other.__dict__["examples"] = shifted
    with pytest.raises(UserError, match=r"have no example in common .* over the same dataset"):
        compare(both[0], other)


def test_command_compares_two_runs(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import main

    out = tmp_path / "page"
    arguments = ["report", "--compare", str(runs[0]), str(runs[1]), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["run_pipeline.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    text = (out / "index.html").read_text()
    assert "What the maps score" in text
    shutil.rmtree(out)
