"""Preparing ahead changes nothing but when."""

import threading

import pytest

from workers.ahead import ahead


@pytest.mark.parametrize("depth", [0, 1, 3, 9])
def test_items_come_in_order_with_their_own_results(depth: int) -> None:
    assert list(ahead(range(5), lambda i: i * i, depth)) == [(i, i * i) for i in range(5)]


def test_at_most_depth_items_are_prepared_before_they_are_wanted() -> None:
    prepared: list[int] = []
    two_ahead = threading.Event()

    def prepare(item: int) -> None:
        prepared.append(item)
        if item == 2:
            two_ahead.set()

    stream = ahead(range(9), prepare, 2)
    next(stream)
    assert two_ahead.wait(60)
    stream.close()
    assert prepared == [0, 1, 2]


def test_preparation_runs_beside_the_work() -> None:
    stream = ahead(range(2), lambda _: threading.get_ident(), 1)
    assert next(stream)[1] != threading.get_ident()
    stream.close()


@pytest.mark.parametrize("depth", [0, 2])
def test_what_preparation_raises_is_raised_at_its_item(depth: int) -> None:
    stream = ahead([2, 1, 0], lambda i: 1 // i, depth)
    assert [next(stream), next(stream)] == [(2, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(stream)
