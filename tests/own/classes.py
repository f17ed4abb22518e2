"""Classes that know nothing of this project: the least, the most, and broken ones."""

from typing import ClassVar

import torch
from torch import Tensor, nn

ANSWERS = ["red", "green", "blue", "yes", "no"]


def hashed(word: str) -> int:
    """A word's place among 17 embeddings, the same on every machine."""
    return sum(map(ord, word)) % 16 + 1


class Least(nn.Module):
    """``logits`` and ``answers``, nothing else."""

    answers = ANSWERS
    image_size = 24

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image = nn.Conv2d(3, 6, 5, 4)
        self.word = nn.Embedding(17, 6)
        self.answer = nn.Linear(6, len(ANSWERS))
        self.drop = nn.Dropout(0.5)

    def asked(self, questions: list[str]) -> Tensor:
        rows = [[hashed(word) for word in q.split()] or [0] for q in questions]
        return torch.stack([self.word.weight[row].sum(0) for row in rows])

    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        seen = torch.relu(self.image(images / 255 - 0.5)).mean((2, 3))
        return 20 * self.answer(self.drop(seen * self.asked(questions).tanh()))


class Plain:
    """Not even a module: a table and a mean colour."""

    answers = ANSWERS
    image_size = 16

    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        with torch.no_grad():
            colour = images.mean((2, 3)) / 64
            asked = torch.tensor([float(len(q)) for q in questions])[:, None] / 20
            return torch.cat([colour, asked, 1 - asked], 1)


class Late(nn.Module):
    """A late-fusion model with attention, in the four methods that unlock everything."""

    answers = ANSWERS
    image_size = 24
    resize = "shorter_side_crop"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1))
        self.embedding = nn.Embedding(17, 4)
        self.state = nn.Linear(4, 6)
        self.answer = nn.Linear(6, len(ANSWERS))

    def normalise(self, images: Tensor) -> Tensor:
        return images / 127.5 - 1

    def trunk(self, images: Tensor) -> Tensor:
        return torch.relu(self.net(images))

    def words(self, questions: list[str]) -> tuple[Tensor, Tensor]:
        rows = [[hashed(word) for word in q.split()] for q in questions]
        longest = max(1, *map(len, rows), 1)
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return self.embedding(padded), torch.tensor([len(row) for row in rows])

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(embeddings.shape[1])[None] < lengths[:, None]
        return self.state((embeddings * mask[..., None]).sum(1)).tanh()

    def head(self, features: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        match = (features * states[:, :, None, None]).sum(1, keepdim=True)
        attention = match.flatten(1).softmax(1).view_as(match)
        return 20 * self.answer((features * attention).sum((2, 3)) * states), attention


class Unfinished(nn.Module):
    """Half of a late-fusion model, and no logits."""

    answers = ANSWERS

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def head(self, features: Tensor, states: Tensor) -> Tensor:
        return features.mean((2, 3))


class Transposed(Plain):
    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        return super().logits(images, questions).T


class Silent(Plain):
    answers: ClassVar[list[str]] = []


class Careless(Least):
    """Everything that makes maps go wrong without a word: drops out when it should not, mixes its
    batch, chokes on an empty question."""

    def logits(self, images: Tensor, questions: list[str]) -> Tensor:
        first = [question.split()[0] for question in questions]
        mixed = images - images.mean(0)
        noise = nn.functional.dropout(mixed, 0.5, training=True)
        return super().logits(noise, first)


class Marked(Late):
    """Puts a mark of its own before the words, which the tokeniser does not know of."""

    def words(self, questions: list[str]) -> tuple[Tensor, Tensor]:
        return super().words([f"<start> {question}" for question in questions])
