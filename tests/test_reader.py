"""A finished run, read with and without our code."""

import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import xarray as xr

from pipeline import open_run
from pipeline import run as stages
from tests.conftest import Recipe
from workers.errors import UserError

SPEC_COLUMNS = {
    "examples": "question_id image_id question prediction truth confidence correct accuracy "
    "shard ordinal",
    "maps": "question_id method target array ordinal score status reason",
    "words": "question_id method target tokens importances",
    "metrics": "question_id method target metric value status",
    "failures": "question_id stage error message",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader") / "run"


@pytest.fixture
def finished(folder: Path, recipe: Recipe) -> Path:
    """A run with maps, words and metrics."""
    if not folder.exists():
        methods = {"occlusion": {"grid": 4}, "grad_cam": {}, "word_occlusion": {}}
        stages.run(recipe(methods=methods), folder)
        stages.evaluate(folder)
    return folder


@pytest.mark.parametrize("table", SPEC_COLUMNS)
def test_table_has_the_columns_other_tools_rely_on(table: str, finished: Path) -> None:
    columns = getattr(open_run(finished), table).columns
    assert set(SPEC_COLUMNS[table].split()) <= set(columns)


def test_pandas_alone_reads_every_table(finished: Path) -> None:
    run = open_run(finished)
    for table in ("examples", "maps", "words", "metrics"):
        frame = pd.read_parquet(finished / table)
        assert len(frame) == len(getattr(run, table)) > 0


def test_pyarrow_alone_filters(finished: Path) -> None:
    maps = ds.dataset(finished / "maps")
    chosen = maps.to_table(filter=ds.field("method") == "grad_cam")
    assert set(chosen["method"].to_pylist()) == {"grad_cam"}


def test_duckdb_alone_joins_and_groups(finished: Path) -> None:
    query = f"""
        select m.method, avg(m.value) as mean, count(*) as n
        from '{finished}/metrics/*.parquet' m join '{finished}/examples/*.parquet' e
        using (question_id) where m.metric = 'rank_correlation' and e.status = 'ok'
        group by m.method
    """
    result = duckdb.sql(query).df().set_index("method")
    metrics = open_run(finished).metrics
    own = metrics[(metrics.metric == "rank_correlation") & (metrics.method == "grad_cam")]
    assert result.loc["grad_cam", "n"] == len(own)
    assert result.loc["grad_cam", "mean"] == pytest.approx(own.value.mean())


def test_xarray_alone_opens_the_maps_with_named_axes(finished: Path) -> None:
    opened = xr.open_zarr(finished / "maps.zarr", group="occlusion", consolidated=False)
    assert opened["drop"].dims == ("example", "target", "y", "x")
    assert opened["top_answer"].dims == ("example", "y", "x")
    run = open_run(finished)
    row = run.maps[(run.maps.method == "occlusion")].iloc[[3]]
    ordinal, target = int(row.ordinal.iloc[0]), int(row.target_index.iloc[0])
    np.testing.assert_array_equal(opened["drop"][ordinal, target].to_numpy(), run.fetch(row)[0])


def test_fetch_follows_the_rows_order(finished: Path) -> None:
    run = open_run(finished)
    rows = run.maps[run.maps.method == "grad_cam"]
    forth, back = run.fetch(rows), run.fetch(rows.iloc[::-1])
    for a, b in zip(forth, reversed(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fetch_of_another_array_ignores_the_target(finished: Path) -> None:
    run = open_run(finished)
    rows = run.maps[run.maps.method == "occlusion"]
    tops = run.fetch(rows, "top_answer")
    assert all(top.dtype == np.int32 and (top >= 0).all() for top in tops)


def test_summary_columns_agree_with_the_stored_map(finished: Path) -> None:
    run = open_run(finished)
    rows = run.maps[run.maps.status != "failed"]
    for row, values in zip(rows.itertuples(), run.fetch(rows), strict=True):
        assert row.minimum == pytest.approx(values.min(), rel=1e-6, abs=1e-9)
        assert row.maximum == pytest.approx(values.max(), rel=1e-6, abs=1e-9)


def test_targets_are_predicted_and_truth_where_it_differs(finished: Path) -> None:
    run = open_run(finished)
    maps = run.maps[run.maps.method == "grad_cam"].set_index("question_id")
    for example in run.examples.itertuples():
        targets = set(maps.loc[[example.question_id]].target)
        wrong = example.truth_in_vocabulary and not example.correct
        assert targets == ({"predicted", "truth"} if wrong else {"predicted"})
    outside = run.examples[~run.examples.truth_in_vocabulary.astype(bool)]
    assert len(outside) > 0, "the model's vocabulary lacks one of the world's answers"


def test_words_belong_to_their_tokens(finished: Path) -> None:
    run = open_run(finished)
    for row in run.words.itertuples():
        assert len(row.tokens) == len(row.importances) == len(row.top_answers)


def test_metric_table_always_has_the_baselines(finished: Path) -> None:
    methods = set(open_run(finished).metrics.method)
    assert methods == {"occlusion", "grad_cam", "random", "center", "human", "shuffled_human"}


def test_shuffled_human_is_another_images_map(finished: Path) -> None:
    metrics = open_run(finished).metrics
    rho = metrics[metrics.metric == "rank_correlation"].groupby("method").value.mean()
    assert rho["human"] > 0.6
    assert rho["shuffled_human"] < rho["human"] - 0.3


def test_damaged_map_is_named_with_its_remedy(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    run = open_run(tmp_path / "run")
    row = run.maps[run.maps.method == "occlusion"].iloc[:1]
    for path in (tmp_path / "run" / "maps.zarr" / "occlusion" / "drop").glob("c*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"occlusion/drop: the map of question \d+ is damaged"):
        run.fetch(row)
