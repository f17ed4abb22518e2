"""A real S3 server on a port of its own, and a bucket in it."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import create_backend_app
from moto.server import ThreadedMotoServer

BUCKET = "vqatlas"


@contextmanager
def served() -> Iterator[str]:
    """The endpoint of a server that keeps its objects in memory, with an empty bucket.

    Until it ends the environment says how to reach it, for this process and those it starts.
    """
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    assert server._server is not None
    # one service's application: to find out which is meant takes as long as to answer
    server._server.app = conditions_in_turn(create_backend_app("s3"))
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            reach(patch, f"http://{host}:{port}")
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield os.environ["AWS_ENDPOINT_URL"]
    finally:
        server.stop()


def conditions_in_turn(app: Callable[..., Any]) -> Callable[..., Any]:
    """The server with conditional writes as S3 has them: it looks whether there is an object and
    puts one in two steps, between which another thread of it can do the same."""
    turn = threading.Lock()

    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return app(environ, start_response)
        with turn:
            return app(environ, start_response)

    return wrapped


def reach(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point the environment at a server."""
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "tester")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
