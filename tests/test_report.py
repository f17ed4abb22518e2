"""Reports: what a page says, what lies beside it, and what it must never do."""

import base64
import json
import shutil
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.report import figures
from pipeline.report.document import evidence_of, report, study_report
from pipeline.report.folder import published
from pipeline.report.gallery import choose, gallery
from pipeline.report.maps import pack, shrink
from pipeline.report.tables import DASH, NO_REASON, shown, view
from pipeline.studies.agreement import Confidence, question_values
from pipeline.studies.base import (
    Badge,
    Column,
    Evidence,
    Finding,
    Panels,
    Picture,
    Shown,
    Study,
    Table,
    Text,
)
from pipeline.studies.registry import STUDIES
from pipeline.verify import verify
from tests.conftest import Recipe
from tests.reports import HOSTILE, IMAGE, SCRIPT, hostile_run
from tests.test_cli import Call, call  # noqa: F401 - a fixture
from workers.errors import UserError

SILENT: Callable[[str], None] = lambda text: None  # noqa: E731


class Elements(HTMLParser):
    """A page's elements and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(recipe: Recipe, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(recipe, world, tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="module")
def evidence(run: Path) -> Evidence:
    return evidence_of(run)


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return report(run, run / "report", say=SILENT).page


def test_every_table_of_the_labelled_answer_is_of_the_same_questions(evidence: Evidence) -> None:
    studies = [STUDIES[name](evidence) for name in ("overview", "goyal2016", "tang_yuan")]
    tables = {p.name: p for study in studies for p in study.parts if isinstance(p, Table)}
    own = evidence.values[evidence.values["metric"] == "rank_correlation"].dropna(subset="value")
    own = own[own["method"] == "occlusion"]
    right = evidence.examples.query("correct == True")["question_id"]
    only = own[(own["target"] == "predicted") & own["question_id"].isin(right)]
    other = own[own["target"] == "truth"]
    assert len(only) > 0 < len(other)
    for name in ("agreement_truth", "table1_truth", "figure_2_truth"):
        frame = tables[name].frame.set_index("method")
        n = frame.loc["occlusion", "n_used" if name == "agreement_truth" else "n"]
        assert n == len(only) + len(other), name
        assert "correct prediction" in tables[name].caption
    pairs = tables["cross_method_truth"].frame
    assert pairs[["n", "degenerate"]].sum(axis=1).max() == len(right) + len(other)


@pytest.fixture(scope="module")
def elements(page: Path) -> Elements:
    return Elements(page.read_text())


# --- what the page says -----------------------------------------------------------------------


def test_page_opens_with_what_was_run(elements: Elements, run: Path) -> None:
    record = Run(run).record
    for text in (
        "24 questions on 8 images; 21 answered, 3 with failures",
        record.dataset[:12],
        record.model[:12],
        "baselines: center, human, random, shuffled_human",
        "What stands out",
    ):
        assert text in elements.text


def test_page_holds_every_study_under_a_heading_of_its_own(elements: Elements) -> None:
    headings = [tag for tag, _ in elements.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    ids = [attributes.get("id") for _, attributes in elements.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(STUDIES) <= set(ids)
    targets = [link["href"][1:] for link in elements.all("a") if link["href"].startswith("#")]
    assert set(targets) <= set(ids)


def test_page_asks_for_nothing_from_elsewhere(elements: Elements, page: Path) -> None:
    for tag, attributes in elements.elements:
        for name in ("src", "href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#", "tables/", "figures/")), (tag, value)
    beside = [a["href"] for a in elements.all("a") if not a["href"].startswith("#")]
    assert beside
    assert all((page.parent / name).is_file() for name in beside)


def test_hostile_text_is_text(elements: Elements, page: Path) -> None:
    assert f"What color is the {SCRIPT} circle?" in elements.text
    assert IMAGE in elements.text or IMAGE in _data(page)["examples"][0]["truth"]
    scripts = [script.get("type") for script in elements.all("script")]
    assert scripts.count(None) == 1
    assert set(scripts) == {None, "application/json", "text/plain"}
    assert not [a for _, a in elements.elements if any(name.startswith("on") for name in a)]
    assert "default-src 'none'" in str(elements.all("meta"))


def test_hostile_text_reaches_the_script_unchanged(page: Path) -> None:
    first = _data(page)["examples"][0]
    assert first["question"] == HOSTILE
    assert first["answers"] == [[IMAGE, 10]]
    assert first["known"] is False


def _data(page: Path) -> dict:
    text = page.read_text().split('id="gallery-data">')[1].split("</script>")[0]
    return json.loads(text)


def test_maps_on_the_page_are_the_stored_maps(page: Path, run: Path) -> None:
    data, stored, text = _data(page), Run(run), page.read_text()
    own = stored.maps[stored.maps["status"] != "failed"]
    keys = zip(own["question_id"], own["method"], own["target"], strict=True)
    maps = dict(zip(keys, stored.fetch(own), strict=True))
    compared = 0
    for place, example in enumerate(data["examples"]):
        blob = text.split(f'id="maps-{place}">')[1].split("</script>")[0]
        raw = zlib.decompress(base64.b64decode(blob), -15)
        for told in example["maps"]:
            method = data["methods"][told["method"]]
            values = maps.get((example["id"], method["name"], told["target"]))
            if values is None:
                continue
            size = told["height"] * told["width"]
            dtype, steps = (np.int8, 127) if method["signed"] else (np.uint8, 255)
            bytes_ = np.frombuffer(raw, dtype, size, told["at"]).reshape(told["height"], -1)
            shown_ = np.clip(shrink(values, 48), -told["top"], told["top"])
            step = told["top"] / steps
            np.testing.assert_allclose(
                bytes_ * step, shown_, rtol=0, atol=0.5 * step + 6e-4 * told["top"]
            )
            compared += 1
    assert compared == len(maps)


def test_examples_carry_their_scores_words_and_human_maps(page: Path, run: Path) -> None:
    data, evidence = _data(page), evidence_of(run)
    values = evidence.values.set_index(["question_id", "method", "target", "metric"])["value"]
    example = data["examples"][3]
    for key, value in example["scores"].items():
        method, target, metric = key.split(":")
        name = data["methods"][int(method)]["name"]
        expected = values[example["id"], name, target, data["metrics"][int(metric)]]
        assert value == pytest.approx(expected, rel=1e-3)
    words = Run(run).words
    first = words[(words["question_id"] == example["id"])].iloc[0]
    told = next(
        word
        for word in example["words"]
        if data["methods"][word["method"]]["name"] == first["method"]
        and word["target"] == first["target"]
    )
    assert told["values"] == pytest.approx(list(first["importances"]), rel=1e-3)
    people = [m["of"] for m in example["maps"] if m["target"] == "human"]
    assert people == ["mean of 3", "annotator 1", "annotator 2", "annotator 3"]


def test_report_leaves_the_run_sound(page: Path, run: Path) -> None:
    assert page.is_file()
    assert verify(run).problems == 0


def test_evidence_equals_what_full_frames_give(evidence: Evidence) -> None:
    run = evidence.run
    full = question_values(run.metrics, run.examples)
    pd.testing.assert_frame_equal(evidence.values, full)
    lean = run.columns("maps", ["method", "question_id", "minimum"])
    assert lean["method"].astype("str").tolist() == run.maps["method"].tolist()
    assert lean["method"].cat.categories.is_monotonic_increasing


# --- what lies beside it ----------------------------------------------------------------------


def small_study(frame: pd.DataFrame, question: int = 0) -> Study:
    """Every kind of part, and a badge."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [0, 1])
    table = Table(
        name="numbers",
        title="Numbers",
        frame=frame,
        columns=(
            Column(name="method", header="method", kind="text"),
            Column(name="mean", header="mean", low="low", high="high", reason="why"),
        ),
        caption="n = 3.",
        badged=True,
    )
    picture = Picture("line", "A line", figure, pd.DataFrame({"x": [0, 1]}), "A line.")
    panels = Panels("some", "Some", "the first", (Shown(question, "because"),))
    return Study(
        name="small",
        title="Small",
        source="nobody",
        parts=(table, picture, panels, Text("words", "Words", ("One & two.",))),
        findings=(Finding("Much.", 0.9, "numbers"), Finding("Little.", 0.1, "line")),
        badges={"saliency": Badge("depends on weights", True, "rho 0.1")},
        missing=("No such thing: make it.",),
    )


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": ["saliency", "random", "<b>bold</b>"],
            "mean": [0.1234567890123, np.nan, -0.5],
            "low": [0.1, np.nan, -0.6],
            "high": [0.2, np.nan, -0.4],
            "why": ["", "no map of it & none", ""],
            "n": pd.array([3, None, 2**60], dtype="Int64"),
        }
    )


