"""Whether the cluster's head still answers.

Where it does not for a minute, Ray ends the driver's process without a word.
"""

import os
import socket
import time

from workers.errors import UserError

EVERY, TIMEOUT = 5.0, 3.0
"""Seconds between two questions, and to wait for an answer."""
RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Seconds that Ray waits for a head, which one with fault tolerance needs to come back: 60 unless
this variable says otherwise, as KubeRay's does."""


class Head:
    """The cluster's control service at ``address``, ``host:port``; None where Ray Client is between
    and notices by itself."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.asked = self.answered = time.monotonic()
        self.lost = False
        self.patience = float(os.environ.get(RAYS_PATIENCE, 60)) / 2  # to end takes its time too

    def check(self) -> None:
        """Ask now and then; raise when it has been silent for too long."""
        if self.address is None or time.monotonic() - self.asked < EVERY:
            return
        self.asked = time.monotonic()
        if answers(self.address):
            self.answered = time.monotonic()
        silent = time.monotonic() - self.answered
        self.lost = silent > self.patience
        if self.lost:
            raise UserError(
                f"Ray's head at {self.address} has not answered for {silent:.0f} s, and without it "
                "no worker can be started. What is committed stays: start the head and give the "
                "same command again."
            )


def answers(address: str) -> bool:
    """Whether somebody listens at ``host:port``."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT):
            return True
    except OSError:
        return False
