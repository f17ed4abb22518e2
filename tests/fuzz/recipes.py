"""Recipes that are YAML, but not such as anyone would write."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]
TOKENS = tuple(
    token.encode()
    for token in (
        "&a ",
        "*a",
        "<<: *a\n",
        "---\n",
        "...\n",
        "%YAML 9.9\n",
        "!!python/object/apply:os.mkdir [trace]",
        "!!binary aGk=",
        "!!binary '*'",
        "!!timestamp x",
        "!!int x",
        "!!float x",
        "!!bool x",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!null x",
        "!foo ",
        "2001-99-99",
        "2001-01-01",
        "0x",
        "0b",
        "1:99:99",
        "9" * 5000,
        ".nan",
        ".inf",
        "1e999",
        "? ",
        "- ",
        ": ",
        "|\n",
        "[",
        "{",
        "}",
        "#",
        "\t",
        "\ufeff",
        "\x85",
        "\u2028",
        '"\\ud800"',
        '"\\0"',
        "name: ",
        "{? {a: 1} : 2}",
        "methods: {}\n",
    )
)
NAMES = ("name", "method", "metric", "root", "limit", "questions", "checkpoint", "trunk", "grid")
OPENINGS = ("[", "{a: ", "- ", "? ", "&a [", "!!set {? ")
KEYS = ("dataset.root", "dataset", "methods.a.b.c", "seed", "store.shard_size", "..", "a..b", "")


@st.composite
def bombs(draw: Draw) -> str:
    """A short text that stands for a great deal: aliases of aliases, nesting, cycles, numbers."""
    kind = draw(st.sampled_from((_laughter, _cycle, _nesting, _long)))
    key = draw(st.sampled_from(("methods", "dataset", "metrics", "seed", "targets", "foo")))
    return f"dataset: {{name: shapes, root: x}}\nmodel: demo\n{kind(draw, key)}\n"


def _laughter(draw: Draw, key: str) -> str:
    levels, width = draw(st.integers(2, 40)), draw(st.integers(2, 12))
    mapping = draw(st.booleans())
    lines = ["x0: &x0 {a: 1}"]
    for i in range(1, levels):
        items = [f"k{k}: *x{i - 1}" if mapping else f"*x{i - 1}" for k in range(width)]
        inner = "{" + ", ".join(items) + "}" if mapping else "[" + ", ".join(items) + "]"
        lines.append(f"x{i}: &x{i} {inner}")
    return "\n".join(lines) + f"\n{key}: *x{levels - 1}"


def _cycle(draw: Draw, key: str) -> str:
    return draw(
        st.sampled_from(
            (
                f"{key}: &a [*a]",
                f"{key}: &a {{occlusion: *a}}",
                f"{key}: &a {{name: shapes, root: *a}}",
                f"{key}: &a {{*a : 1}}",
                f"{key}: &a {{<<: *a}}",
                f"{key}: {{occlusion: &a {{patch: [*a]}}}}",
                f"{key}: &a !!set {{*a}}",
            )
        )
    )


def _nesting(draw: Draw, key: str) -> str:
    opening = draw(st.sampled_from(OPENINGS))
    return f"{key}: " + opening * draw(st.sampled_from((20, 30, 300, 20_000)))


def _long(draw: Draw, key: str) -> str:
    text = draw(
        st.sampled_from(("9", "a", "0x1", "1:", "_", "-", " ", "'", '"a" ', "a: {}\n", "#"))
    )
    return f"{key}: " + text * draw(st.sampled_from((100, 1_000, 3_000, 50_000)))


def assignments() -> st.SearchStrategy[str]:
    """What follows ``--set``."""
    values = st.one_of(
        st.sampled_from([token.decode() for token in TOKENS]), st.text(max_size=20), bombs()
    )
    keys = st.one_of(st.sampled_from(KEYS), st.text(alphabet="ademost.=", max_size=12))
    return st.one_of(st.builds("{}={}".format, keys, values), st.text(max_size=20))