def test_files_hold_the_frames(evidence: Evidence, frame: pd.DataFrame, tmp_path: Path) -> None:
    study_report(small_study(frame), [evidence], tmp_path, SILENT)
    parquet = pd.read_parquet(tmp_path / "tables" / "small_numbers.parquet")
    pd.testing.assert_frame_equal(parquet, frame)
    csv = pd.read_csv(
        tmp_path / "tables" / "small_numbers.csv",
        keep_default_na=False,
        na_values={"mean": "", "low": "", "high": "", "n": ""},
        dtype={"n": "Int64"},
    )
    pd.testing.assert_frame_equal(csv, frame, rtol=1e-15)
    files = ("tables/{}.csv", "figures/{}.png", "figures/{}.svg")
    for name in (file.format("small_line_figure") for file in files):
        assert (tmp_path / name).stat().st_size > 0


def test_a_study_of_two_runs_tells_of_both(
    evidence: Evidence, frame: pd.DataFrame, tmp_path: Path
) -> None:
    written = study_report(small_study(frame), [evidence, evidence], tmp_path, SILENT)
    elements = Elements(written.page.read_text())
    for text in ("A: ", "B: ", "Small", "No such thing: make it.", "Question 0: because"):
        assert text in elements.text
    assert [finding.sentence for finding in written.findings] == ["Much.", "Little."]
    assert "One & two." in elements.text
    assert "<b>bold</b>" in elements.text
    assert "depends on weights" in elements.text


