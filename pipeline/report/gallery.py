"""Examples with all their maps, small enough to travel inside a page."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.report.examples import Examples, Record, Seen
from pipeline.report.figures import data_address
from pipeline.report.humans import Humans
from pipeline.report.maps import SIDES, Packed, blob, pack
from pipeline.report.sheet import seen
from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import Evidence
from pipeline.studies.overview import MAIN
from schemas.rows import ExampleRow
from schemas.run import Definition
from workers.errors import BadExample, Outage
from workers.evaluate import frame_of

IMAGE = 160
"""Longest side of an example's picture, in pixels."""
QUALITY = 72
PROBED = 24
"""Examples from which the size of all is estimated."""
MARGIN = 0.95
"""Of the room that the estimate may take."""
HUMAN = "human"
UNITLESS = {*BASELINES, "attention"}
"""Methods whose values are weights, of no score."""
Entry = dict[str, Any]
"""Something as the page's script reads it."""


@dataclass(frozen=True)
class Thumb:
    """An example in the gallery's list."""

    index: int
    question_id: int
    image: int
    question: str
    prediction: str
    truth: str
    outcome: str
    """``right``, ``wrong`` or ``unlabelled``."""
    confidence: float
    sureness: str
    """``sure``, ``unsure`` or ``between``."""


@dataclass
class Gallery:
    """Examples, their pictures and their maps."""

    total: int
    """Examples that the model has answered."""
    side: int
    """Places a map has at most along an axis."""
    methods: list[Entry]
    metrics: list[str]
    thumbs: list[Thumb] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    images: list[Entry] = field(default_factory=list)
    """``source`` is a ``data:`` address, empty where there is no picture; ``width``, ``height``."""
    notes: list[str] = field(default_factory=list)
    """What is not shown, and why."""

    @property
    def places(self) -> dict[int, int]:
        """Question -> place in the gallery."""
        return {thumb.question_id: thumb.index for thumb in self.thumbs}

    @property
    def weight(self) -> int:
        """About what it adds to a page, in bytes."""
        texts = sum(len(repr(entry)) for entry in self.entries) + 800 * len(self.thumbs)
        return texts + sum(map(len, self.blobs)) + sum(len(i["source"]) for i in self.images)


def gallery(evidence: Evidence, named: Sequence[int], count: int, room: float) -> Gallery:
    """``count`` examples in about ``room`` bytes: the named ones, then others at even distances.

    Maps become coarser first, then examples fewer; named ones are the last to go.
    """
    answered = evidence.examples.sort_values(["shard", "ordinal"])["question_id"].tolist()
    chosen = choose(answered, named, count)
    packer = Packer(evidence)
    side, weight = _finest(packer, chosen, room * MARGIN)
    fitting = int(room * MARGIN / weight) if weight else len(chosen)
    kept = choose(answered, named, max(fitting, 1)) if fitting < len(chosen) else chosen
    made = packer.pack(kept, side)
    made.total = len(answered)
    if len(kept) < len(chosen):
        made.notes.append(f"Only {len(kept):,} examples fit in; a larger --max-mb takes more.")
    if side < SIDES[0]:
        made.notes.append(
            f"Maps have at most {side} x {side} places here, to keep the page small; a larger "
            "--max-mb gives finer ones."
        )
    return made


