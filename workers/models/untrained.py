"""The published architecture with random weights and a stand-in vocabulary."""

import torch

from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.trunks import damp_residuals

_QUESTIONS = """
what color is the man woman person dog cat in this
how many people are there on a that it
which kind type of time was it does he do you has who why where can with to
"""
WORDS = tuple(dict.fromkeys(_QUESTIONS.split()))
"""Frequent words of VQA questions, so that different questions get different states."""

_REAL_ANSWERS = ("yes", "no", *map(str, range(10)), "white", "black", "red", "blue", "green")
ANSWERS = _REAL_ANSWERS + tuple(f"answer {i}" for i in range(3000 - len(_REAL_ANSWERS)))
"""The published 3000 answers in number; real ones first, so that some truths are among them."""


def untrained(config: KazemiConfig, seed: int) -> Kazemi:
    """A model to try geometry, memory and speed on. Its maps explain nothing.

    Weights are PyTorch's initial ones, drawn from ``seed`` on the CPU without touching the global
    generator's state; residual branches are damped so that activations stay in range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Kazemi(config)
    damp_residuals(model.trunk_net)
    return model
