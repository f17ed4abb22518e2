"""Trains the small models whose weights are shipped: the embedded world's two and easy-VQA's.

    python -m workers.train demo
    python -m workers.train demo-lstm
    python -m workers.train easy-vqa

As Kazemi and Elqursh (2017): soft cross-entropy against what the annotators said, a trunk that is
pre-trained (here to name what each cell of the image shows, there on ImageNet). Ours differs in
that the trunk is then trained along, once an image for all its questions; the second model of the
embedded world takes the first one's trunk and adds a block. Beside each model a question-only
baseline is trained the same way, its image features zeroed.
"""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
)

from schemas.base import Frozen
from schemas.limits import Limits
from workers.datasets.easy_vqa import EasyVQA
from workers.errors import UserError
from workers.images import decode
from workers.models import deeper_lstm
from workers.models.deeper_lstm import DeeperLSTM, DeeperLSTMConfig
from workers.models.kazemi import Kazemi, KazemiConfig, feature_shape, load, save
from workers.models.questions import UNKNOWN
from workers.models.specs import WEIGHTS
from workers.models.tokenisers import TOKENISERS
from workers.models.trunks import trunk_shape
from workers.world.sample import sample
from workers.world.scene import HUES, SHAPES, SIDE, Scene

TOKENISER = "simple"
CELL = 8
"""Pixels a cell, the stride of the small trunk."""
SHOWN = 0.25
"""The share of a cell that a thing must cover to be what the cell shows."""
NOTHING = 0.2
"""Weight of a cell that shows nothing, since most cells do."""

PRETRAINING = 16_000
"""Scenes that the trunk is pre-trained on; it names cells well after a few thousand."""

ADDED = 128
"""Width of the block that the second model adds to the first one's trunk."""
LOUD = 2.5
"""Factor on both sides of the combine layer: neurons that begin as near switches take off soon."""
SOME = 1000
"""Scenes in memory as pixels while their features are computed."""

app = typer.Typer(add_completion=False, help=__doc__)


Trainable = Kazemi | DeeperLSTM


class Item(NamedTuple):
    """A question, what annotators answered, and the answer most of them gave."""

    text: str
    kind: str
    given: tuple[str, ...]
    truth: str


@dataclass(frozen=True)
class Corpus:
    """Images in memory, and each one's questions."""

    images: Tensor
    """uint8 ``(image, 3, y, x)``; or what the first layers make of them, float16; or the vectors
    ``(image, width)`` that ``as_vectors`` makes of them."""
    items: list[list[Item]]
    cells: Tensor | None = None
    """What each cell shows: hue and shape, 0 for nothing; int64 ``(image, 2, y, x)``."""
    depth: int = 0
    """Layers of the trunk that ``images`` have been through."""

    def first(self, images: int) -> "Corpus":
        cells = None if self.cells is None else self.cells[:images]
        return Corpus(self.images[:images], self.items[:images], cells, self.depth)


class Training(Frozen):
    """How long and how fast; AdamW under a one-cycle learning rate."""

    epochs: int
    batch: int = 32
    """Images a step, with all their questions."""
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    bfloat16: bool = False
    """Twice as fast where the processor has it."""
    seed: int = 0


def shapes_corpus(
    seed: int,
    split: str,
    scenes: int,
    difficulty: str = "standard",
    questions: int = 6,
    first: int = 0,
) -> Corpus:
    """Scenes of the embedded world from ``first`` on: the very ones that ``write_world`` writes."""
    images = torch.empty(scenes, 3, SIDE, SIDE, dtype=torch.uint8)
    cells = torch.empty(scenes, 2, SIDE // CELL, SIDE // CELL, dtype=torch.long)
    items = []
    for number in range(scenes):
        drawn = sample(seed, split, first + number, difficulty, questions)
        images[number] = torch.from_numpy(drawn.scene.image).permute(2, 0, 1)
        cells[number] = torch.from_numpy(cell_names(drawn.scene))
        items.append([Item(a.text, a.question.kind, tuple(a.given), a.label) for a in drawn.asked])
    return Corpus(images, items, cells)


def cell_names(scene: Scene) -> np.ndarray:
    """The hue and the shape of the thing that fills most of each cell: ``(2, y, x)``, 0 nothing."""
    count, side = len(scene.things), SIDE // CELL
    cover = scene.masks.reshape(count, side, CELL, side, CELL).mean((2, 4))
    names = np.array(
        [[1 + HUES.index(t.color) for t in scene.things],
         [1 + SHAPES.index(t.shape) for t in scene.things]]
    )  # fmt: skip
    return np.where(cover.max(0) >= SHOWN, names[:, cover.argmax(0)], 0)


def easy_vqa_corpus(root: Path, split: str) -> Corpus:
    """easy-VQA's images and questions; yes/no questions with "no" or "not" are a kind apart."""
    by_image: dict[str, list[Item]] = defaultdict(list)
    for example in EasyVQA(root=root, split=split).examples():
        assert example.truth is not None and example.answer_type is not None
        negated = {"no", "not"} & set(TOKENISERS[TOKENISER](example.question))
        kind = "yes/no, negated" if negated else example.answer_type
        by_image[example.image].append(Item(example.question, kind, example.answers, example.truth))
    arrays = [decode(path, Limits()) for path in by_image]
    return Corpus(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2), list(by_image.values()))


