"""What attention maps are, written out: transformers' own outputs, one image, one question, one
answer, one head after the other, in float64."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

from tests.reference.transformers import prompt


class Seen:
    """Attention of one pass, ``(head, query, key)`` a layer, and the gradients of its score."""

    def __init__(self, layers: Sequence[Tensor], score: Tensor) -> None:
        gradients = torch.autograd.grad(score, layers)
        self.heads = [layer[0].detach().numpy() for layer in layers]
        self.gradients = [gradient[0].numpy() for gradient in gradients]


def vilt(folder: Path, image: np.ndarray, question: str, answer: int) -> tuple[Seen, int]:
    """The pass, and the number of text tokens."""
    net = hf.ViltForQuestionAnswering.from_pretrained(folder, max_image_length=-1).double().eval()
    given = hf.AutoProcessor.from_pretrained(folder)(
        Image.fromarray(image), question, return_tensors="pt"
    )
    given["pixel_values"] = given["pixel_values"].double()
    with patch.object(torch, "multinomial", lambda weights, n: torch.arange(n)):
        out = net(**given, output_attentions=True)  # it shuffles the image's patches
    return Seen(out.attentions, out.logits[0, answer]), given["input_ids"].shape[1]


def blip(folder: Path, image: np.ndarray, question: str, answer: str) -> dict[str, Seen]:
    """``ii``, ``tt``, ``ti``, ``aa``, ``at``: who attends to whom among image, text and answer."""
    net = hf.BlipForQuestionAnswering.from_pretrained(folder).double().eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    given = processor(Image.fromarray(image), question, return_tensors="pt")
    image_side = net.vision_model(given["pixel_values"].double(), output_attentions=True)
    text_side = net.text_encoder(
        given["input_ids"], encoder_hidden_states=image_side[0], output_attentions=True
    )
    ids = [
        *processor.tokenizer(answer, add_special_tokens=False).input_ids,
        net.config.text_config.sep_token_id,
    ]
    out = net.text_decoder(
        torch.tensor([[net.config.text_config.bos_token_id, *ids[:-1]]]),
        encoder_hidden_states=text_side[0],
        output_attentions=True,
    )
    score = sum(out.logits[0, i].log_softmax(-1)[token] for i, token in enumerate(ids))
    parts = {
        "ii": image_side.attentions,
        "tt": text_side.attentions,
        "ti": text_side.cross_attentions,
        "aa": out.attentions,
        "at": out.cross_attentions,
    }
    whole = Seen([layer for layers in parts.values() for layer in layers], score)
    found, start = {}, 0
    for name, layers in parts.items():
        part = slice(start, start + len(layers))
        found[name] = Seen.__new__(Seen)
        found[name].heads, found[name].gradients = whole.heads[part], whole.gradients[part]
        start = part.stop
    return found


def generative(
    folder: Path, image: np.ndarray, question: str, answer: str
) -> tuple[Seen, list[int], int]:
    """The pass of prompt and answer, the prompt's ids and the number of the answer's."""
    net = hf.AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    net = net.double().eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    given: Any = processor(
        text=[prompt(processor, question)], images=[Image.fromarray(image)], return_tensors="pt"
    )
    given.pop("labels", None)
    asked = given["input_ids"][0].tolist()
    space = " " if processor.chat_template else ""
    more = processor.tokenizer(space + answer, add_special_tokens=False).input_ids
    ids = [*more, processor.tokenizer.eos_token_id]
    given["input_ids"] = torch.tensor([[*asked, *ids[:-1]]])
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    for name, kind in (("token_type_ids", 1), ("mm_token_type_ids", 0)):
        if name in given:
            behind = torch.full((1, len(ids) - 1), kind)
            given[name] = torch.cat([given[name], behind], 1)
    given["pixel_values"] = given["pixel_values"].double()
    out = net(**given, output_attentions=True, use_cache=False)
    logits = out.logits[0, len(asked) - 1 :]
    score = sum(logits[i].log_softmax(-1)[token] for i, token in enumerate(ids))
    return Seen(out.attentions, score), asked, len(ids)


def painted(values: np.ndarray, pieces: Sequence[str], shape: tuple[int, int]) -> np.ndarray:
    """An Idefics3 prompt's image tokens, value by value, painted onto the frame: ``<row_r_col_c>``
    begins the tokens of a tile, ``<global-img>`` those of the thumbnail, row by row; a token has a
    rectangle of the frame, and its value is spread evenly over the cells there."""
    tags = [re.fullmatch(r"<row_(\d)_col_(\d)>", piece) for piece in pieces]
    places = [(int(tag[1]) - 1, int(tag[2]) - 1) for tag in tags if tag]
    rows, columns = max(r for r, _ in places) + 1, max(c for _, c in places) + 1
    side = round((sum(piece == "<image>" for piece in pieces) / (rows * columns + 1)) ** 0.5)
    frame, left = np.zeros((rows * side, columns * side)), list(values)
    for piece, tag in zip(pieces, tags, strict=True):
        if tag or piece == "<global-img>":
            top, start = (int(tag[1]) - 1, int(tag[2]) - 1) if tag else (0, 0)
            down, along, number = (1, 1, 0) if tag else (rows, columns, 0)
        elif piece == "<image>":
            y = top * side + number // side * down
            x = start * side + number % side * along
            frame[y : y + down, x : x + along] += left.pop(0) / (down * along)
            number += 1
    assert frame.shape == shape
    assert not left
    return frame


def rollout(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Abnar and Zuidema 2020, section 3, of one sequence."""
    flow = np.eye(layers[0].shape[-1])
    for heads in layers:
        mean = sum(heads[h] for h in range(len(heads))) / len(heads)
        flow = (0.5 * mean + 0.5 * np.eye(len(mean))) @ flow
    return flow


