"""The question_grad_cam study: statistics of maps with a known truth, and a real run's page."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import parse, read_recipe
from pipeline.report import document
from pipeline.studies.base import Evidence, Study, Table, Text
from pipeline.studies.question_grad_cam import overlays
from pipeline.studies.question_grad_cam.localisation import (
    Measured,
    held_out,
    localisation_frame,
    measure,
    spearman,
)
from pipeline.studies.question_grad_cam.masses import uniform
from pipeline.studies.question_grad_cam.pairs import Pairs, cells, disjoint, same_answer
from pipeline.studies.question_grad_cam.published import RANKS, SWEEP
from pipeline.studies.question_grad_cam.ranks import PAIR, SAME, common, compared, repeated
from pipeline.studies.question_grad_cam.settings import BLIND, PLAIN, Setting, settings
from pipeline.studies.question_grad_cam.study import question_grad_cam
from pipeline.studies.question_grad_cam.words import NAMING, word_frame, word_rows
from pipeline.studies.summary import Bootstrap
from tests import nets
from tests.conftest import Recipe
from workers.models import deeper_lstm

QUICK = Bootstrap(resamples=200)
SIDE = 16
RECIPE = Path(__file__).parents[1] / "recipes" / "question_grad_cam.yaml"


def planted(images: int = 20) -> Pairs:
    """A pair an image: a square of 4 x 4 for the first question, of 4 x 8 for the second."""
    first = 10 * np.arange(images)
    masks = {}
    for question in first.tolist():
        masks[question], masks[question + 1] = np.zeros((2, SIDE, SIDE), bool)
        masks[question][:4, :4] = True
        masks[question + 1][8:12, 4:12] = True
    frame = {"image_id": range(images), "first": first, "second": first + 1, "answer": "red"}
    return Pairs(pd.DataFrame(frame), masks, 0, 0)


def partner(question: int) -> int:
    return question + 1 if question % 10 == 0 else question - 1


def measured(pairs: Pairs, **maps: dict[int, np.ndarray]) -> Measured:
    """``grad_cam`` is Grad-CAM, the others settings with n = 1, 2, ..."""
    found = [
        Setting(label, PLAIN, np.nan) if label == PLAIN else Setting(label, "row sum", float(n))
        for n, label in enumerate(maps)
    ]
    return measure(found, list(maps.values()), pairs)


# --- on which object ------------------------------------------------------------------------


def test_mass_on_known_objects_is_counted_as_planted() -> None:
    pairs = planted()
    own = {q: mask.astype(np.float32) for q, mask in pairs.masks.items()}
    swapped = {q: own[partner(q)] for q in own}
    half = {q: own[q] * 3 / own[q].sum() - own[partner(q)] / own[partner(q)].sum() for q in own}
    nothing = {q: np.zeros((SIDE, SIDE), np.float32) for q in own}
    made = measured(
        pairs, grad_cam=uniform(pairs), own=own, swapped=swapped, half=half, nothing=nothing
    )
    frame = localisation_frame(made, QUICK).set_index("method")
    assert frame["right"].tolist() == [0.5, 1, 0, 1, 0.5]
    assert frame["both"].tolist() == [0, 1, 0, 1, 0]
    areas = (16 + 32) / 2 / SIDE**2
    np.testing.assert_allclose(frame["inside"], [areas, 1, 0, 0.75, np.nan], rtol=1e-6)
    assert frame["empty"].tolist() == [0, 0, 0, 0, 40]
    assert frame["gain"].tolist()[1:] == [0.5, -0.5, 0.5, 0]
    assert np.isnan(frame["gain"][PLAIN])
    np.testing.assert_allclose(frame["inside_gain"]["own"], 1 - areas, rtol=1e-6)
    assert frame["right_n"].tolist() == [40] * 5
    assert (frame["right_low"] <= frame["right"]).all()


def test_a_map_that_is_the_same_for_both_questions_is_right_on_exactly_half() -> None:
    pairs, rng = planted(), np.random.default_rng(0)
    shared = {q: rng.random((4, 4)) for q in pairs.frame["first"]}
    maps = {q: shared[q - q % 10] for q in pairs.masks}
    made = measured(pairs, grad_cam=maps)
    assert localisation_frame(made, QUICK)["right"].tolist() == [0.5]
    np.testing.assert_allclose(made.rho, 1)
    assert not made.both.any()


def test_a_cell_counts_by_the_part_that_is_inside() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:4, 2:6] = True
    shares = cells(mask, (4, 4))
    assert shares[0].tolist() == [0.5, 0.5, 0, 0]
    assert not shares[1:].any()


def test_missing_maps_have_no_say() -> None:
    pairs = planted(4)
    own = {q: mask.astype(np.float32) for q, mask in pairs.masks.items() if q != 10}
    frame = localisation_frame(measured(pairs, grad_cam=uniform(pairs), own=own), QUICK)
    row = frame.set_index("method").loc["own"]
    assert (row["right"], row["right_n"], row["both_n"], row["rho_n"]) == (1, 7, 3, 3)


def test_the_best_of_many_noises_is_not_reported_as_better() -> None:
    """Chosen and measured on the same scenes the best of 40 coins looks good."""
    pairs, rng = planted(60), np.random.default_rng(1)
    noises = {f"noise_{i}": {q: rng.random((4, 4)) for q in pairs.masks} for i in range(40)}
    made = measured(pairs, grad_cam=uniform(pairs), **noises)
    best = held_out(made, QUICK)
    assert best is not None
    assert localisation_frame(made, QUICK)["right"].max() > 0.56
    assert best.gain["right_low"] < 0 < best.gain["right_high"]
    assert best.right["right_n"] == 120
    own = {q: mask.astype(np.float32) for q, mask in pairs.masks.items()}
    best = held_out(measured(pairs, grad_cam=uniform(pairs), **noises, own=own), QUICK)
    assert best is not None
    assert [setting.label for setting in best.chosen] == ["own", "own"]
    assert (best.right["right"], best.plain["right"], best.gain["right"]) == (1, 0.5, 0.5)


def test_a_choice_of_neurons_is_read_against_as_many_picked_blindly() -> None:
    pairs = planted(6)
    own = {q: mask.astype(np.float32) for q, mask in pairs.masks.items()}
    found = [Setting("a", "row sum", 5), Setting("b", "row sum", 9), Setting("c", BLIND, 5.0)]
    frame = localisation_frame(measure(found, [own, own, uniform(pairs)], pairs), QUICK)
    np.testing.assert_array_equal(frame["choice"], [0.5, np.nan, np.nan])
    assert frame["gain"].isna().all(), "there is no Grad-CAM"


# --- pairs ----------------------------------------------------------------------------------


def test_pairs_have_one_image_type_and_right_answer() -> None:
    rows = [
        (1, 1, "color", "red", True),
        (2, 1, "color", "red", True),
        (3, 1, "color", "blue", True),
        (4, 1, "color", "red", False),
        (5, 1, "shape", "red", True),
        (6, 2, "color", "red", True),
        (7, 1, "color", "red", True),
    ]
    names = ["question_id", "image_id", "question_type", "prediction", "correct"]
    found = same_answer(pd.DataFrame(rows, columns=names))
    assert found[["first", "second"]].to_numpy().tolist() == [[1, 2], [1, 7], [2, 7]]
    assert same_answer(pd.DataFrame(rows[2:4], columns=names)).empty


def test_pairs_whose_masks_meet_or_are_missing_are_counted_apart() -> None:
    pairs = planted(4)
    masks = dict(pairs.masks)
    masks[1] = masks[0]
    masks[10] = np.zeros((SIDE, SIDE), bool)
    del masks[21]
    found = disjoint(pairs.frame, masks)
    assert found.frame["first"].tolist() == [30]
    assert (found.overlapping, found.unmasked) == (1, 2)
    assert found.sides[["question_id", "partner"]].to_numpy().tolist() == [[30, 31], [31, 30]]


# --- sensitivities and words ----------------------------------------------------------------


def test_correlations_equal_scipy() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 5, 30), rng.integers(0, 5, 30)
    flat = np.zeros(30)
    wanted = [spearmanr(first, second).statistic, 1, np.nan]
    found = spearman(np.stack([first, first, first]), np.stack([second, first, flat]))
    np.testing.assert_allclose(found, wanted)


def test_top_tens_are_compared_by_index() -> None:
    first = np.arange(20.0)
    assert common(first, first) == 10
    assert common(first, -first) == 0
    assert common(first, np.zeros(20)) == 0, "ties go to the lower index"
    vectors = {0: first, 1: first[::-1], 10: first, 11: first}
    found = compared(vectors, planted(3).frame)
    assert found["rho"].tolist() == [-1, 1]
    assert found["common"].tolist() == [0, 10]


def test_a_question_is_repeated_on_the_next_image_that_has_it() -> None:
    rows = {"question_id": [1, 2, 3, 4], "image_id": [1, 1, 2, 3], "question": ["a", "b", "a", "a"]}
    found = repeated(pd.DataFrame(rows))
    assert found.to_numpy().tolist() == [[1, 1, 3], [2, 3, 4]]


def test_the_most_sensitive_word_is_counted_by_word() -> None:
    pairs = planted(12)
    tokens = {q: ["what", "is", "star" if q % 10 == 0 else "cross"] for q in pairs.masks}
    places = {q: 2 if q % 10 == 0 else 0 for q in pairs.masks}
    images = {q: q // 10 for q in pairs.masks}
    frame = word_frame(word_rows(tokens, places), tokens, images, pairs, QUICK).set_index("word")
    assert frame.index[0] == NAMING
    assert frame["most"].to_dict() == {NAMING: 0.5, "star": 1, "cross": 0, "what": 0.5, "is": 0}
    np.testing.assert_allclose(frame["chance"], 1 / 3)
    assert frame["most_n"].to_dict()[NAMING] == 24


# --- a real run -----------------------------------------------------------------------------

METHODS = {
    "grad_cam": {},
    "rows_5": {"method": "question_grad_cam", "n": 5},
    "rows_100": {"method": "question_grad_cam", "n": 100, "store_sensitivity": False},
    "rows_all": {"method": "question_grad_cam", "n": "all", "store_sensitivity": False},
    "l2_5": {"method": "question_grad_cam", "n": 5, "sensitivity": "l2"},
    "word_5_own": {
        "method": "question_grad_cam",
        "n": 5,
        "sensitivity": "word",
        "not_shared": True,
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of the recipe's world, explained and evaluated."""
    folder = tmp_path_factory.mktemp("pairs")
    config = read_recipe(RECIPE).model_dump(mode="json")
    config["dataset"] |= {"root": str(folder / "world"), "scenes": 6}
    config |= {"methods": METHODS, "resources": {"executor": "local"}}
    stages.run(parse(config, "test"), folder / "run")
    stages.evaluate(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def study(root: Path) -> Study:
    return question_grad_cam(Evidence(Run(root), QUICK))


def table(study: Study, name: str) -> pd.DataFrame:
    (found,) = [p for p in study.parts if isinstance(p, Table) and p.name == name]
    shown = {c for column in found.columns for c in (column.name, column.low, column.high)} - {None}
    assert shown <= set(found.frame.columns)
    return found.frame


def test_study_of_a_real_run_is_whole(study: Study) -> None:
    assert study.missing == ()
    names = [part.name for part in study.parts]
    assert names == [
        *("reading", "localisation", "sweep", "overlays", "pairs", "sensitivities", "words"),
        "every_pair",
    ]
    frame = table(study, "localisation")
    assert frame["method"].tolist() == [
        *("grad_cam", "random", "center", "rows_5", "rows_100", "rows_all", "l2_5"),
        *("word_5_own", "uniform map"),
    ]
    rows = frame.set_index("method")
    assert rows.loc["center", "right"] == rows.loc["uniform map", "right"] == 0.5
    assert (rows["right_n"] == rows.loc["grad_cam", "right_n"]).all()
    assert rows.loc["grad_cam", "right_n"] >= 6
    sentences = " ".join(finding.sentence for finding in study.findings)
    assert "fall" in sentences
    assert "nan" not in sentences


def test_all_neurons_are_grad_cam_in_the_study(study: Study) -> None:
    (text,) = [part for part in study.parts if isinstance(part, Text)]
    assert any("largest difference of a cell is 0." in p for p in text.paragraphs)
    rows = table(study, "localisation").set_index("method")
    columns = ["right", "both", "inside", "rho"]
    assert rows.loc["rows_all", columns].tolist() == rows.loc["grad_cam", columns].tolist()
    assert rows.loc["rows_all", "gain"] == 0
    assert rows.loc["rows_5", "inside"] != rows.loc["grad_cam", "inside"]


def test_published_correlations_stand_beside_ours(study: Study, root: Path) -> None:
    frame = table(study, "sensitivities")
    paper, ours = frame[frame["published"]], frame[~frame["published"]]
    assert set(RANKS[0][2:]) <= set(paper["rho"])
    assert set(ours["sensitivity"]) == {"row sum", "L2 norm", "one word"}
    assert set(ours["compared"]) <= {PAIR, SAME}
    pairs = table(study, "every_pair")
    run = Run(root)
    rows = run.maps[(run.maps["method"] == "rows_5")].set_index("question_id", drop=False)
    first, second = run.fetch(rows.loc[pairs.loc[0, ["first", "second"]]], "sensitivity")
    wanted = spearmanr(first, second).statistic
    assert pairs.loc[0, "rho row sum"] == pytest.approx(wanted, abs=1e-6)
    own = ours[(ours["compared"] == PAIR) & (ours["sensitivity"] == "row sum")]
    assert own["rho"].iloc[0] == pytest.approx(pairs["rho row sum"].mean())


def test_page_of_the_study_is_written_with_its_tables(root: Path, tmp_path: Path) -> None:
    written = document.report(root, tmp_path / "report", ("question_grad_cam",), 4, say=len)
    assert not written.failed
    found = pd.read_csv(tmp_path / "report" / "tables" / "question_grad_cam_localisation.csv")
    assert "right_low" in found.columns
    page = written.page.read_text()
    assert "On which object the map falls" in page
    assert "What is the color of the sink?" in page


def test_a_run_without_the_method_or_its_dataset_says_so(
    recipe: Recipe, root: Path, tmp_path: Path
) -> None:
    stages.run(recipe(methods={"center": {}}), tmp_path / "bare")
    (told,) = question_grad_cam(Evidence(Run(tmp_path / "bare"), QUICK)).missing
    assert "recipes/question_grad_cam.yaml" in told
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    world = root.parent / "world"
    hidden = world.rename(tmp_path / "hidden")
    world.touch()
    try:
        (told,) = question_grad_cam(Evidence(Run(copy), QUICK)).missing
    finally:
        world.unlink()
        hidden.rename(world)
    assert told.startswith("The objects' masks cannot be read from the dataset:")


def test_a_run_without_right_answers_has_no_pairs(recipe: Recipe, tmp_path: Path) -> None:
    config = nets.LSTM.model_copy(update={"answers": ("never", "ever")})
    deeper_lstm.save(deeper_lstm.untrained(config, 0), tmp_path / "lstm.safetensors")
    model = {"name": "deeper_lstm", "checkpoint": str(tmp_path / "lstm.safetensors")}
    stages.run(recipe(model=model, methods={"question_grad_cam": {"n": 4}}), tmp_path / "run")
    (told,) = question_grad_cam(Evidence(Run(tmp_path / "run"), QUICK)).missing
    assert told.startswith("No two questions of one image have one answer")


def test_recipe_has_the_papers_sweep_and_every_variant(root: Path) -> None:
    methods = read_recipe(RECIPE).methods
    own = {k: v for k, v in methods.items() if v.get("method") == "question_grad_cam"}
    rows = [v["n"] for v in own.values() if "sensitivity" not in v and "not_shared" not in v]
    assert [1024 if n == "all" else n for n in rows] == list(SWEEP)
    kinds = {(v.get("sensitivity", "row_sum"), v.get("not_shared", False)) for v in own.values()}
    assert len(kinds) == 7
    labels = [setting.label for setting in settings(Run(root))]
    assert labels[:3] == ["grad_cam", "random", "center"]


@pytest.mark.parametrize(
    ("pairs", "kinds"),
    [
        (12, {"most": [0, 1, 2], "the middle": [4, 5, 6], "least": [11, 10, 9]}),
        (5, {"most": [0, 1, 2], "least": [4, 3]}),
        (2, {"most": [0, 1]}),
    ],
)
def test_pairs_shown_are_the_ends_and_the_middle_each_once(
    pairs: int, kinds: dict[str, list[int]]
) -> None:
    inside = np.zeros((2 * pairs, 2))
    inside[:, 1] = np.linspace(1, 0, pairs).repeat(2)
    chosen = overlays.chosen_pairs(SimpleNamespace(plain=0, inside=inside), 1)  # type: ignore[arg-type]
    found: dict[str, list[int]] = {}
    for pair, note in chosen:
        found.setdefault(note.partition(":")[0], []).append(pair)
    assert found == kinds
    assert [p for p, _ in overlays.first_of_each(chosen)] == [own[0] for own in kinds.values()]
