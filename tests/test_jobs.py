"""Runs as jobs of a real Ray cluster: a head of this module's own, with a token."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from pipeline.cli import main
from pipeline.dataset import Run
from pipeline.executors.environment import prepare
from pipeline.jobs import SHIPPED, Submission, copy_code, read_submission, record, run_name
from tests.conftest import Recipe
from tests.runs import hear_interrupts
from tests.test_cli import REPOSITORY, Answer
from workers.errors import UserError

if TYPE_CHECKING:
    from pipeline.executors.ray_jobs import JobDetails

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated"),  # as Ray calls aiohttp
]
Call = Callable[..., Answer]
METHODS = {"attention": {}, "saliency": {}}
ENDLESS = "methods.rise={masks: 200000}"
PATIENCE = 120.0
"""Seconds after which a test gives up on what it waits for."""


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


# --- the cluster ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the head and of client processes: a home of their own and this process's token, which
    Ray reads once, when it is imported: so this module's tests import it themselves."""
    prepare(address=None)
    own = {"HOME": str(tmp_path_factory.mktemp("home")), "RAY_AUTH_MODE": "token"}
    own["RAY_memory_monitor_refresh_ms"] = "0"  # others on this machine may need memory too
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **own}


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    """The dashboard of a head with one CPU and no GPU."""
    port = free_port()
    # Ray's sockets lie in the temporary folder, and a socket's path has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(_start(port, folder), env=environment, stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: head.poll() is not None or _nodes(port))
            assert head.poll() is None, "the head has ended"
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(head)


def _start(port: int, folder: str) -> list[str | Path]:
    ray = Path(sys.executable).parent / "ray"
    what = ["--head", "--block", "--port=0", "--num-cpus=1", "--num-gpus=0", "--temp-dir", folder]
    dashboard = ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    # by default agents of all clusters of a machine want one port, and one without takes no jobs
    agent = f"--dashboard-agent-listen-port={free_port()}"
    return [ray, "start", *what, *dashboard, agent, "--object-store-memory=100000000"]


def _nodes(port: int) -> bool:
    """Whether the head's dashboard answers and its node has registered."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        return bool(list_nodes(f"http://127.0.0.1:{port}"))
    except RayStateApiException:
        return False


def _end(head: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait()
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=PATIENCE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process, which spares it the start-up of PyTorch."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["run_pipeline.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capfd.readouterr()
        return Answer(printed.out, printed.err, int(exit_.value.code or 0))

    return run


@pytest.fixture
def written(recipe: Recipe, tmp_path: Path) -> Path:
    """A small recipe's file; one worker beside the job's driver."""
    config = recipe(methods=METHODS, resources={"executor": "ray", "workers": 1})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


# --- runs ----------------------------------------------------------------------------------------


def drivers(out: Path) -> list[psutil.Process]:
    """Processes that carry out a run's submitted plans."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(part.startswith(f"{out}/submitted/") for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill_driver(out: Path) -> None:
    """SIGKILL to the driver as soon as its run exists."""
    wait_for((out / "run.json").exists)
    for driver in drivers(out):
        driver.kill()


def find(address: str, job: str) -> "JobDetails":
    from pipeline.executors.ray_jobs import Cluster

    return Cluster(address).find(job)


def test_driver_that_is_killed_is_submitted_again_and_the_run_finishes(
    address: str, call: Call, written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "atlas"
    killer = threading.Thread(target=kill_driver, args=(out,))
    killer.start()
    result = call("submit", written, "--out", out, "--address", address, "--retries", "1")
    killer.join()
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"atlas-1 has lost its driver .exit code (-9|137).", result.stdout)
    assert f"logs atlas-2 --address {address}" in result.stdout
    assert result.stdout.count("explain  24/24 examples in") == 1
    assert "atlas-2: SUCCEEDED, exit status 0" in result.stdout
    maps = Run(out).maps
    assert set(maps.method) == {"attention", "saliency", "random", "center"}
    assert maps.question_id.nunique() == 24
    assert (maps.status == "ok").all()
    job = find(address, "atlas-2")
    assert (job.runtime_env or {})["working_dir"].startswith("gcs://")

    again = call("submit", written, "--out", out, "--address", address, "--evaluate")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to do, everything is done already" in again.stdout
    assert set(Run(out).metrics.metric) >= {"rank_correlation", "ty_iou", "ty_f1"}