def test_figures_are_the_same_bytes_every_time() -> None:
    def draw() -> tuple[bytes, bytes]:
        with figures.style():
            figure = Figure(figsize=(2, 2))
            figure.subplots().scatter([0, 1], [1, 0], label="a")
        return figures.png(figure), figures.svg(figure)

    assert draw() == draw()
    png, svg = draw()
    assert figures.address(png, svg).startswith("data:image/svg+xml;base64,")
    assert figures.address(png, svg * 100).startswith("data:image/png;base64,")


def test_second_report_replaces_the_first_and_nothing_else(
    run: Path, evidence: Evidence, frame: pd.DataFrame, tmp_path: Path
) -> None:
    study_report(small_study(frame), [evidence], tmp_path, SILENT)
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    report(run, tmp_path, ["overview"], examples=0, say=SILENT)
    assert (tmp_path / "tables" / "mine.csv").read_text() == "mine"
    assert not (tmp_path / "tables" / "small_numbers.csv").exists()
    assert (tmp_path / "tables" / "overview_accuracy.csv").exists()
    assert "Numbers" not in (tmp_path / "index.html").read_text()
    assert not list(tmp_path.glob(".tmp-*"))


def test_report_cut_off_leaves_the_old_one(tmp_path: Path) -> None:
    with published(tmp_path) as folder:
        folder.write("index.html", b"old")
    with pytest.raises(RuntimeError), published(tmp_path) as folder:
        folder.write("index.html", b"new")
        raise RuntimeError("cut off")
    assert (tmp_path / "index.html").read_bytes() == b"old"
    assert not list(tmp_path.glob(".tmp-*"))


