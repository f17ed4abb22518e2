"""Ray's environment variables, which it reads when it is imported and not again."""

import os
import secrets


def prepare(address: str | None) -> None:
    """Before ``import ray``. A cluster of our own gets a token of its own: its ports are open to
    the network, and whoever reaches them could run code. Another's cluster keeps its user's."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
