"""The next items are prepared in a thread while the present one is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item], prepare: Callable[[Item], Result], depth: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with ``prepare(item)``, in order, at most ``depth`` of them before they are wanted;
    with 0 each is prepared when it is its turn. What ``prepare`` raises is raised there, and
    what has not been begun by then is left."""
    if depth == 0:
        yield from ((item, prepare(item)) for item in items)
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(prepare, item)))
                if len(waiting) > depth:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(cancel_futures=True)