def choose(questions: Sequence[int], named: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the questions: first the named, then others at even distances."""
    known = set(questions)
    kept = set([q for q in dict.fromkeys(named) if q in known][:count])
    others = [q for q in questions if q not in kept]
    wanted = min(len(others), count - len(kept))
    kept |= {others[int((i + 0.5) * len(others) / wanted)] for i in range(wanted)}
    return [q for q in questions if q in kept]


def _finest(packer: "Packer", chosen: Sequence[int], room: float) -> tuple[int, float]:
    """The finest side at which the chosen examples fit, and what one of them weighs then."""
    probe = choose(chosen, [], PROBED)
    for side in SIDES:
        weight = packer.pack(probe, side).weight / max(1, len(probe))
        if weight * len(chosen) <= room:
            break
    return side, weight


@dataclass
class Packer:
    """Reads examples of a run and packs them."""

    evidence: Evidence
    pictures: dict[int, Entry] = field(default_factory=dict)
    """By image; each is made once."""
    outage: Outage | None = None
    """Why no more pictures are asked for."""

    @cached_property
    def humans(self) -> Humans:
        return Humans(self.evidence)

    @cached_property
    def metrics(self) -> list[str]:
        names = self.evidence.human_values["metric"].unique().tolist()
        return [name for name in MAIN if name in names] or names[:1]

    def pack(self, chosen: Sequence[int], side: int) -> Gallery:
        """The chosen examples, their maps on at most ``side x side`` places."""
        examples = Examples(self.evidence.run, chosen)
        methods = self._methods(examples)
        made = Gallery(len(chosen), side, methods, self.metrics)
        self.humans.find(chosen)
        scores, images = self._scores(chosen, made), dict[int, int]()
        for example in examples:
            entry, packed = self._entry(example, made)
            row = example.row
            entry["scores"] = scores.get(row.question_id, {})
            entry["image"] = images.setdefault(row.image_id, len(images))
            if entry["image"] == len(made.images):
                made.images.append(self._picture(row, made))
            made.thumbs.append(self._thumb(row, len(made.entries), entry["image"]))
            made.entries.append(entry)
            made.blobs.append(blob(packed))
        made.notes += [self.humans.why] if self.humans.why else []
        return made

    def _methods(self, examples: Examples) -> list[Entry]:
        """Pixel methods in the recipe's order, baselines, people; then word methods."""
        definitions = self.evidence.run.definitions
        labels = [label for label in self.evidence.config.methods if label in definitions]
        labels = [*sorted(labels, key=lambda label: label in BASELINES), HUMAN]
        lowest = {
            **_lowest(examples.maps["minimum"], examples.maps),
            **_lowest(
                examples.words["importances"].map(np.min, na_action="ignore"), examples.words
            ),
        }
        methods = [
            {
                "name": label,
                "words": label in definitions and definitions[label].kind == "words",
                "signed": bool(lowest.get(label, 0.0) < 0),
                "baseline": label in BASELINES,
                "unit": _unit(definitions.get(label)),
            }
            for label in labels
        ]
        return sorted(methods, key=lambda method: bool(method["words"]))

    def _scores(self, chosen: Sequence[int], made: Gallery) -> Mapping[int, Entry]:
        """Question -> ``method:target:metric`` -> value, methods and metrics by their places."""
        names = _places(made.methods)
        values = self.evidence.values
        kept = values["question_id"].isin(chosen) & values["metric"].isin(made.metrics)
        own = values[kept & values["method"].isin(list(names)) & values["value"].notna()]
        found: dict[int, Entry] = {}
        for row in own.itertuples():
            key = f"{names[row.method]}:{row.target}:{made.metrics.index(row.metric)}"
            found.setdefault(row.question_id, {})[key] = _short(row.value)
        return found

    def _entry(self, example: Seen, made: Gallery) -> tuple[Entry, list[Packed]]:
        names, packed = _places(made.methods), list[Packed]()
        entry = _answers(example.row)
        for record, values in example.maps:
            told = _told(record, names)
            if values is not None:
                packed.append(pack(values, made.side, made.methods[told["method"]]["signed"]))
                ends = [_short(record["minimum"]), _short(record["maximum"])]
                told |= {**_placed(packed), "ends": ends}
            entry["maps"].append(told)
        for of, values in self.humans.of(example.row):
            packed.append(pack(values, made.side, signed=False))
            told = {"method": names[HUMAN], "target": HUMAN, "status": "ok", "of": of}
            entry["maps"].append({**told, **_placed(packed)})
        entry["maps"].sort(key=lambda told: told["method"])
        entry["words"] = [_words(record, names) for record in example.words]
        return entry, packed

    def _picture(self, row: ExampleRow, made: Gallery) -> Entry:
        if row.image_id not in self.pictures:
            try:
                if self.outage is not None:
                    raise self.outage  # each further one would wait for the bucket as long
                self.pictures[row.image_id] = picture(row, self.evidence)
            except (BadExample, Outage) as error:
                self.outage = error if isinstance(error, Outage) else None
                note = f"Pictures that cannot be read are not shown, for instance: {error}"
                if not any("cannot be read" in text for text in made.notes):
                    made.notes.append(note)
                return {"source": "", "width": IMAGE, "height": IMAGE}
        return self.pictures[row.image_id]

    def _thumb(self, row: ExampleRow, index: int, image: int) -> Thumb:
        confidence, levels = row.confidence or 0.0, self.evidence.confidence
        sure = "sure" if confidence > levels.high else "between"
        return Thumb(
            index=index,
            question_id=row.question_id,
            image=image,
            question=row.question,
            prediction=row.prediction or "",
            truth=row.truth or "",
            outcome={None: "unlabelled", True: "right", False: "wrong"}[row.correct],
            confidence=confidence,
            sureness="unsure" if confidence < levels.low else sure,
        )


def picture(row: ExampleRow, evidence: Evidence) -> Entry:
    """What the model saw, small."""
    image = Image.fromarray(seen(row.image, frame_of(row), evidence.config.limits))
    image.thumbnail((IMAGE, IMAGE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=QUALITY, method=4)
    source = data_address(sink.getvalue(), "image/webp")
    return {"source": source, "width": image.width, "height": image.height}


def _answers(row: ExampleRow) -> Entry:
    return {
        "id": row.question_id,
        "question": row.question,
        "tokens": row.tokens or [],
        "prediction": row.prediction,
        "truth": row.truth,
        "known": row.truth_in_vocabulary,
        "confidence": _short(row.confidence),
        "correct": row.correct,
        "accuracy": _short(row.accuracy),
        "answers": _counted(row.answers),
        "maps": [],
    }


def _unit(definition: Definition | None) -> str:
    """Of which score a method's values are drops or gradients; some are of none."""
    if definition is None or definition.name in UNITLESS:
        return ""
    return str(definition.parameters.get("score", ""))


def _lowest(values: pd.Series, rows: pd.DataFrame) -> dict[str, float]:
    """The smallest value of each method."""
    return values.astype(float).groupby(rows["method"].astype("str")).min().to_dict()


def _places(methods: Sequence[Entry]) -> dict[str, int]:
    return {method["name"]: place for place, method in enumerate(methods)}


def _told(record: Record, names: Mapping[str, int]) -> Entry:
    told = {key: record[key] for key in ("target", "status")}
    if record["status"] != "ok":
        told["why"] = "no reason was recorded" if pd.isna(record["reason"]) else record["reason"]
    return {"method": names[record["method"]], **told}


def _words(record: Record, names: Mapping[str, int]) -> Entry:
    told, values = _told(record, names), record["importances"]
    return told if values is None else {**told, "values": [_short(value) for value in values]}


def _placed(packed: Sequence[Packed]) -> Entry:
    """Where the last map lies among the bytes, and what they stand for."""
    last = packed[-1]
    return {
        "at": sum(len(p.data) for p in packed[:-1]),
        "height": last.height,
        "width": last.width,
        "top": _short(last.top),
        "mean": _short(last.mean),
    }


def _counted(answers: Sequence[str]) -> list[list[Any]]:
    """Distinct answers with how often they were given, the most frequent first."""
    return [[answer, count] for answer, count in Counter(answers).most_common()]


def _short(value: Any) -> float | None:
    """Four significant digits: what a page needs."""
    return None if value is None or pd.isna(value) else float(f"{value:.4g}")
