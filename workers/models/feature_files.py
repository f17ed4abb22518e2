"""Files of regions, each detected and turned into features beforehand."""

import base64
import binascii
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workers.errors import BadExample, UserError
from workers.models.pickles import read_plain

SAMPLE = 2**20
"""Bytes at each end of a file that go into its digest; the files are of tens of gigabytes."""
INDEXES = ("{}_imgid2idx.json", "{}_imgid2idx.pkl", "{}_imgid2img.json", "{}_imgid2img.pkl")
"""Beside ``train36.hdf5`` lies ``train36_imgid2idx.pkl``: image number -> row."""
FIELDS = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
DETECTED = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
LXMERT_FIELDS = ("img_id", "img_h", "img_w", *DETECTED, "num_boxes", "boxes", "features")
COLUMNS = {len(LXMERT_FIELDS): LXMERT_FIELDS, len(FIELDS): FIELDS}
"""Of the two kinds of TSV, told apart by their number of columns."""
_DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError)
"""What h5py raises on bytes that are not what it expects (found by flipping bytes)."""
FLOATS = {np.dtype("float16"), np.dtype("float32"), np.dtype("float64")}


class Found(NamedTuple):
    """What a detector has found: ``boxes (n, 4)``, x1, y1, x2, y2 in pixels of an image of
    ``height`` and ``width`` (1 and 1 where they are fractions already), and
    ``features (n, channel)``."""

    boxes: np.ndarray
    features: np.ndarray
    height: float
    width: float


class FeatureFile(ABC):
    """One file of regions."""

    path: Path
    places: Mapping[int, int]
    """Image number -> where in the file it is."""
    regions: int
    """The most that an image has."""
    channels: int

    @abstractmethod
    def read(self, image_id: int, height: int, width: int) -> Found:
        """Of an image that is in the file; the photo is of this size."""

    def sample(self) -> Iterator[bytes]:
        """What its identity is told from: its length, and a MiB at each of its ends."""
        size = self.path.stat().st_size
        yield f"\n{size} {len(self.places)}\n".encode()
        with self.path.open("rb") as data:
            yield data.read(SAMPLE)
            data.seek(max(0, size - SAMPLE))
            yield data.read(SAMPLE)