def test_listing_that_points_elsewhere_deletes_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("kept")
    out = tmp_path / "report"
    out.mkdir()
    (out / "files.json").write_text(json.dumps(["../precious", str(outside), "a/../../precious"]))
    with published(out) as folder:
        folder.write("index.html", b"page")
    assert outside.read_text() == "kept"


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"the report cannot be written there .* Choose another"),
        published(tmp_path / "file"),
    ):
        pass


# --- runs of all kinds ------------------------------------------------------------------------


def test_compacted_run_gives_the_same_tables(run: Path, page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("report"))
    stages.compact(copy)
    again = report(copy, copy / "report", ["overview"], say=SILENT).page
    for path in sorted((again.parent / "tables").iterdir()):
        assert path.read_bytes() == (page.parent / "tables" / path.name).read_bytes(), path.name
    assert _data(again)["examples"] == _data(page)["examples"]


@pytest.fixture(scope="module")
def bare(recipe: Recipe, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without human maps, its dataset gone since."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(world, folder / "world")
    names = {"questions": "OpenEnded_mscoco_val2014_questions.json", "images": "."}
    names["annotations"] = "mscoco_val2014_annotations.json"
    dataset = {"name": "vqa", "root": str(folder / "world"), **names}
    stages.run(recipe(dataset=dataset, methods={"attention": {}}), folder / "run")
    return folder / "run"


def test_run_never_evaluated_is_refused(bare: Path, call: Call) -> None:  # noqa: F811
    if Run(bare).store.covered("metrics"):
        pytest.fail("the fixture is to be evaluated by the next test only")
    result = call("report", bare)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {bare} has no metrics: nothing of it has been compared or counted yet. "
        f"Run `python run_pipeline.py evaluate {bare}` first.\n"
    )


def test_run_without_human_maps_has_its_remedy_on_the_page(bare: Path, tmp_path: Path) -> None:
    stages.evaluate(bare)
    shutil.rmtree(bare.parent / "world")
    written = report(bare, tmp_path, ["overview"], say=SILENT)
    text = Elements(written.page.read_text()).text
    assert "Not in this run No map was compared with human attention" in text
    assert "Human maps are not shown, as the dataset cannot be read" in text
    assert "Pictures that cannot be read are not shown" in text
    assert [finding.title for finding in written.findings] == ["How well the model answers"]
    assert len(_data(written.page)["examples"]) == 24


def test_study_that_fails_is_told_and_the_others_go_on(
    run: Path,
    call: Call,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def impossible(evidence: Evidence) -> Study:
        raise UserError("there is <nothing> here: bring some")

    monkeypatch.setitem(STUDIES, "impossible", impossible)
    result = call(
        "report", run, "--out", tmp_path, "--examples", "0",
        "--study", "impossible", "--study", "overview",
    )  # fmt: skip
    assert result.returncode == 1
    assert "impossible" in result.stdout
    text = Elements((tmp_path / "index.html").read_text()).text
    assert "This study could not be made there is <nothing> here: bring some" in text
    assert "How well the model answers" in text


def test_command_says_where_the_report_is_and_what_it_found(
    run: Path,
    call: Call,  # noqa: F811
    tmp_path: Path,
) -> None:
    result = call("report", run, "--out", tmp_path, "--study", "overview", "--examples", "3")
    assert result.returncode == 0, result.stderr
    assert f"report: {tmp_path}/index.html (" in result.stdout
    assert "1. " in result.stdout
    assert "3. " in result.stdout
    assert len(_data(tmp_path / "index.html")["examples"]) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "report: name one RUN, or two with --compare RUN_A RUN_B"),
        (("RUN", "--study", "magic"), "--study magic: unknown study. Available: overview"),
        (("nowhere",), "nowhere is not a run: it has no run.json."),
    ],
)
def test_command_with_a_mistake_is_explained(
    run: Path,
    call: Call,  # noqa: F811
    arguments: tuple[str, ...],
    message: str,
) -> None:
    result = call("report", *(str(run) if a == "RUN" else a for a in arguments))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")


