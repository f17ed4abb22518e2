"""The study: on which object do the maps of two questions with one answer fall?"""

import numpy as np
import pandas as pd

from pipeline.studies.base import Evidence, Panels, Part, Picture, Shown, Study, Table
from pipeline.studies.question_grad_cam import overlays
from pipeline.studies.question_grad_cam.findings import findings, reading
from pipeline.studies.question_grad_cam.localisation import (
    Measured,
    held_out,
    localisation_frame,
    measure,
)
from pipeline.studies.question_grad_cam.pairs import find_pairs
from pipeline.studies.question_grad_cam.published import BEST_IN_PAPER, SOURCE
from pipeline.studies.question_grad_cam.ranks import PAIR, SAME, compared, rank_frame, repeated
from pipeline.studies.question_grad_cam.read import Read
from pipeline.studies.question_grad_cam.settings import METHOD, settings
from pipeline.studies.question_grad_cam.tables import (
    localisation_table,
    pair_table,
    rank_table,
    sweep_picture,
    word_table,
)
from pipeline.studies.question_grad_cam.words import word_frame, word_rows
from workers.errors import BadExample, UserError

TITLE = "Question Grad-CAM"
NO_METHOD = (
    "The run has no map of `question_grad_cam`: it needs a model with a combine layer. "
    "`python run_pipeline.py run recipes/question_grad_cam.yaml --out RUN` makes a run that has."
)
NO_PAIRS = (
    "No two questions of one image have one answer, both right, and masks that do not meet: the "
    "maps have no objects to be compared on. The dataset `shapes` asks such questions with "
    "`pairs: true` and tells their objects with `exact: true`."
)


def question_grad_cam(evidence: Evidence) -> Study:
    """What the paper shows, of this run's pairs, and on which object the maps fall."""
    if not any(setting.ours for setting in settings(evidence.run)):
        return Study(METHOD, TITLE, SOURCE, missing=(NO_METHOD,))
    try:
        pairs = find_pairs(evidence)
    except (UserError, BadExample, OSError) as error:
        told = f"The objects' masks cannot be read from the dataset: {error}"
        return Study(METHOD, TITLE, SOURCE, missing=(told,))
    if pairs.frame.empty:
        return Study(METHOD, TITLE, SOURCE, missing=(NO_PAIRS,))
    return _study(Read(evidence, pairs))


def _study(read: Read) -> Study:
    measured = measure(read.settings, read.maps, read.pairs)
    frame = localisation_frame(measured, read.evidence.bootstrap)
    best = held_out(measured, read.evidence.bootstrap)
    ranks, couples = _ranks(read)
    parts: list[Part] = [
        reading(measured, read),
        localisation_table(frame, measured, read.evidence.bootstrap),
        sweep_picture(frame),
        *_overlays(read, measured),
        rank_table(ranks),
        *_words(read),
        pair_table(couples),
    ]
    return Study(
        name=METHOD,
        title=TITLE,
        source=SOURCE,
        parts=tuple(parts),
        findings=tuple(findings(frame, best, ranks, len(read.pairs.frame))),
    )


def _ranks(read: Read) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of correlations, and every pair's own."""
    again = repeated(read.examples.reset_index(drop=True))
    found, couples = {}, read.pairs.frame
    for name, vectors in read.vectors.items():
        own = compared(vectors, read.pairs.frame)
        found[PAIR, name] = own
        found[SAME, name] = compared(vectors, again)
        told = own.rename(columns={"rho": f"rho {name}", "common": f"common {name}"})
        couples = couples.merge(told, how="left", on=list(read.pairs.frame.columns))
    texts = read.examples["question"]
    asked = {"question": couples["first"].map(texts), "other": couples["second"].map(texts)}
    return rank_frame(found, read.evidence.bootstrap), couples.assign(**asked)


def _words(read: Read) -> list[Table]:
    if not read.places:
        return []
    examples = read.examples
    tokens = {int(q): list(words) for q, words in examples["tokens"].items()}
    rows = word_rows(tokens, read.places)
    images = examples["image_id"].to_dict()
    frame = word_frame(rows, tokens, images, read.pairs, read.evidence.bootstrap)
    return [] if frame.empty else [word_table(frame)]


def _overlays(read: Read, measured: Measured) -> list[Part]:
    """The sheet and the same pairs opened with all their maps."""
    own = [i for i, s in enumerate(measured.settings) if s.ours and np.isfinite(s.n)]
    if measured.plain is None or not own:
        return []
    variant = measured.settings[own[0]].variant
    first = [i for i in own if measured.settings[i].variant == variant]
    one = min(first, key=lambda i: abs(measured.settings[i].n - BEST_IN_PAPER))
    chosen = overlays.chosen_pairs(measured, one)
    rule = (
        "The pairs in which the mass on the right objects under "
        f"{measured.settings[one].label} exceeds Grad-CAM's most, the middle of all pairs, and "
        f"those in which it falls short most; {overlays.SHOWN} each at most, of equal ones the "
        "first."
    )
    examples = [
        Shown(int(question), note)
        for pair, note in chosen
        for question in read.pairs.frame.loc[pair, ["first", "second"]]
    ]
    panels = Panels("pairs", "Pairs with all their maps", rule, tuple(examples))
    return [*_sheet(read, measured, one, chosen), panels]


def _sheet(read: Read, measured: Measured, one: int, chosen: list[tuple[int, str]]) -> list[Part]:
    places = overlays.shown_settings(measured, one)
    strips = []
    chosen = overlays.first_of_each(chosen)
    for pair, note in chosen:
        for question in read.pairs.frame.loc[pair, ["first", "second"]].tolist():
            try:
                picture, mask = read.picture(question)
            except BadExample:
                return []
            text = str(read.examples["question"][question])
            maps = [read.maps[place].get(question) for place in places]
            strips.append(overlays.Strip(f"{note}\n{text}", picture, mask, maps))
    titles = [measured.settings[place].title for place in places]
    return [
        Picture(
            name="overlays",
            title="Two questions, one answer, side by side",
            figure=overlays.draw(strips, titles),
            data=read.pairs.frame.loc[[pair for pair, _ in chosen]],
            caption="Two rows a pair; the outlined object is the question's own. Red is evidence "
            "for the answer, each map scaled by its own maximum.",
        )
    ]