def small_model(corpus: Corpus, seed: int) -> Kazemi:
    """A fresh small Kazemi-Elqursh model whose vocabularies are the corpus's."""
    torch.manual_seed(seed)
    words, answers = vocabularies(corpus)
    model = Kazemi(
        KazemiConfig(
            trunk="small",
            image_size=corpus.images.shape[-1],
            resize="squash",
            mean=(0.6, 0.6, 0.6),
            std=(0.25, 0.25, 0.25),
            embedding=64,
            state=128,
            attention=128,
            hidden=256,
            dropout=0.0,
            tokeniser=TOKENISER,
            words=tuple(words),
            answers=tuple(answers),
        )
    )
    _start_at_unit_scale(model)
    return model


def vocabularies(corpus: Corpus) -> tuple[list[str], list[str]]:
    """The corpus's question words and answers, in order."""
    items = list(chain.from_iterable(corpus.items))
    words = chain.from_iterable(map(TOKENISERS[TOKENISER], {item.text for item in items}))
    answers = chain.from_iterable(item.given for item in items)
    return sorted(set(words)), sorted(set(answers))


def small_lstm(first: Kazemi, corpus: Corpus, seed: int) -> DeeperLSTM:
    """A fresh small Deeper LSTM Q + norm I, whose trunk is that of ``first`` and one more block."""
    torch.manual_seed(seed)
    words, answers = vocabularies(corpus)
    model = DeeperLSTM(
        DeeperLSTMConfig(
            trunk="small",
            channels=(*first.config.channels, ADDED),
            image_size=first.config.image_size,
            bgr=False,
            mean=tuple(255 * value for value in first.config.mean),
            std=tuple(255 * value for value in first.config.std),
            pool=12,
            fully=(256,),
            embedding=64,
            state=64,
            combine=1024,
            dropout=0.0,
            tokeniser=TOKENISER,
            words=(*words, UNKNOWN),
            answers=tuple(answers),
        )
    )
    with (
        torch.no_grad()
    ):  # as in _start_at_unit_scale: an image vector has length one, so has a word
        model.image_in.weight *= LOUD * model.config.fully[-1] ** 0.5
        model.question.embedding.weight *= len(words) ** 0.5
        model.question_in.weight *= LOUD
    known = _layers(first)
    _layers(model)[: len(known)].load_state_dict(known.state_dict())
    return model


def _layers(model: Trainable) -> nn.Sequential:
    """The small trunk's stem and blocks."""
    return nn.Sequential(*model.trunk_net.children())


@torch.inference_mode()
def seen_by(first: Kazemi, seed: int, split: str, scenes: int, difficulty: str) -> Corpus:
    """Scenes as a trained trunk hands them on, drawn and dropped some at a time."""
    maps, cells, items = [], [], []
    for start in range(0, scenes, SOME):
        some = shapes_corpus(seed, split, min(SOME, scenes - start), difficulty, first=start)
        for images in torch.arange(len(some.items)).split(64):
            maps.append(trunk_features(first, some, images.tolist()).half())
        assert some.cells is not None
        cells.append(some.cells)
        items += some.items
    return Corpus(torch.cat(maps), items, torch.cat(cells), depth=len(_layers(first)))


def _start_at_unit_scale(model: Kazemi) -> None:
    """Undo in the first weights what normalising features of n channels does: divide by sqrt(n).

    Without it the attention gets next to no gradient and learns several times more slowly.
    """
    channels = feature_shape(model.config)[0]
    with torch.no_grad():
        model.attention.v_conv.weight *= channels**0.5
        glimpses = model.classifier.get_parameter("lin1.weight")[:, : -model.config.state]
        glimpses *= channels**0.5