# --- size -------------------------------------------------------------------------------------


def test_page_keeps_to_its_size(run: Path, page: Path, tmp_path: Path) -> None:
    bare = report(run, tmp_path, ["overview"], examples=0, say=SILENT).bytes
    limit = bare + 25_000
    written = report(run, tmp_path, ["overview"], megabytes=limit / 1e6, say=SILENT)
    assert written.bytes < limit + 8_000
    assert written.bytes < page.stat().st_size
    text = Elements(written.page.read_text()).text
    assert "fit in; a larger --max-mb takes more." in text
    assert "Maps have at most 16 x 16 places here" in text


def test_coarser_maps_come_before_fewer_examples(evidence: Evidence) -> None:
    full = gallery(evidence, [], 600, 1e9)
    assert (full.side, len(full.thumbs)) == (48, 21)
    tight = gallery(evidence, [], 600, 0.75 * full.weight)
    assert tight.side < 48
    assert len(tight.thumbs) == 21


@given(st.integers(0, 60), st.sets(st.integers(0, 80), max_size=10), st.integers(0, 40))
def test_examples_chosen_are_as_many_as_asked(n: int, named: set[int], count: int) -> None:
    chosen = choose(range(n), sorted(named), count)
    assert len(chosen) == min(n, count)
    assert chosen == sorted(set(chosen))
    inside = [q for q in sorted(named) if q < n]
    assert set(inside[:count]) <= set(chosen)


SIDES = st.integers(1, 60)


@given(
    arrays(np.float32, st.tuples(SIDES, SIDES), elements=st.floats(-4, 4, width=32)),
    st.sampled_from([48, 16]),
    st.booleans(),
)  # fmt: skip
def test_packed_map_is_the_map_to_half_a_step(values: np.ndarray, side: int, signed: bool) -> None:
    values = values if signed else np.abs(values)
    packed = pack(values, side, signed)
    assert (packed.height, packed.width) == tuple(min(n, side) for n in values.shape)
    dtype, steps = (np.int8, 127) if signed else (np.uint8, 255)
    read = np.frombuffer(packed.data, dtype).reshape(packed.height, packed.width)
    expected = np.clip(shrink(values, side), -packed.top, packed.top)
    step = packed.top / steps
    np.testing.assert_allclose(read * step, expected, rtol=0, atol=0.501 * step + 1e-9)


def test_shrunken_map_keeps_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=(97, 61)).astype(np.float32)
    small = shrink(values, 48)
    assert small.shape == (48, 48)
    assert small.mean() == pytest.approx(values.mean(), abs=1e-6)
    np.testing.assert_array_equal(shrink(values[:40, :40], 48), values[:40, :40])


# --- cells ------------------------------------------------------------------------------------


def test_missing_value_is_a_dash_with_its_reason(frame: pd.DataFrame) -> None:
    table = small_study(frame).parts[0]
    assert isinstance(table, Table)
    made = view(table, {})
    first, dash = made.rows[0].cells[1], made.rows[1].cells[1]
    assert (first.text, first.interval) == ("0.123", "[0.100, 0.200]")
    assert float(first.order) == frame["mean"][0]
    assert (dash.text, dash.reason, dash.letter, dash.order) == (
        DASH, "no map of it & none", "a", "",
    )  # fmt: skip
    assert made.notes == {"a": "no map of it & none"}


def test_missing_value_without_a_reason_says_so() -> None:
    frame = pd.DataFrame({"x": [np.nan, None, 1.0]})
    made = view(Table("t", "T", frame, (Column(name="x", header="x"),), ""), {})
    assert [row.cells[0].letter for row in made.rows] == ["a", "a", ""]
    assert made.notes == {"a": NO_REASON}


def test_methods_carry_badges_only_where_the_table_asks(frame: pd.DataFrame) -> None:
    badges = {"saliency": [Badge("good", True, "why")]}
    table = small_study(frame).parts[0]
    assert isinstance(table, Table)
    assert view(table, badges).rows[0].cells[0].badges == (badges["saliency"][0],)
    plain = Table(table.name, table.title, frame, table.columns, "")
    assert view(plain, badges).rows[0].cells[0].badges == ()


