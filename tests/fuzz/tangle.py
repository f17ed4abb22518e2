"""Parsed JSON that was a real file once: wrong types, absurd values, missing and foreign keys."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]
NUMBERS = (-1, 0, 1, 3, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400)
FLOATS = (float("nan"), float("inf"), float("-inf"), -0.0, 0.5, 1e308, 5e-324)
TEXTS = (
    "",
    " ",
    "a" * 5_000,
    "\0",
    "\x1b[31m\r\n",
    "\ud800",
    "\u202e\u0301",
    "../../../etc/passwd",
    "/etc/passwd",
    "~",
    "nan",
    "%s{0}",
    "[red]",
    "a/b",
    ".",
    "..",
    "yes",
    "name",
)
DEEP = (10, 300, 3_000)
"""Levels of nesting; the last is deeper than any recursive reader goes."""


class Deep:
    """A place where the written file is nested so many levels deep."""

    def __init__(self, levels: int, opening: str) -> None:
        self.levels, self.opening = levels, opening

    def __str__(self) -> str:
        closing = "]" if self.opening == "[" else "}"
        return self.opening * self.levels + "1" + closing * self.levels


def odd() -> st.SearchStrategy:
    """A value nobody expects."""
    return st.one_of(
        st.sampled_from((None, True, False, [], {}, [[]], [None], {"": None}, {"name": "x"})),
        st.sampled_from(NUMBERS),
        st.sampled_from(FLOATS),
        st.sampled_from(TEXTS),
        st.text(max_size=8),
        st.integers(),
        st.builds(Deep, st.sampled_from(DEEP), st.sampled_from(("[", '{"a":'))),
        st.lists(st.sampled_from((1, "a", None)), max_size=3),
    )


@st.composite
def tangled(draw: Draw, seeds: Sequence[Any], keys: Sequence[str] = ()) -> Any:
    """One of the seeds with one to four places changed; ``keys`` mean something there."""
    root = {"": copy.deepcopy(draw(st.sampled_from(seeds)))}
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(root))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        draw(st.sampled_from(CHANGES))(draw, parent, key, keys)
    return root.get("")


def written(value: Any) -> str:
    """JSON text, with what JSON forbids: NaN, lone surrogates, and nesting beyond any stack."""
    deep: list[Deep] = []

    def mark(item: Any) -> str:
        deep.append(item)
        return f"<deep {len(deep) - 1}>"

    text = json.dumps(value, default=mark)
    for i, item in enumerate(deep):
        text = text.replace(f'"<deep {i}>"', str(item))
    return text


def _places(parent: Any) -> Any:
    for key in range(len(parent)) if isinstance(parent, list) else list(parent):
        yield parent, key
        if isinstance(parent[key], list | dict):
            yield from _places(parent[key])


def _replace(draw: Draw, parent: Any, key: Any, keys: Sequence[str]) -> None:
    parent[key] = draw(odd())


def _remove(draw: Draw, parent: Any, key: Any, keys: Sequence[str]) -> None:
    del parent[key]


def _wrap(draw: Draw, parent: Any, key: Any, keys: Sequence[str]) -> None:
    parent[key] = draw(st.sampled_from(([parent[key]], {"a": parent[key]}, {"name": parent[key]})))


def _add(draw: Draw, parent: Any, key: Any, keys: Sequence[str]) -> None:
    inside = parent[key]
    if isinstance(inside, dict):
        inside[draw(st.sampled_from(keys) if keys else st.sampled_from(TEXTS))] = draw(odd())
    elif isinstance(inside, list):
        inside.append(copy.deepcopy(inside[0]) if inside else draw(odd()))
    else:
        parent[key] = draw(odd())


def _rename(draw: Draw, parent: Any, key: Any, keys: Sequence[str]) -> None:
    if isinstance(parent, dict) and key:
        parent[draw(st.sampled_from(TEXTS + tuple(keys)))] = parent.pop(key)
    else:
        parent[key] = draw(odd())


def _stretch(draw: Draw, parent: Any, key: Any, keys: Sequence[str]) -> None:
    inside = parent[key]
    if isinstance(inside, str | list) and len(inside) < 500:
        parent[key] = inside * draw(st.sampled_from((0, 2, 50)))
    elif isinstance(inside, int | float):
        parent[key] = draw(st.sampled_from((inside + 1, -inside, str(inside))))


CHANGES = (_replace, _replace, _remove, _wrap, _add, _rename, _stretch)
