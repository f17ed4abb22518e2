"""A real S3 server on a port of its own, and a bucket in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "vqatlas"


@contextmanager
def served() -> Iterator[str]:
    """The endpoint of a server that keeps its objects in memory, with an empty bucket.

    Until it ends the environment says how to reach it, for this process and those it starts.
    """
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            reach(patch, f"http://{host}:{port}")
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield os.environ["AWS_ENDPOINT_URL"]
    finally:
        server.stop()


def reach(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point the environment at a server."""
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "tester")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
