"""A run whose cluster goes, first the connection to it, then its head, or was never there."""

import socket
from pathlib import Path
from subprocess import Popen

import pytest

from pipeline import run as stages
from tests import clusters
from tests.clusters import end, fragments, lasting, log_of, run_driver, wait_for
from tests.conftest import Recipe
from tests.runs import assert_same_run


def begin(file: Path, out: Path, address: str) -> Popen:
    """A driver that has committed something."""
    before = fragments(out)
    driver = run_driver(file, out, f"resources.address={address}")
    wait_for(lambda: fragments(out) > before or driver.poll() is not None)
    assert driver.poll() is None, log_of(out).read_text()
    return driver


def last_words(driver: Popen, out: Path) -> str:
    """The line that a driver which could not go on has ended with."""
    wait_for(lambda: driver.poll() is not None)
    said = log_of(out).read_text()
    assert driver.returncode == 2, said
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.slow
def test_lost_connection_and_lost_head_end_the_run_with_their_reason_and_it_goes_on(
    recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    file = clusters.recipe_file(lasting(recipe), tmp_path)
    with clusters.nodes(1) as cluster:
        head = cluster.address
        with cluster.client(tmp_path / "client.log") as client:
            driver = begin(file, out, client)
        assert f"The connection to {client} is lost" in last_words(driver, out)
        driver = begin(file, out, head)
        cluster.lose_head()
        assert f"Ray's head at {head} has not answered" in last_words(driver, out)
    committed = fragments(out)
    assert 2 <= len(committed) < 8
    with clusters.nodes(1) as cluster:
        driver = run_driver(file, out, f"resources.address={cluster.address}")
        assert end(driver, out) == 0
    assert committed < fragments(out)
    stages.run(lasting(recipe, "local"), tmp_path / "undisturbed")
    assert_same_run(tmp_path / "undisturbed", out)


@pytest.mark.slow
def test_address_at_which_nobody_listens_is_named_at_once(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with socket.socket() as taken:  # bound, so that nobody else is there, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = clusters.recipe_file(lasting(recipe), tmp_path)
        driver = run_driver(file, out, f"resources.address={address}")
        assert f"Nobody answers at resources.address={address}" in last_words(driver, out)
