"""Which of a language model's tokens see what comes after them, found by changing what does."""

from typing import Any

import torch
from torch import Tensor, nn

KNOWN = {"inputs_embeds", "position_ids", "attention_mask", "cache", "input_ids"}
"""What a language model is given beside switches; a net that gives its own more (Qwen3-VL's visual
features of deeper layers, say) is not one that embeddings alone are enough for."""


def looks_back_only(net: nn.Module, decoder: nn.Module, given: dict[str, Any], at: int) -> bool:
    """Whether tokens before a place have the same states whatever the embeddings from there on are.

    Shapes do not change, and a masked score is a product with exactly 0: so this holds to the last
    bit, or not at all, in every precision; twice its resolution is left to sums in another order.
    """
    first, second = (_states(net, decoder, given, at, sign) for sign in (1, -1))
    apart = float((first - second).abs().max())
    return apart <= 2 * torch.finfo(first.dtype).eps * float(first.abs().max())


def _states(
    net: nn.Module, decoder: nn.Module, given: dict[str, Any], at: int, sign: int
) -> Tensor:
    """Of the tokens before ``at``, ``(1, token, channel)``, with embeddings behind turned."""
    found: list[Tensor] = []

    def turn(module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        embeddings = named["inputs_embeds"].clone()
        embeddings[:, at:] *= sign
        return args, {**named, "inputs_embeds": embeddings}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0][:, :at])

    handles = [
        decoder.register_forward_pre_hook(turn, with_kwargs=True),
        decoder.register_forward_hook(note),
    ]
    try:
        net(**given, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0]


def same_inputs(call: dict[str, Any], embeddings: Tensor, positions: Tensor | None) -> bool:
    """Whether a language model that has been called so got these embeddings ``(1, token, channel)``
    and positions at its beginning, and nothing of weight beside them."""
    length, own = embeddings.shape[1], call["inputs_embeds"][:, : embeddings.shape[1]]
    places = call.get("position_ids")
    more = (name for name in call if name not in KNOWN)
    if any(isinstance(call[name], Tensor | list | tuple | dict) for name in more):
        return False
    if places is None or positions is None:
        if places is not positions:
            return False
    elif not torch.equal(places[..., :length], positions):
        return False
    limit = torch.finfo(own.dtype).eps ** 0.5 * float(own.abs().max())
    return float((own - embeddings).abs().max()) <= limit
