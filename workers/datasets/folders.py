"""Files that records refer to: listed a folder at a time, and never outside their folder."""

import os
import re

from workers.errors import UserError
from workers.place import BucketPath, Place

MAP_NAME = re.compile(r"(\d+)_(\d+)\.png")


def inside(root: Place, path: str | Place, named_in: object = "") -> Place:
    """``root / path`` with every link followed; ``UserError`` where that leaves ``root``.

    A bucket has no links; there ``..`` is followed, and no escape in a key is decoded.

    ``named_in`` is the data file that gave the path, for the message.
    """
    where = f"{named_in}: " if named_in else ""
    base = root.resolve()
    try:
        target = (base / path).resolve()
        str(target).encode()  # a name that is not UTF-8 cannot be written into a row
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{where}{str(path)!r} is not a path ({error}); correct it") from error
    if base not in (target, *target.parents):
        raise UserError(
            f"{where}{str(path)!r} leads outside {base}, to {target}; "
            "move the file into that folder or name a folder that holds both"
        )
    return target


class Folder:
    """A folder listed once, so that looking a name up touches no file."""

    def __init__(self, path: Place) -> None:
        self.path = path.resolve()
        self.text = str(self.path)
        self.links: dict[str, bool] = {}
        if isinstance(path, BucketPath):
            self.links = dict.fromkeys(path.sizes(), False)
            self.exists = bool(self.links)
            return
        try:
            self.exists = path.is_dir()
            if self.exists:
                with os.scandir(path) as entries:
                    self.links = {entry.name: entry.is_symlink() for entry in entries}
        except OSError as error:
            raise UserError(
                f"{path}: the folder cannot be listed ({error.strerror}); correct its name in the "
                "data or its permissions"
            ) from error

    def file(self, name: str, root: Place, named_in: object) -> str:
        """The path of a listed name; a link must lead somewhere inside ``root``."""
        if self.links[name]:
            return str(inside(root, self.path / name, named_in))
        return f"{self.text}/{name}"  # a Path for each of a million takes seconds


class ImageFolder:
    """Where COCO's images are.

    ``{split}/COCO_{split}_{image_id:012d}.jpg`` (2014 and VQA) or ``{image_id:012d}.jpg`` (2017),
    with or without the folder of the split; also ``.png``.
    """

    def __init__(self, path: Place) -> None:
        self.flat = Folder(path)
        if not self.flat.exists:
            raise UserError(f"{path}: no such folder of images; correct the field 'images'")
        self.splits: dict[str, Folder] = {}
        self.last: tuple[tuple[str, int], str] | None = None

    def find(self, split: str, image_id: int, named_in: object = "") -> str:
        """The image's file; the official name where there is none, for decoding to miss. Questions
        of one image come one after another."""
        if self.last is None or self.last[0] != (split, image_id):
            self.last = (split, image_id), self._find(split, image_id, named_in)
        return self.last[1]

    def _find(self, split: str, image_id: int, named_in: object) -> str:
        if split not in self.splits:
            self.splits[split] = Folder(inside(self.flat.path, split, named_in))
        official = f"COCO_{split}_{image_id:012d}"
        names = [
            f"{stem}{end}" for stem in (official, f"{image_id:012d}") for end in (".jpg", ".png")
        ]
        for folder in (self.splits[split], self.flat):
            for name in names:
                if name in folder.links:
                    return folder.file(name, self.flat.path, named_in)
        missing = f"{self.splits[split].text}/{names[0]}"
        return str(inside(self.flat.path, missing, named_in)) if os.sep in split else missing


def human_map_index(path: Place) -> dict[int, tuple[str, ...]]:
    """VQA-HAT (Das et al. 2016): ``{question_id}_{k}.png`` by question, in the order of k."""
    folder = Folder(path)
    maps: dict[int, list[tuple[int, str]]] = {}
    for name in folder.links:
        if match := MAP_NAME.fullmatch(name):
            file = folder.file(name, folder.path, path)
            maps.setdefault(int(match[1]), []).append((int(match[2]), file))
    if not maps:
        raise UserError(
            f"{path}: no attention map named '{{question_id}}_{{k}}.png' in it; "
            "name the unpacked VQA-HAT folder"
        )
    return {question: tuple(file for _, file in sorted(found)) for question, found in maps.items()}