class HDF5File(FeatureFile):
    """``{split}36.hdf5`` of hengyuan-hu/bottom-up-attention-vqa: ``image_features (image, region,
    channel)``, and boxes as fractions, ``spatial_features (image, region, 6)``, or in pixels,
    ``image_bb (image, region, 4)``. In ``{split}.hdf5`` of jnhwkim/ban-vqa images have 10 to 100
    regions: all lie along one axis, and ``pos_boxes (image, 2)`` says where an image's begin and
    end. ``{split}36_imgid2idx.pkl`` (or ``.json``) beside it has the rows of the images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = opened(path)
        with undamaged(path, UserError):
            self._look()
        images, self.regions = self.features.shape[:2]
        if self.spans is not None:
            images, self.regions = len(self.spans), int(np.ptp(self.spans, 1).max(initial=0))
        self.places = read_index(path, images)

    def _look(self) -> None:
        self.spans = self._spans() if "pos_boxes" in self.file else None
        self.fractions = "spatial_features" in self.file
        self.features = self._floats("image_features", None)
        boxes = ("spatial_features", 6) if self.fractions else ("image_bb", 4)
        self.boxes = self._floats(*boxes)
        if self.boxes.shape[:-1] != self.features.shape[:-1]:
            raise UserError(
                f"{self.path}: {boxes[0]} is {list(self.boxes.shape)}, image_features is "
                f"{list(self.features.shape)}; copy or make the file again"
            )
        self.channels = self.features.shape[-1]

    def _spans(self) -> np.ndarray:
        """``(image, 2)``, first and one past the last row of each image."""
        spans, count = np.asarray(self.file["pos_boxes"]), len(self.file.get("image_features", ()))
        if spans.ndim == 2 and spans.shape[1] == 2 and spans.dtype.kind in "iu" and len(spans):
            start, end = spans.T.astype(np.int64)
            if (start >= 0).all() and (end > start).all() and (end <= count).all():
                return np.stack([start, end], 1)
        raise UserError(
            f"{self.path}: pos_boxes {list(spans.shape)} are no first and last rows of the {count} "
            "in image_features; copy or make the file again"
        )

    def _floats(self, name: str, columns: int | None) -> Any:
        """A dataset of floats, its last axis of so many columns."""
        found, axes = self.file.get(name), 3 if self.spans is None else 2
        shape: tuple[int, ...] = getattr(found, "shape", ())
        floats = len(shape) == axes and found.dtype in FLOATS
        if floats and shape[-1] == (columns or shape[-1]) and lies_in(self.path, found):
            return found
        raise UserError(
            f"{self.path}: no dataset {name!r} of floats with {axes} axes, the last of "
            f"{columns or 'features'}; it has {contents(self.file)}. Give a file as "
            "{split}36.hdf5 of bottom-up-attention-vqa, or with pos_boxes"
        )

    def read(self, image_id: int, height: int, width: int) -> Found:
        row = self.places[image_id]
        own = row if self.spans is None else slice(*self.spans[row])
        sides = (1.0, 1.0) if self.fractions else (float(height), float(width))
        with undamaged(self.path, BadExample):
            return Found(self.boxes[own][:, :4], self.features[own], *sides)


def opened(path: Path) -> Any:
    """An HDF5 file, to be read."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: reading HDF5 needs h5py, which is not installed; pip install "
            "'vqatlas[regions]'"
        ) from None
    with undamaged(path, UserError):
        return h5py.File(path, "r")


def lies_in(path: Path, found: Any) -> bool:
    """Whether a dataset's values lie in this file: no link, and no dataset, leads to another."""
    own = Path(found.file.filename) == path
    return own and not found.is_virtual and not found.external


def contents(file: Any) -> str:
    """Names and shapes of what lies in an HDF5 file."""
    return ", ".join(f"{k} {list(getattr(v, 'shape', ()))}" for k, v in file.items()) or "none"


@contextmanager
def undamaged(path: Path, kind: type[UserError] | type[BadExample]) -> Iterator[None]:
    """What h5py raises on a file that is none, or is damaged, as an error that names it."""
    try:
        yield
    except _DAMAGED as error:
        raise kind(
            f"{path} cannot be read as HDF5 ({error!s:.200}); give the path of a feature file, or "
            "copy it again"
        ) from error


def read_index(path: Path, images: int) -> dict[int, int]:
    """Image number -> row, from the file beside ``path`` that its name tells."""
    names = [name.format(path.stem) for name in INDEXES]
    beside = [path.with_name(name) for name in names if path.with_name(name).exists()]
    if not beside:
        raise UserError(
            f"{path} does not say whose regions it holds: there is none of {', '.join(names)} "
            f"in {path.parent}; put that index beside it"
        )
    remedy = "give the index that was written with the features: {image_id: row}"
    index = read_plain(beside[0], remedy)
    rows = {_whole(key): row for key, row in index.items()} if isinstance(index, dict) else {}
    wrong = [(k, r) for k, r in rows.items() if k is None or type(r) is not int]
    beyond = [(k, r) for k, r in rows.items() if type(r) is int and not 0 <= r < images]
    if not rows or wrong or beyond or len(rows) < len(index):
        shown = (wrong or beyond or ["no entries"])[0]
        raise UserError(
            f"{beside[0]} is not a mapping of image numbers to rows 0 to {images - 1} of {path} "
            f"(it has {shown}); {remedy}"
        )
    return {key: row for key, row in rows.items() if key is not None}


