"""A trunk as a list of steps on named values, and the rewriting that makes it shorter."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from workers.sweep.operations import Affine, Convolution, Operation, Pointwise

INPUT = "pixels"
BATCH = "batch"
"""A value every program has: how many images go through it at once."""


@dataclass(frozen=True)
class Step:
    """``value = operation(*operands)``."""

    value: str
    operation: Operation
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """The trunk's steps in order, ``(channel, y, x)`` of every map, and maps that never change."""

    steps: tuple[Step, ...]
    output: str
    shapes: dict[str, tuple[int, int, int]]
    constants: dict[str, Tensor] = field(default_factory=dict)
    """``(1, channel or 1, y, x)``: a map of divisors, a positional encoding."""
    dtype: torch.dtype = torch.float32

    def to(self, device: torch.device, dtype: torch.dtype) -> "Program":
        steps = tuple(replace(s, operation=s.operation.to(device, dtype)) for s in self.steps)
        constants = {name: value.to(device, dtype) for name, value in self.constants.items()}
        return replace(self, steps=steps, constants=constants, dtype=dtype)

    @cached_property
    def last_uses(self) -> list[tuple[str, ...]]:
        """For each step the values that nobody needs after it."""
        seen, last = {self.output}, []
        for step in reversed(self.steps):
            last.append(tuple(name for name in dict.fromkeys(step.operands) if name not in seen))
            seen.update(step.operands)
        return last[::-1]

    def macs(self, step: Step) -> int:
        """Multiply-adds of a step on the whole map."""
        if step.value not in self.shapes:
            return 0
        channels, height, width = self.shapes[step.value]
        return step.operation.macs(channels) * height * width

    def run(self, pixels: Tensor, keep: Collection[str] = ()) -> dict[str, Tensor]:
        """The plain pass over whole maps -> the values to ``keep`` and the output."""
        values: dict[str, Tensor] = {INPUT: pixels, **self.constants}
        for step, dead in zip(self.steps, self.last_uses, strict=True):
            operands = [len(pixels) if name == BATCH else values[name] for name in step.operands]
            values[step.value] = step.operation(operands, padded=True)
            for name in set(dead).difference(keep):
                values.pop(name, None)
        return values

    def __call__(self, pixels: Tensor) -> Tensor:
        """The trunk's features ``(n, channel, y, x)`` of ``pixels (n, 3, y, x)``."""
        return self.run(pixels.contiguous(memory_format=torch.channels_last))[self.output]


def shortened(program: Program) -> Program:
    """The same sums in fewer steps: affine maps go into the convolution before them, then a sum
    and a ReLU that follow a convolution become part of it."""
    for rewrite in (_absorb_affine, _absorb_sum, _absorb_relu):
        program = replace(program, steps=tuple(rewrite(program)))
    return program


def _absorb_affine(program: Program) -> list[Step]:
    def merge(before: Step, step: Step) -> Step | None:
        conv, affine = before.operation, step.operation
        if not isinstance(conv, Convolution) or not isinstance(affine, Affine):
            return None
        return Step(step.value, conv.scaled(affine), before.operands)

    return _merged(program, merge)


def _absorb_sum(program: Program) -> list[Step]:
    def merge(before: Step, step: Step) -> Step | None:
        conv = before.operation
        if not isinstance(conv, Convolution) or len(before.operands) > 1 or not is_sum(step):
            return None
        (other,) = (name for name in step.operands if name != before.value)
        if other in program.constants or program.shapes[other] != program.shapes[before.value]:
            return None  # a kernel adds a map an image
        return Step(step.value, conv, (*before.operands, other))

    return _merged(program, merge)


def _absorb_relu(program: Program) -> list[Step]:
    def merge(before: Step, step: Step) -> Step | None:
        operation = before.operation
        if is_relu(step) and isinstance(operation, Convolution | Affine) and not operation.relu:
            return Step(step.value, replace(operation, relu=True), before.operands)
        return None

    return _merged(program, merge)


def is_sum(step: Step) -> bool:
    """``a + b`` of two different maps."""
    function = getattr(step.operation, "function", None)
    return function is torch.add and len(set(step.operands)) == 2


def is_relu(step: Step) -> bool:
    return isinstance(step.operation, Pointwise) and step.operation.function is torch.relu


def _merged(program: Program, merge: Callable[[Step, Step], Step | None]) -> list[Step]:
    """Each step merged with the producer of one of its operands, where that producer has no other
    reader and ``merge`` knows how. The merged step stands where the later of the two stood."""
    readers = Counter(name for step in program.steps for name in step.operands)
    readers[program.output] += 1
    done: dict[str, Step] = {}
    for step in program.steps:
        for name in _latest_first(step.operands, list(done)):
            merged = merge(done[name], step) if readers[name] == 1 else None
            if merged is not None:
                del done[name]
                step = merged
                break
        done[step.value] = step
    return list(done.values())


def _latest_first(operands: Sequence[str], made: list[str]) -> list[str]:
    position = {name: i for i, name in enumerate(made)}
    return sorted((n for n in operands if n in position), key=lambda n: -position[n])
