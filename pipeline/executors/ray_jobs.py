"""A cluster's Jobs API. ``pipeline.jobs.prepare_client`` comes before the import of this module."""

import asyncio
import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from pipeline.jobs import Submission, copy_code, entrypoint, own_code, record
from schemas.config import Resources
from workers.errors import UserError

POLL = 1.0
"""Seconds between two questions about a job's status."""
STOP_SECONDS = 30.0
"""How long a job may take to end that was asked to stop."""
NEW_SECONDS = 180.0
"""How long a head that has just started, or is busy, may take until it accepts jobs."""
PROJECT = "vqatlas"
"""Key of our jobs' metadata; its value is the run's place."""
LOST = {"JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"}
"""Ray's words for a driver that went with its node."""
INTERRUPTED = 130
Say = Callable[[str], None]


class Cluster:
    """Runs as jobs of one cluster. No answer, and a token it refuses, are a ``UserError``."""

    def __init__(self, address: str) -> None:
        self.address = address
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # Ray tells of every package and connection
        with self._errors():
            self.client = JobSubmissionClient(address)

    def jobs(self) -> list[JobDetails]:
        """Ours, oldest first."""
        with self._errors():
            jobs = [job for job in self.client.list_jobs() if run_of(job)]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def find(self, name: str) -> JobDetails:
        """A job by its name; an unknown one lists those there are."""
        jobs = {job.submission_id: job for job in self.jobs()}
        if name not in jobs:
            known = ", ".join(str(job) for job in jobs) or "none"
            raise UserError(f"{self.address} has no job {name}. Its jobs of this project: {known}.")
        return jobs[name]

    def check(self, submission: Submission, resources: Resources, say: Say) -> None:
        """Refuse a second job of a run, and a worker that no machine of the cluster can hold."""
        for job in self.jobs():
            if run_of(job) == submission.out and not job.status.is_terminal():
                raise UserError(
                    f"{submission.out}: job {job.submission_id} of this run is {job.status}. "
                    f"{hints(str(job.submission_id), self.address)}"
                )
        self._check_room(resources, say)

    def _check_room(self, resources: Resources, say: Say) -> None:
        with self._errors():
            nodes = list_nodes(self.address, filters=[("state", "=", "ALIVE")], detail=True)
        gpus = 0.0 if resources.device == "cpu" else resources.gpus_per_worker or 0.0
        needs = {"CPU": float(resources.threads), "GPU": gpus}
        totals = [node.resources_total or {} for node in nodes]
        if any(all(t.get(kind, 0) >= need for kind, need in needs.items()) for t in totals):
            return
        room = "; ".join(f"{t.get('CPU', 0):g} CPU and {t.get('GPU', 0):g} GPU" for t in totals)
        wanted = f"a worker needs {needs['CPU']:g} CPU and {needs['GPU']:g} GPU"
        if any("ray.io/node-group" in (node.labels or {}) for node in nodes):
            say(f"{wanted}; no machine has them yet, so one must be started first")
            return
        raise UserError(
            f"{self.address}: {wanted}, and the cluster's machines have: {room}. Nothing would "
            "ever start. Lower resources.threads or resources.gpus_per_worker, or add a machine."
        )

    def submit(self, submission: Submission, ship: bool = True) -> str:
        """Write the plan to the run's place and start a job that carries it out; its name."""
        with self._errors():
            taken = [str(job.submission_id) for job in self.client.list_jobs()]
        job = record(submission, taken)
        with tempfile.TemporaryDirectory() as folder, self._errors():
            shipped = copy_code(Path(folder), own_code(submission)) if ship else None
            code = {"working_dir": str(shipped)} if shipped else {}
            self._send(submission, job, {**code, "env_vars": {"PYTHONUNBUFFERED": "1"}})
        return job

    def _send(self, submission: Submission, job: str, environment: dict[str, Any]) -> None:
        """Also to a head so new or busy that it cannot start jobs yet."""
        end = time.monotonic() + NEW_SECONDS
        while True:
            try:
                self.client.submit_job(
                    entrypoint=shlex.join(entrypoint(submission, job)),
                    submission_id=job,
                    runtime_env=environment,
                    metadata={PROJECT: submission.out, "sha256": submission.digest},
                )
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(POLL)

    def follow(self, name: str, say: Say, write: Say) -> JobDetails:
        """Say why a job waits, write its log as it grows, and return how it ended."""
        self._await_start(name, say)
        seen = 0
        while True:
            with self._errors():
                seen = asyncio.run(self._tail(name, seen, write))
            job = self.find(name)
            if job.status.is_terminal():
                with self._errors():
                    write(self.client.get_job_logs(name)[seen:])
                return job
            time.sleep(POLL)

    def _await_start(self, name: str, say: Say) -> None:
        said = None
        while (job := self.find(name)).status == JobStatus.PENDING:
            if job.message != said:
                say(f"{name} is pending: {job.message}")
                said = job.message
            time.sleep(POLL)

    async def _tail(self, name: str, seen: int, write: Say) -> int:
        """Write the log from its character ``seen`` on, until the job ends or the line drops;
        the characters written so far."""
        passed = 0
        try:
            async for text in self.client.tail_job_logs(name):
                write(text[max(0, seen - passed) :])
                passed += len(text)
        except (RuntimeError, OSError, ClientError):
            pass  # the line dropped: the caller asks how the job is, and calls again
        return max(seen, passed)

    def stop(self, name: str) -> JobDetails:
        """Ask a job to end and wait until it has."""
        if not (job := self.find(name)).status.is_terminal():
            with self._errors():
                self.client.stop_job(name)
        end = time.monotonic() + STOP_SECONDS
        while not (job := self.find(name)).status.is_terminal() and time.monotonic() < end:
            time.sleep(POLL)
        return job

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"{self.address} refuses the token ({_first_line(error)}). Ray looks for it in "
                "RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token; a cluster "
                "without tokens needs RAY_AUTH_MODE=disabled."
            ) from None
        except (requests.RequestException, ConnectionError, RayStateApiException) as error:
            raise UserError(
                f"{self.address}: no Ray cluster answers ({_first_line(error)}). Is its dashboard "
                "up, and the tunnel to it open (`ray dashboard cluster.yaml`)? A job that runs "
                "goes on meanwhile."
            ) from None
        except RuntimeError as error:
            last = str(error).strip().rstrip(".").splitlines()[-1]
            raise UserError(f"{self.address} refuses: {last}") from None


