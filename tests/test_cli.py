"""The command line as a person meets it: messages, exit statuses, pictures."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import run as stages
from pipeline.cli import main
from schemas.config import RunConfig
from tests.conftest import Recipe
from tests.runs import hear_interrupts
from workers import catalog

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    stdout: str
    stderr: str
    returncode: int


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process, which spares it the start-up of PyTorch."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["run_pipeline.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capfd.readouterr()
        return Answer(printed.out, printed.err, int(exit_.value.code or 0))

    return run


def process(*arguments: str | Path) -> Answer:
    """Run a command as a person does."""
    command = [sys.executable, "run_pipeline.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return Answer(done.stdout, done.stderr, done.returncode)


def written(config: RunConfig, folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**config.model_dump(mode="json"), **changes}))
    return path


def test_help_names_every_command(call: Call) -> None:
    text = call("--help").stdout
    for command in (
        "plan",
        "check-model",
        "run",
        "evaluate",
        "status",
        "failures",
        "sheet",
        "explain",
        "demo",
    ):
        assert command in text


def test_recipe_that_is_missing_lists_the_recipes(call: Call) -> None:
    result = call("plan", "nowhere.yaml")
    assert result.returncode == 2
    known = sorted(f"recipes/{path.name}" for path in (REPOSITORY / "recipes").glob("*.yaml"))
    assert "recipes/demo.yaml" in known
    assert result.stderr == (
        f"error: nowhere.yaml: no such recipe. Recipes in recipes/: {', '.join(known)}.\n"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "colour=red",
            "colour: unknown key. Known here: dataset, model, methods, metrics, targets, "
            "precision, seed, limits, store, resources.",
        ),
        (
            "store.shards=3",
            "store.shards: unknown key. Known here: shard_size, pixel_dtype.",
        ),
        (
            "store.shard_size=many",
            "store.shard_size: Input should be a valid integer, unable to parse string as an "
            "integer, not 'many'.",
        ),
        (
            "resources.executor=slurm",
            "resources.executor: Input should be 'local' or 'ray', not 'slurm'.",
        ),
    ],
)
def test_recipe_with_a_mistake_is_explained(call: Call, override: str, message: str) -> None:
    result = call("plan", "recipes/demo.yaml", "--set", override)
    assert result.returncode == 2
    assert result.stderr == f"error: recipes/demo.yaml:\n{message}\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "methods.occlusion.gird=8",
            "methods.occlusion.gird: unknown key. Known here: ",
        ),
        (
            "methods.guessing.samples=8",
            "methods.guessing: unknown name 'guessing'. Available: occlusion, saliency, ",
        ),
        ("dataset=coco", "dataset: unknown name 'coco'. Available: shapes, vqa, "),
        ("model=gpt", f"model: unknown name 'gpt'. Available: {', '.join(catalog.MODELS)}."),
        ("metrics.auc.side=3", "metrics.auc: unknown name 'auc'. Available: rank_correlation, "),
    ],
)
def test_recipe_with_an_unknown_name_lists_the_known_ones(
    call: Call, override: str, message: str, recipe: Recipe, tmp_path: Path
) -> None:
    result = call("plan", written(recipe(), tmp_path), "--set", override)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")


def test_override_without_equals_says_how(call: Call, recipe: Recipe, tmp_path: Path) -> None:
    result = call("plan", written(recipe(), tmp_path), "--set", "store.shard_size")
    assert result.stderr == (
        "error: --set store.shard_size: write it as key=value, for instance store.shard_size=8\n"
    )


def test_plan_prints_what_a_run_would_cost(call: Call, recipe: Recipe, tmp_path: Path) -> None:
    result = call("plan", written(recipe(), tmp_path))
    assert result.returncode == 0, result.stderr
    for text in ("24 questions on 8 images", "4 to do of 4", "estimated time", "MiB", "workers"):
        assert text in result.stdout


def test_run_evaluate_status_tell_what_was_done(call: Call, recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(methods={"attention": {}}, resources={"executor": "ray", "workers": 2})
    out = tmp_path / "run"
    ran = process("run", written(config, tmp_path), "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "24/24 examples" in ran.stdout
    assert "raylet" not in ran.stdout + ran.stderr
    assert ran.stderr == ""
    evaluated = call("evaluate", out)
    assert "VQA accuracy" in evaluated.stdout
    assert "shuffled_human" in evaluated.stdout
    assert evaluated.returncode == 0, evaluated.stderr
    status = call("status", out)
    assert "24 examples on 8 images, 4 shards; 0 failed; 24 evaluated" in status.stdout


def test_run_that_leaves_records_out_says_so_and_offers_no_retry(
    call: Call, recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(sorted((world / "val2014").glob("*.png"))[0].read_bytes())
    good = {"image_id": 1, "file": "a.png", "question": "what color is the circle?"}
    (tmp_path / "q.json").write_text(json.dumps([good, 4, "x"]))
    dataset = {"name": "photos", "root": str(tmp_path), "questions": "q.json", "skip_bad": True}
    path = written(recipe(methods={"center": {}}, dataset=dataset), tmp_path)
    result = call("run", path, "--out", tmp_path / "run")
    assert result.returncode == 1
    assert "2 records of the dataset were left out. See them: python run_pipeline.py failures" in (
        result.stdout
    )
    assert "examples failed" not in result.stdout


def test_run_with_failures_exits_with_one_and_says_what_to_do(
    call: Call, recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    root = tmp_path / "world"
    subprocess.run(["cp", "-r", str(world), str(root)], check=True)
    image = sorted((root / "val2014").glob("*.png"))[0]
    whole = image.read_bytes()
    image.write_bytes(whole[:300])
    dataset = {"name": "shapes", "root": str(root), "scenes": 8, "seed": 3}
    config = recipe(methods={"attention": {}}, dataset=dataset)
    path, out = written(config, tmp_path), tmp_path / "run"
    result = call("run", path, "--out", out)
    assert result.returncode == 1
    assert "3 examples failed. See them: python run_pipeline.py failures" in result.stdout
    seen = call("failures", out)
    assert "decode" in seen.stdout
    assert "3 of 3" in seen.stdout
    image.write_bytes(whole)
    (advice,) = re.findall(r"Retry them: python run_pipeline.py (.*)", result.stdout)
    retried = call(*advice.split())
    assert retried.returncode == 0, retried.stderr
    assert "retry  3/3 examples" in retried.stdout
    assert call("status", out).returncode == 0


def test_run_interrupted_says_so_and_goes_on(call: Call, recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = recipe(
        methods={"occlusion": {"grid": 24}},
        store={"shard_size": 3},
        resources={"executor": "local", "engine": "plain"},
    )
    path = written(config, tmp_path)
    command = [sys.executable, "run_pipeline.py", "run", str(path), "--out", str(out)]
    driver = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    while driver.poll() is None and not list((out / "maps").glob("part-*.parquet")):
        time.sleep(0.01)
    driver.send_signal(signal.SIGINT)
    _, error = driver.communicate(timeout=60)
    assert driver.returncode == 130, error
    assert "explain interrupted at " in error
    assert "the same command goes on from there." in error
    assert "Traceback" not in error
    again = call("run", path, "--out", out)
    assert again.returncode == 0
    assert "24/24" not in again.stdout


def test_status_of_a_folder_that_is_no_run_is_an_error(call: Call, tmp_path: Path) -> None:
    result = call("status", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path} is not a run: it has no run.json.")


def test_explain_writes_a_picture_and_prints_the_answer(
    call: Call, world: Path, tmp_path: Path
) -> None:
    image = sorted((world / "val2014").glob("*.png"))[0]
    question = "what color is the circle?"
    out = tmp_path / "sheet.png"
    result = call("explain", "--image", image, "--question", question, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "% sure" in result.stdout
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def test_explain_names_the_words_that_the_model_does_not_know(
    call: Call, world: Path, tmp_path: Path
) -> None:
    image = sorted((world / "val2014").glob("*.png"))[0]
    arguments = ("--image", image, "--method", "attention", "--out", tmp_path / "x.png")
    result = call("explain", *arguments, "--question", "what color is teh circle?")
    assert "not in the model's vocabulary: 'teh'\n" in result.stdout
    clean = call("explain", *arguments, "--question", "what color is the circle?")
    assert "vocabulary" not in clean.stdout


def test_explain_of_an_answer_outside_the_vocabulary_lists_close_ones(
    call: Call, world: Path, tmp_path: Path
) -> None:
    image = sorted((world / "val2014").glob("*.png"))[0]
    result = call(
        "explain", "--image", image, "--question", "what color is the circle?",
        "--answer", "redd", "--out", tmp_path / "x.png",
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: answer 'redd' is not among the model's ")
    assert "the closest are red" in result.stderr


@pytest.mark.parametrize("out", ["x.txt", "folder.png"])
def test_explain_refuses_what_is_no_pictures_file_before_the_work(
    call: Call, out: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = call("explain", "--image", "none.png", "--question", "what?", "--out", tmp_path / out)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path / out}: a picture's file ends in .png")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "error: question '' has 0 words, at least 1 is needed; ask something\n"),
        (
            "zyx wvu",
            "error: question 'zyx wvu' has none of its 2 words in the model's vocabulary; "
            "ask in words the model was trained on\n",
        ),
    ],
)
def test_explain_of_a_question_it_cannot_read_says_why(
    call: Call, question: str, message: str, world: Path, tmp_path: Path
) -> None:
    image = sorted((world / "val2014").glob("*.png"))[0]
    out = tmp_path / "x.png"
    result = call("explain", "--image", image, "--question", question, "--out", out)
    assert (result.returncode, result.stderr) == (2, message)
    assert not out.exists()


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_run_where_no_folder_can_be_says_so(
    call: Call, recipe: Recipe, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("a file")
    result = call("run", written(recipe(), tmp_path), "--out", tmp_path / place)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {tmp_path / place}: no run can be made there: Not a directory. "
        "Choose another --out.\n"
    )


def test_run_of_no_question_names_the_files(call: Call, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text("[]")
    dataset = {"name": "photos", "root": str(tmp_path), "questions": "q.json"}
    result = call("plan", written(recipe(dataset=dataset), tmp_path))
    assert result.returncode == 2
    assert f"dataset photos: no example is left of {tmp_path} with" in result.stderr
    assert "'questions': 'q.json'" in result.stderr


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("evaluate", "methods=[grad_cam]"),
        ("evaluate", "model=other"),
        ("evaluate", "targets=[truth]"),
        ("evaluate", "seed=1"),
        ("evaluate", "resourcesful=1"),
        ("retry", "methods.center.sigma=2"),
        ("retry", "metrics={}"),
    ],
)
def test_what_a_run_was_made_with_is_not_overridden_later(
    call: Call, recipe: Recipe, tmp_path: Path, command: str, override: str
) -> None:
    out = tmp_path / "run"
    stages.run(recipe(methods={"center": {}}), out)
    result = call(command, out, "--set", override)
    assert result.returncode == 2
    assert f"--set {override}: `{command}` works on maps that are there" in result.stderr
    assert "It takes resources, limits, dataset.root" in result.stderr


def test_demo_runs_everything_and_says_what_next(call: Call, tmp_path: Path) -> None:
    """`make demo` on four scenes and a coarse grid, in this process."""
    small = ["dataset.scenes=4", f"dataset.root={tmp_path / 'world'}", "methods.occlusion.grid=4"]
    overrides = [part for o in [*small, "resources.executor=local"] for part in ("--set", o)]
    out = tmp_path / "run"
    first = call("demo", "--out", out, *overrides)
    assert first.returncode == 0, first.stderr
    for text in (
        "VQA accuracy",
        "target: predicted",
        "Where it is",
        "What next",
        "explain --image",
    ):
        assert text in first.stdout
    with Image.open(out / "sheet.png") as picture:
        assert picture.width > 1000
    second = call("demo", "--out", out, *overrides)
    assert second.stdout.count("nothing to do, everything is done already") == 2