def _whole(key: object) -> int | None:
    """An image's number; JSON has it as text."""
    if isinstance(key, str) and re.fullmatch(r"\d{1,18}", key):
        return int(key)
    return key if type(key) is int else None


class TSVFile(FeatureFile):
    """A text file with a line for each image, arrays in base64: the six columns of
    bottom-up-attention (``image_id, image_w, image_h, num_boxes, boxes, features``) or the ten of
    LXMERT. It is read through once, to learn where each image's line is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[int, int] = {}
        self.regions = self.channels = 0
        try:
            with path.open("rb") as file:
                self._index(file)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); give the path of a feature file"
            ) from None
        if not self.places:
            raise UserError(f"{path} has no lines; copy it again")

    def _index(self, file: Any) -> None:
        start = 0
        for number, line in enumerate(file, 1):
            fields = self._fields(line, f"line {number}")
            image, count = (
                image_number(fields["img_id"]),
                _whole(fields["num_boxes"].decode("latin1")),
            )
            if image is None or not count:
                raise UserError(
                    f"{self.path}: line {number} is about image {fields['img_id'][:40]!r} with "
                    f"{fields['num_boxes'][:40]!r} boxes; both should be numbers. Make it again"
                )
            if image in self.places:
                raise UserError(
                    f"{self.path}: line {number}: image {image} is there twice; keep one line of it"
                )
            self.places[image] = start
            self.regions = max(self.regions, count)
            self.channels = self.channels or _bytes_of(fields["features"]) // 4 // count
            start += len(line)

    def _fields(self, line: bytes, where: str) -> dict[str, bytes]:
        parts = line.rstrip(b"\r\n").split(b"\t")
        if len(parts) not in COLUMNS:
            raise UserError(
                f"{self.path}: {where} has {len(parts)} columns separated by tabs, where "
                f"{' or '.join(map(str, sorted(COLUMNS)))} are known; give a file as "
                "bottom-up-attention or LXMERT wrote it"
            )
        return dict(zip(COLUMNS[len(parts)], parts, strict=True))

    def read(self, image_id: int, height: int, width: int) -> Found:
        with self.path.open("rb") as file:
            file.seek(self.places[image_id])
            fields = self._fields(file.readline(), f"image {image_id}")
        boxes = self._array(image_id, fields, "boxes", 4)
        features = self._array(image_id, fields, "features", self.channels)
        sides = [_whole(fields[name].decode("latin1")) for name in ("img_h", "img_w")]
        if not all(sides):
            raise BadExample(
                f"{self.path}: image {image_id} is said to be {fields['img_w'][:20]!r} x "
                f"{fields['img_h'][:20]!r} pixels; make the file again"
            )
        return Found(boxes, features, *(float(side or 0) for side in sides))

    def _array(
        self, image_id: int, fields: Mapping[str, bytes], name: str, columns: int
    ) -> np.ndarray:
        """float32 ``(num_boxes, columns)``."""
        rows = int(fields["num_boxes"])
        try:
            data = base64.b64decode(fields[name], validate=True)
        except binascii.Error as error:
            raise BadExample(
                f"{self.path}: image {image_id}: its {name} are not base64 ({error}); copy the "
                "file again"
            ) from None
        if len(data) != 4 * rows * columns:
            raise BadExample(
                f"{self.path}: image {image_id} has {len(data)} bytes of {name}, {rows} boxes of "
                f"{columns} float32 have {4 * rows * columns}; copy the file again"
            )
        return np.frombuffer(data, "<f4").reshape(rows, columns)


def image_number(name: bytes) -> int | None:
    """42 of ``42`` and of ``COCO_val2014_000000000042``."""
    found = re.search(rb"(?:^|_)(\d{1,18})$", name)
    return int(found[1]) if found else None


def _bytes_of(text: bytes) -> int:
    """That a base64 text stands for."""
    return len(text) // 4 * 3 - text[-2:].count(b"=")
