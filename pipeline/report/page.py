"""The page: studies, facts and examples as one HTML file that asks for nothing from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.facts import Facts
from pipeline.report.gallery import Gallery
from pipeline.report.tables import View
from pipeline.studies.agreement import Confidence
from pipeline.studies.base import Badge, Finding, Part, Study

FINDINGS = 3
"""How many the page opens with."""
RAMPS = {"signed": "PuOr_r", "unsigned": "cividis"}
"""Colour maps that the colour-blind can read: purple to orange through white; dark to yellow."""
STOPS = 17


@dataclass(frozen=True)
class Block:
    """A part of a study, ready to be drawn."""

    kind: str
    """``table``, ``picture``, ``panels`` or ``text``."""
    id: str
    part: Part
    view: View | None = None
    """Of a table, or of the data of a figure."""
    address: str = ""
    """Of a figure."""
    size: tuple[int, int] = (0, 0)
    files: Mapping[str, str] = field(default_factory=dict)
    """Kind -> name of the part's file."""


@dataclass(frozen=True)
class Told:
    """A finding and where its numbers are."""

    sentence: str
    weight: float
    anchor: str
    title: str
    chapter: str
    topic: str


@dataclass(frozen=True)
class Chapter:
    """A study on the page, or why there is none."""

    name: str
    title: str
    study: Study | None = None
    blocks: Sequence[Block] = ()
    error: str = ""

    @property
    def findings(self) -> list[Told]:
        """The study's findings, the weightiest first."""
        found = self.study.findings if self.study else ()
        return [self._told(f) for f in sorted(found, key=lambda f: -f.weight)]

    def _told(self, finding: Finding) -> Told:
        block = next((b for b in self.blocks if b.part.name == finding.source), None)
        anchor, title = (block.id, block.part.title) if block else (self.name, self.title)
        return Told(finding.sentence, finding.weight, anchor, title, self.title, finding.topic)


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    lead: str
    facts: Sequence[Facts]
    chapters: Sequence[Chapter]
    confidence: Confidence
    files: Mapping[str, str]
    """Name -> size, of the files beside the page."""
    gallery: Gallery | None = None

    @property
    def warnings(self) -> list[str]:
        return [text for facts in self.facts for text in facts.warnings]

    @property
    def findings(self) -> list[Told]:
        """The weightiest of all studies, one a topic; of equal weight, the earlier."""
        every = [told for chapter in self.chapters for told in chapter.findings]
        every.sort(key=lambda told: -told.weight)
        found = {told.topic or told.sentence: told for told in reversed(every)}
        return [told for told in every if told in found.values()][:FINDINGS]

    @property
    def badges(self) -> dict[str, list[Badge]]:
        return badges_of(self.chapters)


def badges_of(chapters: Sequence[Chapter]) -> dict[str, list[Badge]]:
    """Method -> what the studies say of it."""
    found: dict[str, list[Badge]] = {}
    for chapter in chapters:
        for method, badge in chapter.study.badges.items() if chapter.study else ():
            found.setdefault(method, []).append(badge)
    return found


def render(page: Page) -> str:
    """The page as HTML. What comes from the data is escaped by the template's own rule."""
    script = _source("script.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            style=Markup(_source("style.css")),
            legend_style=Markup(_legend_style()),
            script=Markup(script),
            script_digest=_digest(script),
            gallery_data=_gallery_data(page),
        )
    )


def _gallery_data(page: Page) -> Markup:
    """JSON that holds no ``<`` and so cannot end the element that it stands in."""
    if page.gallery is None:
        return Markup("")
    badges = page.badges
    methods = [
        {**method, "badges": [vars(badge) for badge in badges.get(method["name"], ())]}
        for method in page.gallery.methods
    ]
    data = {
        "methods": methods,
        "metrics": page.gallery.metrics,
        "examples": page.gallery.entries,
        "images": page.gallery.images,
        "ramps": {name: ramp(colours) for name, colours in RAMPS.items()},
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def ramp(colours: str) -> list[list[int]]:
    """A colour map's stops, red, green and blue from 0 to 255."""
    places = [i / (STOPS - 1) for i in range(STOPS)]
    return [[round(255 * c) for c in matplotlib.colormaps[colours](p)[:3]] for p in places]


def _legend_style() -> str:
    """The legends: the very colours that the maps are drawn with."""
    rules = []
    for name, colours in RAMPS.items():
        stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in ramp(colours))
        rules.append(f".ramp.{name} {{ background: linear-gradient(to right, {stops}); }}")
    return "\n".join(rules)


def _digest(script: str) -> str:
    """Names the one script that the page's policy lets run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    environment = _environment()
    loader: Any = environment.loader
    return str(loader.get_source(environment, name)[0])
