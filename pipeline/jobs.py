"""A run as a job of a Ray cluster: what is sent there and under which name.

The plan is written to the run's own place first, and the job is given where it lies and its digest:
nothing of a recipe, and no secret, is on a command line that a dashboard shows.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import pipeline
from schemas.base import Frozen
from schemas.config import Resources, RunConfig
from workers.errors import UserError
from workers.objects import open_objects

SHIPPED = ("schemas", "workers", "pipeline")
"""The folders a job needs: no tests, runs, caches or history."""
LIMIT = 20 * 2**20
"""Bytes of code that may be shipped; Ray itself refuses 100 MiB with an HTTP 413."""
FOLDER = "submitted"


class Submission(Frozen):
    """``RUN/submitted/<job>.json``: what a job is to do."""

    out: str
    recipe: dict[str, Any]
    """Overrides applied, paths absolute."""
    retry_failed: bool = False
    evaluate: bool = False
    """Score the maps against human maps when they are done."""

    @property
    def data(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(indent=2).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def prepare_client(address: str) -> None:
    """Before ``import ray``: a token is sent where the user has one, and the address asked for is
    not replaced by the one that a job or a shell has in its environment."""
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: give the dashboard's URL, for instance http://127.0.0.1:8265 "
            "(`ray dashboard cluster.yaml` opens a tunnel there)."
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_API_SERVER_ADDRESS"] = address


def make_submission(
    recipe: Path, overrides: Sequence[str], out: str, retry_failed: bool, evaluate: bool
) -> Submission:
    """The plan of a job, refused where its paths would mean another place on the cluster."""
    from pipeline.recipe import override, read_recipe  # and PyTorch, which other commands spare
    from workers import catalog

    config = read_recipe(recipe, overrides)
    catalog.dataset(config.dataset)
    check_out(out)
    _check_paths(override(yaml.safe_load(recipe.read_text()), overrides))
    config = config.model_copy(update={"resources": _on_cluster(config.resources)})
    return Submission(
        out=out.rstrip("/"),
        recipe=config.model_dump(mode="json"),
        retry_failed=retry_failed,
        evaluate=evaluate,
    )


def check_out(out: str) -> None:
    """Refuse a relative place, and one of an unknown kind."""
    open_objects(out)
    if "://" not in out and not Path(out).is_absolute():
        raise UserError(
            f"--out {out}: a job runs in a temporary folder of another machine, where a relative "
            "path is lost with the job. Give s3://bucket/prefix, or an absolute path of a folder "
            "that this machine and the whole cluster share."
        )


def _check_paths(data: dict[str, Any]) -> None:
    from pipeline.recipe import FOLDERS, PATHS, is_folder

    for section, key in (*PATHS, *FOLDERS):
        options = data.get(section)
        value = options.get(key) if isinstance(options, dict) else None
        path = isinstance(value, str) and ((section, key) in PATHS or is_folder(value))
        if path and "://" not in str(value) and not Path(str(value)).is_absolute():
            raise UserError(
                f"{section}.{key}: {value} is relative to a folder of this machine, and the "
                f"cluster has another. Give the path on the cluster: --set {section}.{key}=/..."
            )


def _on_cluster(resources: Resources) -> Resources:
    if resources.executor != "ray":
        raise UserError(
            f"resources.executor: {resources.executor} would do all the work in the job's driver. "
            "Add --set resources.executor=ray."
        )
    if resources.address not in (None, "auto"):
        raise UserError(
            f"resources.address: {resources.address} is another cluster than --address. A job "
            "uses the cluster it runs on: leave resources.address out."
        )
    return resources.model_copy(update={"address": "auto"})


def run_name(out: str) -> str:
    """The last part of a run's place, as it can stand in a job's name."""
    last = out.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", last) or "run"


def record(submission: Submission, taken: Iterable[str]) -> str:
    """Write a plan under the first free ``<run>-<attempt>``, which is the job's name.

    ``taken`` are names the cluster knows; a fresh cluster knows none, the run's place the rest.
    """
    objects, name = open_objects(submission.out), run_name(submission.out)
    mine = [key.removesuffix(".json") for key in objects.names(FOLDER)]
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    numbers = [int(m[1]) for job in (*taken, *mine) if (m := pattern.fullmatch(job))]
    job = f"{name}-{max(numbers, default=0) + 1}"
    if not objects.put_new(f"{FOLDER}/{job}.json", submission.data):
        raise UserError(
            f"{submission.out}: somebody else submits {job} at this moment. `python "
            "run_pipeline.py jobs` tells how it went."
        )
    return job


def read_submission(place: str, digest: str) -> Submission:
    """A job's plan, by the place and digest it was given."""
    out, _, name = place.rpartition(f"/{FOLDER}/")
    try:
        data = open_objects(out).read(f"{FOLDER}/{name}")
    except FileNotFoundError:
        raise UserError(
            f"{place}: no such plan on this machine. The run's place must be one that the "
            "cluster shares with the machine that submits: a mounted folder, or s3://."
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise UserError(
            f"{place}: its SHA-256 is {found}, and the job was sent with {digest}. It has been "
            "changed since; submit again."
        )
    try:
        return Submission.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{place}: another version wrote it: {error}") from None


def submitted_config(submission: Submission) -> RunConfig:
    """The recipe of a job's plan."""
    return RunConfig.model_validate(submission.recipe)


def resources(submission: Submission) -> list[str]:
    """A plan's resources as overrides of a run that other resources began."""
    given = submission.recipe["resources"]
    return [f"resources.{key}={json.dumps(value)}" for key, value in given.items()]


def entrypoint(submission: Submission, job: str) -> list[str]:
    """The job's command line."""
    place = f"{submission.out}/{FOLDER}/{job}.json"
    return ["python", "-m", "pipeline", "submitted", place, "--sha256", submission.digest]


def own_code(submission: Submission) -> Path | None:
    """The module or package of a model of one's own, where it lies in the working directory; one
    that is installed must be installed on the cluster too."""
    target = submission.recipe["model"].get("target")
    if submission.recipe["model"]["name"] != "python" or not isinstance(target, str):
        return None
    top = Path.cwd() / target.partition(":")[0].partition(".")[0]
    return next((path for path in (top, top.with_suffix(".py")) if path.exists()), None)


def copy_code(folder: Path, own: Path | None = None) -> Path:
    """The code a job runs, ``own`` beside it, copied to ``folder``; refused above ``LIMIT``."""
    root = Path(pipeline.__file__).parents[1]
    for source in (*(root / name for name in SHIPPED), *([own] if own else [])):
        if source.is_file():
            shutil.copy(source, folder)
        else:
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source, folder / source.name, ignore=ignored)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if (total := sum(sizes.values())) > LIMIT:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"The code to ship has {total:,} bytes, the limit is {LIMIT:,}. The largest file is "
            f"{largest.relative_to(folder)} ({sizes[largest]:,} bytes): move it elsewhere, or "
            "install the package on the cluster and use --no-ship."
        )
    return folder