def pretrain_trunk(model: Kazemi, corpus: Corpus, how: Training) -> list[float]:
    """Teach the trunk to name each cell's hue and shape; the probe on top is thrown away."""
    assert corpus.cells is not None
    cells = corpus.cells
    probe = nn.Conv2d(feature_shape(model.config)[0], 2 + len(HUES) + len(SHAPES), 1)

    def loss(images: list[int]) -> Tensor:
        named = probe(trunk_features(model, corpus, images)).float()
        names = cells[images]
        weights = torch.where(names[:, 0] > 0, 1.0, NOTHING)
        hues, shapes = named.split([1 + len(HUES), 1 + len(SHAPES)], dim=1)
        each = cross_entropy(hues, names[:, 0], reduction="none") + cross_entropy(
            shapes, names[:, 1], reduction="none"
        )
        return (each * weights).sum() / weights.sum()

    return _descend(nn.ModuleList([model.trunk_net, probe]), len(corpus.items), how, loss)


def pretrain_image(
    model: DeeperLSTM, corpus: Corpus, how: Training, apart: bool = False
) -> list[float]:
    """Teach the added block and the fully connected layer to name the things of a scene, each by
    hue and shape, as the published network comes from ImageNet; the probe is thrown away.

    ``apart``: the hues and the shapes that there are, so that which goes with which is not taught.
    """
    named = things_shown(corpus)
    if apart:
        whole = named.reshape(-1, len(HUES), len(SHAPES))
        named = torch.cat([whole.amax(2), whole.amax(1)], 1)
    seen = model.config.fully[-1]
    probe = nn.Linear(seen, named.shape[1])
    added = _layers(model)[corpus.depth :]

    def loss(images: list[int]) -> Tensor:
        features = trunk_features(model, corpus, images)
        scores = probe(model.image(features) * seen**0.5)
        return binary_cross_entropy_with_logits(scores, named[images])

    return _descend(nn.ModuleList([added, model.image, probe]), len(named), how, loss)


def things_shown(corpus: Corpus) -> Tensor:
    """Whether any cell shows a thing of this hue and shape: ``(image, hue * shape)``, 0 or 1."""
    assert corpus.cells is not None
    hues, shapes = corpus.cells.flatten(2).unbind(1)
    names = (hues - 1) * len(SHAPES) + shapes  # from 1 on; 0 and less where nothing is
    shown = torch.zeros(len(names), 1 + len(HUES) * len(SHAPES))
    return shown.scatter_(1, names.clamp(min=0), 1.0)[:, 1:]


@torch.inference_mode()
def as_vectors(model: DeeperLSTM, corpus: Corpus) -> Corpus:
    """What the image network makes of the corpus, ``(image, width)``: in Lu et al. too only the
    question and what follows are trained."""
    parts = torch.arange(len(corpus.items)).split(256)
    seen = [model.image(trunk_features(model, corpus, part.tolist())) for part in parts]
    return Corpus(torch.cat(seen), corpus.items)


def train(model: Trainable, corpus: Corpus, how: Training, blind: bool = False) -> list[float]:
    """Train the whole model, in place; the loss of every step.

    The loss of a question is the cross-entropy to the shares of its annotators' answers. ``blind``
    zeroes the image features.
    """

    def loss(images: list[int]) -> Tensor:
        scores = log_softmax(logits(model, corpus, images, blind).float(), 1)
        return -(answer_shares(model, corpus, images) * scores).sum(1).mean()

    return _descend(model, len(corpus.items), how, loss)