def test_run_that_cannot_work_ends_with_the_status_of_its_job(
    address: str, call: Call, written: Path, tmp_path: Path
) -> None:
    """With the installed package in place of a copy of this one."""
    bad = ["--set", "model.checkpoint=/nowhere/tiny.safetensors", "--no-ship"]
    result = call("submit", written, "--out", tmp_path / "bad", "--address", address, *bad)
    assert result.returncode == 2
    assert "/nowhere/tiny.safetensors" in result.stdout
    assert "bad-1: FAILED, exit status 2" in result.stdout
    assert "bad-2" not in result.stdout
    assert "working_dir" not in (find(address, "bad-1").runtime_env or {})
    assert call("logs", "bad-1", "--address", address).returncode == 2


def test_running_job_is_refused_a_second_time_followed_left_and_stopped(
    address: str, call: Call, written: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "long"
    command = ["submit", written, "--out", out, "--address", address, "--set", ENDLESS]
    started = call(*command, "--no-follow")
    assert started.returncode == 0
    assert f"submitted long-1: {out}" in started.stdout
    second = call(*command)
    assert second.returncode == 2
    assert re.search(rf"{out}: job long-1 of this run is (PENDING|RUNNING)", second.stderr)
    assert f"Stop it: python run_pipeline.py stop long-1 --address {address}" in second.stderr

    left = _interrupted_logs("long-1", address, environment)
    assert left.returncode == 130
    assert "not following any more; long-1 goes on" in left.stderr
    assert find(address, "long-1").status == "RUNNING"

    assert "long-1: STOPPED" in call("stop", "long-1", "--address", address).stdout
    wait_for(lambda: not drivers(out))
    assert re.search(r"long-1\s+STOPPED", call("jobs", "--address", address).stdout)
    assert call("logs", "long-1", "--address", address).returncode == 130


def _interrupted_logs(job: str, address: str, environment: dict[str, str]) -> Answer:
    """``logs`` with a Ctrl-C once the job's log has arrived."""
    command = [sys.executable, "run_pipeline.py", "logs", job, "--address", address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = {"cwd": REPOSITORY, "env": environment, "preexec_fn": hear_interrupts}
    with subprocess.Popen(command, **options, **pipes) as logs:  # type: ignore[call-overload]
        head = logs.stdout.readline()
        wait_for(lambda: "to explain: 24 examples" in logs.stdout.readline())
        logs.send_signal(signal.SIGINT)
        rest, errors = logs.communicate()
    return Answer(head + rest, errors, logs.returncode)


def test_worker_that_no_machine_can_hold_is_refused(
    address: str, call: Call, written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gpu"
    options = ["--set", "resources.gpus_per_worker=1"]
    result = call("submit", written, "--out", out, "--address", address, *options)
    assert result.returncode == 2
    assert "a worker needs 1 CPU and 1 GPU, and the cluster's machines have: 1 CPU and 0 GPU" in (
        result.stderr
    )
    assert not out.exists()


def test_job_that_is_unknown_lists_the_known_ones(address: str, call: Call) -> None:
    result = call("stop", "nobody-7", "--address", address)
    assert result.returncode == 2
    assert f"error: {address} has no job nobody-7. Its jobs of this project:" in result.stderr


def test_wrong_token_is_one_line_that_says_where_a_token_is_looked_for(
    address: str, environment: dict[str, str]
) -> None:
    command = [sys.executable, "run_pipeline.py", "jobs", "--address", address]
    wrong = {**environment, "RAY_AUTH_TOKEN": "f" * 64}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=wrong, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {address} refuses the token")
    for place in ("RAY_AUTH_TOKEN,", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"):
        assert place in line


def test_address_where_nothing_answers_is_one_line(call: Call) -> None:
    result = call("jobs", "--address", f"http://127.0.0.1:{free_port()}")
    assert result.returncode == 2
    assert "no Ray cluster answers" in result.stderr
    assert result.stderr.count("\n") == 1


# --- what is refused before a cluster is asked ---------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "runs/x"], "--out runs/x: a job runs in a temporary folder"),
        (["--out", "gs://b/x"], "gs:// is not known"),
        (["--set", "dataset.root=data"], "dataset.root: data is relative to a folder of this"),
        (["--set", "model.checkpoint=a.safetensors"], "--set model.checkpoint=/..."),
        (["--set", "resources.executor=local"], "Add --set resources.executor=ray"),
        (["--set", "resources.address=10.0.0.1:6379"], "leave resources.address out"),
        (["--address", "10.0.0.1:8265"], "give the dashboard's URL, for instance http://"),
    ],
)
def test_what_a_cluster_would_misunderstand_is_refused(
    options: list[str], message: str, call: Call, written: Path, tmp_path: Path
) -> None:
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    result = call("submit", written, *out, *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


# --- plans, names and code -----------------------------------------------------------------------


def plan(out: Path | str) -> Submission:
    return Submission(out=str(out), recipe={"seed": 1})


def test_plan_is_read_back_by_its_place_and_digest(tmp_path: Path) -> None:
    job = record(plan(tmp_path), taken=[])
    place = f"{tmp_path}/submitted/{job}.json"
    assert read_submission(place, plan(tmp_path).digest) == plan(tmp_path)
    Path(place).write_text(Path(place).read_text().replace("1", "2"))
    with pytest.raises(UserError, match=r"changed since; submit again"):
        read_submission(place, plan(tmp_path).digest)
    with pytest.raises(UserError, match=r"no such plan on this machine.*shares"):
        read_submission(f"{tmp_path}/submitted/none-1.json", "0")


def test_job_takes_the_first_name_free_on_the_cluster_and_in_the_run(tmp_path: Path) -> None:
    out = tmp_path / "atlas"
    assert record(plan(out), taken=["atlas-2-1", "other-9", "raysubmit_atlas-5"]) == "atlas-1"
    assert record(plan(out), taken=[]) == "atlas-2"
    assert record(plan(out), taken=["atlas-7"]) == "atlas-8"


@pytest.mark.parametrize(
    ("out", "name"),
    [("/data/vqa", "vqa"), ("s3://bucket/a/vqa v2/", "vqa-v2"), ("s3://bucket", "bucket")],
)
def test_run_is_named_by_the_last_part_of_its_place(out: str, name: str) -> None:
    assert run_name(out) == name


def test_code_that_is_shipped_is_the_package_alone(tmp_path: Path) -> None:
    copy_code(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(SHIPPED)
    assert (tmp_path / "workers" / "models" / "weights").is_dir()
    assert not list(tmp_path.rglob("__pycache__"))


def test_code_above_the_limit_is_refused_with_its_largest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.LIMIT", 100_000)
    with pytest.raises(UserError, match=r"the limit is 100,000. The largest file is workers/.*"):
        copy_code(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "error", "is_lost", "ends"),
    [
        ("SUCCEEDED", 0, None, False, 0),
        ("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR", False, 1),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", False, 2),
        ("FAILED", 130, "JOB_ENTRYPOINT_COMMAND_ERROR", False, 130),
        ("STOPPED", None, None, False, 130),
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", True, None),
        ("FAILED", 137, "JOB_ENTRYPOINT_COMMAND_ERROR", True, None),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", True, None),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", False, None),
    ],
)
def test_end_of_a_job_as_exit_status(
    status: str, code: int | None, error: str | None, is_lost: bool, ends: int | None
) -> None:
    from pipeline.executors.ray_jobs import JobDetails, exit_status, lost

    job = JobDetails(
        type="SUBMISSION",
        submission_id="a-1",
        status=status,
        entrypoint="x",
        driver_exit_code=code,
        error_type=error,
        message="the reason.",
    )
    assert lost(job) == is_lost
    if ends is None:
        with pytest.raises(UserError, match=r"a-1 failed: the reason. What is committed is kept"):
            exit_status(job)
    else:
        assert exit_status(job) == ends