def test_long_table_shows_its_first_rows() -> None:
    frame = pd.DataFrame({"x": range(50)})
    made = view(Table("t", "T", frame, (Column(name="x", header="x", kind="count"),), ""), {}, 7)
    assert (len(made.rows), made.total) == (7, 50)


def test_column_that_mixes_units_keeps_the_decimals_of_small_values() -> None:
    frame = pd.DataFrame({"x": [0.123, 4835.2], "low": [0.1, 4800.0], "high": [0.2, 4900.0]})
    made = view(
        Table("t", "T", frame, (Column(name="x", header="x", low="low", high="high"),), ""), {}
    )
    assert [row.cells[0].text for row in made.rows] == ["0.123", "4835"]
    assert made.rows[0].cells[0].interval == "[0.100, 0.200]"


def test_interval_is_drawn_along_its_column() -> None:
    frame = pd.DataFrame({"x": [-1.0, 0.0, 1.0], "l": [-2.0, -1.0, 0.5], "h": [0.0, 1.0, 2.0]})
    made = view(Table("t", "T", frame, (Column(name="x", header="x", low="l", high="h"),), ""), {})
    marks = [row.cells[0].mark for row in made.rows]
    assert [(m.low, m.value, m.high, m.zero) for m in marks if m] == [
        (0.0, 25.0, 50.0, 50.0), (25.0, 50.0, 75.0, 50.0), (62.5, 75.0, 100.0, 50.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "kind", "scale", "text"),
    [
        (12345.0, "count", 0, "12,345"),
        (0.1234, "percent", 0, "12.3%"),
        (-0.0001, "percent", 0, "0.0%"),
        (0.0002, "p_value", 0, "< 0.001"),
        (0.04, "p_value", 0, "0.040"),
        (-0.25, "number", 1.0, "−0.250"),
        (-0.0001, "number", 1.0, "0.000"),
        (float("inf"), "number", 1.0, "∞"),
    ],
)
def test_numbers_read_well(value: float, kind: str, scale: float, text: str) -> None:
    assert shown(value, kind, scale) == text


def test_limits_of_confidence_are_those_asked_for(
    call: Call,  # noqa: F811
    run: Path,
    tmp_path: Path,
) -> None:
    made = call(
        *("report", run, "--study", "overview", "--low", "0.25", "--high", "0.8"),
        *("--examples", "0", "--out", tmp_path),
    )
    assert made.returncode == 0, made.stderr
    page = Elements((tmp_path / "index.html").read_text())
    assert "Unsure: probability of the answer below 0.25, sure: above 0.8." in page.text
    counted = evidence_of(run, Confidence(low=0.25, high=0.8)).examples["confidence"]
    low = pd.read_csv(tmp_path / "tables" / "overview_crossings.csv")
    assert ("low" in low) == (counted < 0.25).any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--low", "0.8"), "--low 0.8 with --high 0.75: both are probabilities"),
        (("--high", "1.5"), "--low 0.5 with --high 1.5: both are probabilities"),
        (("--low", "-0.1"), "Give 0 <= low <= high <= 1"),
        (("--low", "nan"), "Give 0 <= low <= high <= 1"),
    ],
)
def test_limits_of_confidence_that_cannot_be_are_refused(
    call: Call,  # noqa: F811
    tmp_path: Path,
    options: tuple[str, str],
    told: str,
) -> None:
    refused = call("report", tmp_path, *options)
    assert refused.returncode == 2
    assert told in refused.stderr


def test_a_comparison_has_no_limits_of_confidence(
    call: Call,  # noqa: F811
    tmp_path: Path,
) -> None:
    refused = call("report", "--compare", tmp_path, tmp_path, "--low", "0.25")
    assert refused.returncode == 2
    assert "leave --low and --high out" in refused.stderr
