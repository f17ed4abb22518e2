"""From a run to a folder with a report: studies, their tables and figures, the page."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipeline.dataset import Root, Run
from pipeline.report import figures, tables
from pipeline.report.facts import facts
from pipeline.report.folder import PAGE, Folder, published
from pipeline.report.gallery import gallery
from pipeline.report.page import Block, Chapter, Page, Told, badges_of, render
from pipeline.report.tables import MOST_DATA, data_table, view
from pipeline.run import stored_config
from pipeline.studies.agreement import Confidence
from pipeline.studies.base import Badge, Evidence, Panels, Part, Picture, Study, Table, Text
from pipeline.studies.registry import STUDIES
from pipeline.studies.summary import Bootstrap
from workers.errors import UserError

EXAMPLES = 600
MEGABYTES = 30.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """What came of a report."""

    page: Path
    findings: Sequence[Told]
    bytes: int
    """Of the page."""
    files: int
    failed: Mapping[str, str]
    """Study -> why it could not be made."""


def report(
    root: Root,
    out: Path,
    wanted: Sequence[str] = ("all",),
    examples: int = EXAMPLES,
    megabytes: float = MEGABYTES,
    say: Say = print,
    confidence: Confidence | None = None,
) -> Written:
    """Write a run's report into ``out``; a study that cannot be made is told on the page."""
    evidence = evidence_of(root, confidence)
    made = {name: _attempt(name, evidence, say) for name in _names(wanted)}
    with published(out) as folder:
        chapters = _chapters(made, folder)
        page = _page(f"{Path(str(root)).name}", evidence, chapters, folder)
        if examples:
            start = time.monotonic()
            room = megabytes * 1e6 - len(render(page).encode())
            chosen = gallery(evidence, _named(chapters), examples, room)
            page = replace(page, gallery=chosen)
            say(f"{len(chosen.thumbs):,} examples  {time.monotonic() - start:.1f} s")
        return _write(page, folder)


def compare_report(first: Root, second: Root, out: Path, say: Say = print) -> Written:
    """Write the comparison of two runs, paired by example, into ``out``."""
    from pipeline.studies.compare import compare

    both = [evidence_of(root) for root in (first, second)]
    return study_report(compare(*both), both, out, say)


def study_report(study: Study, runs: Sequence[Evidence], out: Path, say: Say = print) -> Written:
    """Write one study, of one run or of several, into ``out``."""
    say(study.title)
    with published(out) as folder:
        chapters = _chapters({study.name: study}, folder)
        title = " and ".join(Path(evidence.run.root).name for evidence in runs)
        page = _page(title, runs[0], chapters, folder)
        page = replace(page, facts=[facts(evidence) for evidence in runs])
        return _write(page, folder)


def evidence_of(root: Root, confidence: Confidence | None = None) -> Evidence:
    """A run's evidence; one that was never evaluated is refused."""
    run = Run(root)
    if not run.store.covered("metrics"):
        raise UserError(
            f"{root} has no metrics: nothing of it has been compared or counted yet. "
            f"Run `python run_pipeline.py evaluate {root}` first."
        )
    bootstrap = Bootstrap(seed=stored_config(root).seed)
    return Evidence(run, bootstrap, confidence or Confidence())


def _names(wanted: Sequence[str]) -> list[str]:
    """The studies to make, in the registry's order."""
    unknown = [name for name in wanted if name not in {*STUDIES, "all"}]
    if unknown:
        raise UserError(
            f"--study {unknown[0]}: unknown study. Available: {', '.join(STUDIES)}, all."
        )
    return [name for name in STUDIES if name in wanted or "all" in wanted]


def _attempt(name: str, evidence: Evidence, say: Say) -> Study | str:
    """A study, or why it cannot be made."""
    start = time.monotonic()
    try:
        with figures.style():
            made: Study | str = STUDIES[name](evidence)
    except UserError as error:
        made = str(error)
    failed = f"  failed: {made}" if isinstance(made, str) else ""
    say(f"{name}  {time.monotonic() - start:.1f} s{failed}")
    return made


# --- parts and their files --------------------------------------------------------------------


def _chapters(made: Mapping[str, Study | str], folder: Folder) -> list[Chapter]:
    named = {
        name: Chapter(name, name.replace("_", " "), error=study)
        if isinstance(study, str)
        else Chapter(name, study.title, study)
        for name, study in made.items()
    }
    badges = badges_of(list(named.values()))
    return [
        replace(
            chapter, blocks=[_block(name, part, badges, folder) for part in chapter.study.parts]
        )
        if chapter.study
        else chapter
        for name, chapter in named.items()
    ]


def _block(study: str, part: Part, badges: Mapping[str, Sequence[Badge]], folder: Folder) -> Block:
    """A part ready to be drawn, its files staged."""
    stem = part.name if part.name.startswith(f"{study}_") else f"{study}_{part.name}"
    match part:
        case Table():
            files = _table_files(folder, stem, part.frame)
            return Block("table", stem, part, view(part, badges), files=files)
        case Picture():
            return _picture(f"{stem}_figure", part, folder)
        case Panels():
            return Block("panels", stem, part)
        case Text():
            return Block("text", stem, part)


def _picture(stem: str, part: Picture, folder: Folder) -> Block:
    png, svg = figures.png(part.figure), figures.svg(part.figure)
    files = _table_files(folder, stem, part.data)
    for kind, data in (("PNG", png), ("SVG", svg)):
        files[kind] = f"figures/{stem}.{kind.lower()}"
        _stage(folder, files[kind], data)
    return Block(
        kind="picture",
        id=stem,
        part=part,
        view=view(data_table(part.name, part.data), {}, MOST_DATA),
        address=figures.address(png, svg),
        size=figures.size(part.figure),
        files=files,
    )


def _table_files(folder: Folder, stem: str, frame: pd.DataFrame) -> dict[str, str]:
    files = {"CSV": f"tables/{stem}.csv", "Parquet": f"tables/{stem}.parquet"}
    _stage(folder, files["CSV"], tables.csv(frame))
    _stage(folder, files["Parquet"], tables.parquet(frame))
    return files


def _stage(folder: Folder, name: str, data: bytes) -> None:
    if name in folder.sizes:
        raise ValueError(f"two parts of a report are called {name}: give one another name")
    folder.write(name, data)


# --- the page ---------------------------------------------------------------------------------


def _page(title: str, evidence: Evidence, chapters: Sequence[Chapter], folder: Folder) -> Page:
    return Page(
        title=title,
        lead=_lead(evidence),
        facts=[facts(evidence)],
        chapters=chapters,
        confidence=evidence.confidence,
        files={name: _size(count) for name, count in sorted(folder.sizes.items())},
    )


def _lead(evidence: Evidence) -> str:
    config, images = evidence.config, evidence.examples["image_id"].nunique()
    return (
        f"Where the model {config.model.name} looks and which words it listens to, on "
        f"{len(evidence.examples):,} questions about {images:,} images of {config.dataset.name}, "
        "and how far the maps that say so can be trusted."
    )


def _named(chapters: Sequence[Chapter]) -> list[int]:
    """Questions that panels show."""
    parts = [block.part for chapter in chapters for block in chapter.blocks]
    return [s.question_id for part in parts if isinstance(part, Panels) for s in part.examples]


def _write(page: Page, folder: Folder) -> Written:
    text = render(page).encode()
    folder.write(PAGE, text)
    failed = {chapter.name: chapter.error for chapter in page.chapters if chapter.error}
    return Written(folder.root / PAGE, page.findings, len(text), len(folder.sizes) - 1, failed)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} kB"
