"""A model of one's own, in the fewest lines, and what explains it.

    cd examples && python own_model.py photo.jpg "is there more red or more green?"

In a recipe it is ``model: {kind: python, target: "own_model:MeanColour"}``, from this folder.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout that is not installed

from pipeline import explain


class MeanColour:
    """Answers any question with the image's strongest colour.

    ``answers`` and ``logits`` are all a model must have. ``logits`` gets float32 RGB images in
    0..255, ``(n, 3, image_size, image_size)``, and n questions as strings; it gives a tensor
    ``(n, answer)``. A class of PyTorch (``torch.nn.Module``) is put into eval mode, its weights are
    frozen, and it is moved to the GPU if there is one.
    """

    answers = ("red", "green", "blue")
    image_size = 64

    def logits(self, images: torch.Tensor, questions: list[str]) -> torch.Tensor:
        return images.mean((2, 3)) / 10


def main(image: str, question: str) -> None:
    """Which part of the photo made it say so, and which pixels does its gradient name?"""
    section = {"kind": "python", "target": "own_model:MeanColour"}
    result = explain(section, image, question, {"occlusion": {"grid": 4}, "saliency": {}})
    print(f"{result.prediction} ({result.confidence:.0%} sure)")
    print(result.maps["occlusion"]["drop"].round(3))


if __name__ == "__main__":
    main(*sys.argv[1:3])