def run_of(job: JobDetails) -> str:
    """The run's place; empty for a job that is not ours."""
    return (job.metadata or {}).get(PROJECT, "")


def lost(job: JobDetails) -> bool:
    """Whether a job ended with its driver killed, by a signal or with its machine."""
    if job.status != JobStatus.FAILED:
        return False
    code = job.driver_exit_code
    if code is None:
        return str(getattr(job.error_type, "value", job.error_type)) in LOST
    return code < 0 or (code > 128 and code != INTERRUPTED)


def exit_status(job: JobDetails) -> int:
    """A job's end as an exit status of ours; one that never ran to its end is a ``UserError``."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return INTERRUPTED
    if job.driver_exit_code in (1, 2, INTERRUPTED):
        return job.driver_exit_code
    raise UserError(
        f"{job.submission_id} failed: {_first_line(job.message)}. What is committed is kept: "
        "submit again to go on."
    )


def hints(name: str, address: str) -> str:
    """How to follow and to stop a job."""
    command, where = "python run_pipeline.py", f"{name} --address {address}"
    return f"Follow it: {command} logs {where}   Stop it: {command} stop {where}"


def _first_line(text: object) -> str:
    lines = str(text).strip().splitlines() or ["no reason given"]
    return lines[0][:300].rstrip(".:")
