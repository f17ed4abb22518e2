"""The embedded world as a dataset: official files that are generated when they are not there."""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from schemas.example import Example
from workers.datasets.base import Dataset, Report
from workers.datasets.vqa import VQA
from workers.errors import UserError
from workers.place import BucketPath
from workers.world.files import FIRST_IMAGE, Places, WorldConfig, write_world


class Shapes(WorldConfig, Dataset):
    """Questions about scenes of three to six coloured shapes, with three attention maps each, or
    with the exact mask (``exact``).

    Under ``root``, a folder on disk, there is one world a split, which grows where more scenes are
    asked for; asking for another configuration of the same split is a ``UserError``.
    """

    def read(self, report: Report) -> Iterator[Example]:
        if isinstance(self.root, BucketPath):
            raise UserError(
                f"{self.root}: dataset shapes draws its files on disk. Give it a folder; or copy "
                "such a folder into the bucket and read it by `name: vqa`, with its questions, "
                "annotations, images and hat."
            )
        chosen = self.model_dump(include=set(WorldConfig.model_fields))
        write_world(self.root, WorldConfig.model_validate(chosen))
        places = Places(Path(), self.split)
        official = VQA(
            root=self.root,
            questions=places.questions,
            annotations=places.annotations,
            images=Path(),
            hat=places.hat,
        )
        end = FIRST_IMAGE[self.split] + self.scenes
        yield from takewhile(lambda example: example.image_id < end, official.read(report))