def weights(seen: Seen, layer: int) -> np.ndarray:
    """Chefer et al. 2021, equation 5."""
    heads, gradients = seen.heads[layer], seen.gradients[layer]
    return sum(np.maximum(gradients[h] * heads[h], 0) for h in range(len(heads))) / len(heads)


def relevance(seen: Seen) -> np.ndarray:
    """Equations 1 and 6, of one sequence."""
    found = np.eye(seen.heads[0].shape[-1])
    for layer in range(len(seen.heads)):
        found = found + weights(seen, layer) @ found
    return found


def normalised(found: np.ndarray) -> np.ndarray:
    """Equations 8 and 9."""
    beyond = found - np.eye(len(found))
    for row in beyond:
        if row.sum() > 0:
            row /= row.sum()
    return beyond + np.eye(len(found))


def relevance_of_three(seen: dict[str, Seen]) -> dict[str, np.ndarray]:
    """BLIP's image, text and answer: equations 6, 7, 10, and 11 for what the text has of the
    image."""
    ii = relevance(seen["ii"])
    tt = np.eye(seen["tt"].heads[0].shape[-1])
    ti = np.zeros((len(tt), len(ii)))
    for layer in range(len(seen["tt"].heads)):
        own, cross = weights(seen["tt"], layer), weights(seen["ti"], layer)
        tt, ti = tt + own @ tt, ti + own @ ti
        ti = ti + normalised(tt).T @ cross @ normalised(ii)
    aa = np.eye(seen["aa"].heads[0].shape[-1])
    at, ai = np.zeros((len(aa), len(tt))), np.zeros((len(aa), len(ii)))
    for layer in range(len(seen["aa"].heads)):
        own, cross = weights(seen["aa"], layer), weights(seen["at"], layer)
        aa, at, ai = aa + own @ aa, at + own @ at, ai + own @ ai
        at = at + normalised(aa).T @ cross @ normalised(tt)
        ai = ai + cross @ ti
    return {"ti": ti, "at": at, "ai": ai}


def rollout_of_three(seen: dict[str, Seen]) -> dict[str, np.ndarray]:
    """BLIP: half of what a token had, half of what those it attends to have."""
    ii = rollout(seen["ii"].heads)
    tt = np.eye(seen["tt"].heads[0].shape[-1])
    ti = np.zeros((len(tt), len(ii)))
    for own, cross in zip(seen["tt"].heads, seen["ti"].heads, strict=True):
        tt, ti = (tt + own.mean(0) @ tt) / 2, (ti + own.mean(0) @ ti) / 2
        tt, ti = tt / 2, (ti + cross.mean(0) @ ii) / 2
    aa = np.eye(seen["aa"].heads[0].shape[-1])
    at, ai = np.zeros((len(aa), len(tt))), np.zeros((len(aa), len(ii)))
    for own, cross in zip(seen["aa"].heads, seen["at"].heads, strict=True):
        aa, at, ai = ((part + own.mean(0) @ part) / 2 for part in (aa, at, ai))
        aa, at, ai = aa / 2, (at + cross.mean(0) @ tt) / 2, (ai + cross.mean(0) @ ti) / 2
    return {"ti": ti, "at": at, "ai": ai}


def cross_cams(seen: Seen, layer: int) -> np.ndarray:
    """ALBEF's ``visualization.ipynb``: ``(query, key)``, the mean over heads."""
    heads, gradients = seen.heads[layer], seen.gradients[layer]
    cams = [heads[h] * np.clip(gradients[h], 0, None) for h in range(len(heads))]
    return sum(cams) / len(cams)
