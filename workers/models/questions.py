"""What models that read a question with an LSTM share: word indices, vocabularies, final states."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from workers.errors import UserError
from workers.models.base import Tokens

UNKNOWN = "UNK"
"""The last word of VQA_LSTM_CNN's vocabularies: what a word that is not in it is read as."""
PREPRO = "give the JSON file that VQA_LSTM_CNN's prepro.py wrote beside the model's training data"


def check_different(entries: Sequence[str]) -> None:
    """``ValueError`` where an entry is there more than once."""
    if len(set(entries)) < len(entries):
        twice = next(entry for entry in entries if entries.count(entry) > 1)
        raise ValueError(f"{twice!r} is there more than once")


def check_vocabularies(words: Sequence[str], answers: Sequence[str]) -> None:
    """``ValueError`` where an entry is there twice or ``UNK`` is not the last word."""
    if not words or words[-1] != UNKNOWN:
        raise ValueError(f"the last of the words must be {UNKNOWN!r}")
    check_different(words)
    check_different(answers)


def read_vocabularies(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words and answers of VQA_LSTM_CNN's ``data_prepro.json``, or neural-vqa-attention's
    ``params.json``: ``ix_to_word`` and ``ix_to_ans``, each numbered from 1 without a gap."""
    try:
        found = from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; {PREPRO}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {PREPRO}") from error
    return _entries(found, "ix_to_word", path), _entries(found, "ix_to_ans", path)


def _entries(found: Any, key: str, path: Path) -> tuple[str, ...]:
    table = found.get(key) if isinstance(found, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} has no {key!r}; {PREPRO}")
    numbered = (table.get(str(number)) for number in range(1, len(table) + 1))
    entries = tuple(entry for entry in numbered if isinstance(entry, str))
    if len(entries) < len(table):
        raise UserError(
            f"{path}: the {len(table)} entries of {key!r} are not texts numbered 1 to "
            f"{len(table)}; {PREPRO}"
        )
    return entries


def word_indices(
    questions: Sequence[Tokens], index: Mapping[str, int], unknown: int
) -> tuple[Tensor, Tensor]:
    """Indices ``(n, word)``, end-padded, at least one column so that empty questions have a shape,
    and lengths ``(n,)``. Both stay on the CPU, where packing a sequence needs the lengths."""
    lengths = torch.tensor([len(tokens) for tokens in questions])
    indices = torch.full((len(questions), max(1, int(lengths.max()))), unknown)
    for row, tokens in zip(indices, questions, strict=True):
        row[: len(tokens)] = torch.tensor([index.get(token, unknown) for token in tokens])
    return indices, lengths


def native_rnn(rnn: nn.Module) -> AbstractContextManager[Any]:
    """Where a gradient may follow: cuDNN's LSTM and GRU have no backward pass in eval mode,
    PyTorch's own kernels have."""
    native = torch.is_grad_enabled() and not rnn.training
    return torch.backends.cudnn.flags(enabled=False) if native else nullcontext()


def final_states(lstm: nn.LSTM, steps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``steps (n, word, channel)`` and ``lengths (n,)`` -> output and cell ``(layer, n, state)``
    after each question's last word. Those of an empty question are the LSTM's initial ones, zero.
    """
    packed = pack_padded_sequence(
        steps, lengths.cpu().clamp(min=1), batch_first=True, enforce_sorted=False
    )
    with native_rnn(lstm):
        _, (hidden, cell) = lstm(packed)
    asked = (lengths > 0).to(cell.device)[:, None]
    return torch.where(asked, hidden, 0), torch.where(asked, cell, 0)