def _descend(
    module: nn.Module, images: int, how: Training, loss_of: Callable[[list[int]], Tensor]
) -> list[float]:
    """One-cycle AdamW over shuffled batches of image numbers; prints where it is."""
    torch.manual_seed(how.seed)
    module.train().to(memory_format=torch.channels_last)
    steps = how.epochs * -(-images // how.batch)
    optimiser = torch.optim.AdamW(
        module.parameters(), how.learning_rate, weight_decay=how.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, how.learning_rate, steps)
    losses: list[float] = []
    began = time.monotonic()
    for batch in _batches(images, how):
        with torch.autocast("cpu", torch.bfloat16, enabled=how.bfloat16):
            loss = loss_of(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 100 == 0 or len(losses) == steps:
            mean, seconds = np.mean(losses[-100:]), time.monotonic() - began
            left = seconds / len(losses) * (steps - len(losses)) / 60
            print(f"  step {len(losses)}/{steps}  loss {mean:.3f}  {left:.1f} min left", flush=True)
    module.eval()
    return losses


def _batches(images: int, how: Training) -> Iterator[list[int]]:
    for _ in range(how.epochs):
        for batch in torch.randperm(images).split(how.batch):
            yield batch.tolist()


def trunk_features(model: Trainable, corpus: Corpus, images: list[int]) -> Tensor:
    """The features of some images, ``(image, channel, y, x)``."""
    if corpus.depth:
        return _layers(model)[corpus.depth :](corpus.images[images].float())
    pixels = model.normalise(corpus.images[images].float())
    return model.trunk(pixels.contiguous(memory_format=torch.channels_last))


def logits(model: Trainable, corpus: Corpus, images: list[int], blind: bool) -> Tensor:
    """All questions of some images: ``(question, answer)``. Equal questions are read once."""
    asked = [model.tokenise(item.text) for i in images for item in corpus.items[i]]
    distinct = {tokens: row for row, tokens in enumerate(dict.fromkeys(asked))}
    states = model.encode(model.words(list(distinct)))[[distinct[tokens] for tokens in asked]]
    if blind:
        return model.head(torch.zeros(len(asked), *_blank(model)), states).logits
    repeats = torch.tensor([len(corpus.items[i]) for i in images])
    if isinstance(model, DeeperLSTM) and corpus.images.ndim == 2:
        seen = model.image_in(corpus.images[images]).tanh()
        return model.classify(seen.repeat_interleave(repeats, 0), states)
    features = trunk_features(model, corpus, images).repeat_interleave(repeats, 0)
    return model.head(features, states).logits


def _blank(model: Trainable) -> tuple[int, int, int]:
    """Channels, height and width of features that show nothing; attention over equal cells is
    attention over one."""
    config = model.config
    shape = trunk_shape(config.trunk, config.channels, config.image_size)
    return (shape[0], 1, 1) if isinstance(model, Kazemi) else shape


def answer_shares(model: Trainable, corpus: Corpus, images: list[int]) -> Tensor:
    """The share of each answer among a question's annotators: ``(question, answer)``."""
    items = [item for i in images for item in corpus.items[i]]
    shares = torch.zeros(len(items), len(model.answers))
    for row, item in zip(shares, items, strict=True):
        for answer, count in Counter(item.given).items():
            index = model.answer_index(answer)
            if index is not None:
                row[index] = count / len(item.given)
    return shares


class Judged(NamedTuple):
    """One held-out question: whether the top answer is the labelled one, and its probability."""

    kind: str
    right: bool
    confidence: float


def judge(model: Trainable, corpus: Corpus, blind: bool = False) -> list[Judged]:
    """The model's answers to every question of a corpus."""
    judged = []
    with torch.inference_mode():
        for batch in torch.arange(len(corpus.items)).split(64):
            images = batch.tolist()
            best = logits(model, corpus, images, blind).softmax(1).max(1)
            items = [item for i in images for item in corpus.items[i]]
            for item, p, index in zip(items, best.values, best.indices, strict=True):
                judged.append(Judged(item.kind, model.answers[index] == item.truth, float(p)))
    return judged


def accuracy(judged: list[Judged]) -> dict[str, float]:
    """Percent right by kind of question, and over ``all``."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for item in judged:
        by_kind[item.kind].append(item.right)
        by_kind["all"].append(item.right)
    return {kind: 100 * float(np.mean(right)) for kind, right in by_kind.items()}


def crossings(judged: list[Judged]) -> dict[str, int]:
    """Right and wrong answers of low (below 0.5) and high (above 0.75) confidence, counted."""
    names = {True: "right", False: "wrong"}
    counts = Counter(f"{names[j.right]}, below 0.5" for j in judged if j.confidence < 0.5)
    counts += Counter(f"{names[j.right]}, above 0.75" for j in judged if j.confidence > 0.75)
    return dict(counts)


def print_accuracy(title: str, seeing: list[Judged], blind: list[Judged]) -> None:
    """A Markdown table by kind of question."""
    ours, baseline = accuracy(seeing), accuracy(blind)
    kinds = Counter(item.kind for item in seeing)
    print(f"\n{title}\n\n| question | n | model, % | question only, % |\n| --- | --- | --- | --- |")
    for kind in [*sorted(kinds), "all"]:
        count = kinds[kind] or len(seeing)
        print(f"| {kind} | {count} | {ours[kind]:.1f} | {baseline.get(kind, 0):.1f} |")


@app.command()
def demo(
    out: Path = WEIGHTS / "demo.safetensors",
    scenes: int = 50_000,
    epochs: int = 2,
    seed: int = 0,
    bfloat16: bool = False,
) -> None:
    """The embedded world's model; the figures of docs/demo_model.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"drawing {scenes} scenes")
    corpus = shapes_corpus(seed, "train2014", scenes)
    model = small_model(corpus, seed)
    once = Training(epochs=1, learning_rate=3e-3, bfloat16=bfloat16, seed=seed)
    how = Training(epochs=epochs, bfloat16=bfloat16, seed=seed)
    print("training the trunk to name what each cell shows")
    pretrain_trunk(model, corpus.first(PRETRAINING), once)
    print("training the model")
    train(model, corpus, how)
    save(model, out)
    print("training the question-only baseline")
    baseline = small_model(corpus, seed)
    train(baseline, corpus, how, blind=True)
    for difficulty in ("standard", "hard"):
        held_out = shapes_corpus(seed, "val2014", 1000, difficulty)
        seeing, blind = judge(model, held_out), judge(baseline, held_out, blind=True)
        print_accuracy(f"1,000 held-out scenes, {difficulty}", seeing, blind)
    demo_examples = shapes_corpus(1, "val2014", 200, "hard", questions=3)
    print(f"\nexamples of recipes/demo.yaml: {crossings(judge(model, demo_examples))}")
    print(f"wrote {out}")


@app.command()
def demo_lstm(
    first: Path = WEIGHTS / "demo.safetensors",
    out: Path = WEIGHTS / "demo_lstm.safetensors",
    scenes: int = 24_000,
    epochs: int = 12,
    seed: int = 0,
    apart: bool = False,
) -> None:
    """The embedded world's ``deeper_lstm``, on the first model's trunk; docs/demo_model.md.

    ``apart``: its image network names hues and shapes apart, not things.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    trained = load(first).eval()
    print(f"drawing {scenes} scenes, and what the trunk of {first.name} makes of them")
    corpus = seen_by(trained, seed, "train2014", scenes, "standard")
    model, baseline = (small_lstm(trained, corpus, seed) for _ in range(2))
    print("training the added block to name what the scene shows")
    once = Training(epochs=2, learning_rate=3e-3, seed=seed)
    pretrain_image(model, corpus.first(PRETRAINING), once, apart)
    print("training question, combine layer and answer")
    how = Training(epochs=epochs, batch=64, learning_rate=8e-3, seed=seed)
    train(model, as_vectors(model, corpus), how)
    deeper_lstm.save(model, out, torch.float16)
    print("training the question-only baseline")
    train(baseline, corpus, how, blind=True)
    shipped = deeper_lstm.load(out).eval()
    for difficulty in ("standard", "hard"):
        held_out = seen_by(trained, seed, "val2014", 1000, difficulty)
        seeing, blind = judge(shipped, held_out), judge(baseline, held_out, blind=True)
        print_accuracy(f"1,000 held-out scenes, {difficulty}", seeing, blind)
    print(f"wrote {out}")


@app.command()
def easy_vqa(
    data: Path = Path("../shared/data/easy-vqa/easy_vqa/data"),
    out: Path = WEIGHTS / "easy_vqa.safetensors",
    epochs: int = 12,
    seed: int = 0,
    bfloat16: bool = False,
) -> None:
    """easy-VQA's model, trained on its train images and judged on its test images."""
    out.parent.mkdir(parents=True, exist_ok=True)
    corpus = easy_vqa_corpus(data, "train")
    held_out = easy_vqa_corpus(data, "test")
    how = Training(epochs=epochs, batch=16, learning_rate=3e-3, bfloat16=bfloat16, seed=seed)
    model = small_model(corpus, seed)
    train(model, corpus, how)
    save(model, out)
    print("training the question-only baseline")
    baseline = small_model(corpus, seed)
    train(baseline, corpus, how, blind=True)
    seeing, blind = judge(model, held_out), judge(baseline, held_out, blind=True)
    print_accuracy("easy-VQA, test", seeing, blind)
    print(f"wrote {out}")


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
