"""Figures as PNG and SVG: the same bytes from the same figure, readable in print."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#57606a",
    "axes.prop_cycle": cycler(
        color=["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000"]
    ),
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "vqatlas",
}
"""Colours: Okabe and Ito's, which the colour-blind tell apart."""
DPI = 160
HEAVIEST_SVG = 200_000
"""Bytes above which the page takes the PNG: a cloud of ten thousand points is no drawing."""


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures made and written inside."""
    with matplotlib.rc_context(STYLE):
        yield


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    return _saved(figure, format="png", dpi=DPI, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """A figure as SVG, its text as outlines: the same wherever it is opened."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    sink = io.BytesIO()
    with style():
        figure.savefig(sink, **options)
    return sink.getvalue()


def address(png: bytes, svg: bytes) -> str:
    """A figure inside a page: a ``data:`` address."""
    if len(svg) <= HEAVIEST_SVG:
        return data_address(svg, "image/svg+xml")
    return data_address(png, "image/png")


def data_address(data: bytes, kind: str) -> str:
    """Bytes as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def size(figure: Figure) -> tuple[int, int]:
    """Width and height in CSS pixels, so that the page keeps the place free."""
    width, height = figure.get_size_inches() * 96
    return round(width), round(height)
