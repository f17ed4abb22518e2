"""What a transformer's modules put out in one pass, and which of its tokens are a word's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def tapped(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What modules put out while the context lasts, in the order they run; a gradient can be taken
    at all of it. Weights are frozen, so the first of a graph is made its leaf. Of a module that
    puts out a pair, as attention does, the second, in a graph that began before it."""
    outputs: list[Tensor] = []

    def tap(module: nn.Module, given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            outputs.append(output[1])
            return output
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs.append(output)
        return output.clone()  # what comes next may write into it

    handles = [module.register_forward_hook(tap) for module in modules]
    try:
        with torch.enable_grad():
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def called(module: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """What a module is given by name while the context lasts, call after call."""
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, given: Any, named: dict[str, Any]) -> None:
        calls.append(named)

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def word_tokens(
    tokenizer: Any, words: Sequence[str], text: str | None = None
) -> list[tuple[int, ...]]:
    """The sub-tokens of each of some words with one space between, by the places of their letters
    in a text that has them: in the last such part of it, or in a text of nothing else."""
    asked = " ".join(words)
    special = text is None
    text = asked if text is None else text
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    start = text.rindex(asked)
    clipped = [
        (max(0, begin - start), min(len(asked), end - start))
        for begin, end in found["offset_mapping"]
    ]
    return _spans(words, clipped)


def _spans(words: Sequence[str], tokens: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """For each word the numbers of the tokens whose last letter, or the space after it, is its
    own; ``tokens`` are (start, end) in the words' text, those beside it empty."""
    own: list[list[int]] = [[] for _ in words]
    ends = [len(" ".join(words[: i + 1])) + 1 for i in range(len(words))]
    for number, (begin, end) in enumerate(tokens):
        if end > begin:
            own[next(i for i, last in enumerate(ends) if end <= last)].append(number)
    return [tuple(numbers) for numbers in own]


def last_run(whole: Sequence[int], part: Sequence[int]) -> int | None:
    """Where a part begins in a whole for the last time."""
    starts = range(len(whole) - len(part), -1, -1)
    return next((i for i in starts if list(whole[i : i + len(part)]) == list(part)), None)
