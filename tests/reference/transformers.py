"""What models of Hugging Face say, by their documented use alone: one image, one question, one
candidate at a time, no cache, no batch."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image

TEMPLATE = "{question}\nAnswer with one word or a short phrase."


@torch.no_grad()
def vilt(folder: Path, image: np.ndarray, question: str) -> torch.Tensor:
    """As the model card of dandelin/vilt-b32-finetuned-vqa has it."""
    net = hf.ViltForQuestionAnswering.from_pretrained(folder, max_image_length=-1).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    return net(**processor(Image.fromarray(image), question, return_tensors="pt")).logits[0]


@torch.no_grad()
def blip(folder: Path, image: np.ndarray, question: str, answers: list[str]) -> torch.Tensor:
    """Section 4.4 of Li et al. 2022: the decoder's likelihood of each answer, token by token."""
    net = hf.BlipForQuestionAnswering.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    given = processor(Image.fromarray(image), question, return_tensors="pt")
    seen = net.vision_model(given["pixel_values"])[0]
    states = net.text_encoder(given["input_ids"], encoder_hidden_states=seen)[0]
    scores = []
    for answer in answers:
        ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
        said, total = [net.config.text_config.bos_token_id], 0.0
        for token in [*ids, net.config.text_config.sep_token_id]:
            logits = net.text_decoder(torch.tensor([said]), encoder_hidden_states=states).logits
            total += logits[0, -1].log_softmax(-1)[token].item()
            said.append(token)
        scores.append(total)
    return torch.tensor(scores)


@torch.no_grad()
def generative(folder: Path, image: np.ndarray, question: str, answers: list[str]) -> torch.Tensor:
    """Teacher forcing: the whole text with each answer through the net anew."""
    net = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    given = processor(
        text=[prompt(processor, question)], images=[Image.fromarray(image)], return_tensors="pt"
    )
    given.pop("labels", None)
    space = " " if processor.chat_template else ""
    scores = []
    for answer in answers:
        more = processor.tokenizer(space + answer, add_special_tokens=False).input_ids
        ids = torch.tensor([[*more, processor.tokenizer.eos_token_id]])
        whole = {**given, "input_ids": torch.cat([given["input_ids"], ids], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        for name, kind in (("token_type_ids", 1), ("mm_token_type_ids", 0)):
            if name in given:  # PaliGemma's suffix is 1; of Qwen's kinds, text is 0
                whole[name] = torch.cat([given[name], torch.full_like(ids, kind)], 1)
        logits = net(**whole).logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)
        scores.append(logits.gather(1, ids.T).sum().item())
    return torch.tensor(scores)


def prompt(processor: hf.ProcessorMixin, question: str) -> str:
    """The question as a user's message with an image before it."""
    if not processor.chat_template:
        return f"<image>answer en {question}"
    text = {"type": "text", "text": TEMPLATE.replace("{question}", question)}
    message = {"role": "user", "content": [{"type": "image"}, text]}
    return processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


@cache
def loaded(kind: str, folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    net = getattr(hf, f"{kind}ForQuestionAnswering").from_pretrained(folder)
    return net.eval().to(dtype), hf.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def lxmert(folder: Path, boxes: np.ndarray, features: np.ndarray, question: str) -> torch.Tensor:
    """As transformers' documentation has it: boxes in fractions, no mask over regions."""
    feats, pos = torch.tensor(features)[None], torch.tensor(boxes)[None]
    net, tokenizer = loaded("Lxmert", folder, feats.dtype)
    text = tokenizer(question, return_tensors="pt")
    return net(**text, visual_feats=feats, visual_pos=pos).question_answering_score[0]


@torch.no_grad()
def visual_bert(
    folder: Path, boxes: np.ndarray, features: np.ndarray, question: str
) -> torch.Tensor:
    """As transformers' documentation has it; boxes it does not take."""
    embeds, ones = torch.tensor(features)[None], torch.ones(1, len(boxes))
    net, tokenizer = loaded("VisualBert", folder, embeds.dtype)
    text = tokenizer(question, return_tensors="pt")
    kinds = ones.long()
    seen = {"visual_attention_mask": ones, "visual_token_type_ids": kinds}
    return net(**text, visual_embeds=embeds, **seen).logits[0]


def token_gradients(
    name: str,
    folder: Path,
    boxes: np.ndarray,
    features: np.ndarray,
    question: str,
    answer: int,
    reduction: str,
) -> list[float]:
    """At each sub-token, special ones included: ``|| d logit / d e ||`` or ``e . d logit / d e``,
    where ``e`` takes the place of what the network looks up."""
    feats = torch.tensor(features)[None]
    kind = {"lxmert": "Lxmert", "visual_bert": "VisualBert"}[name]
    net, tokenizer = loaded(kind, folder, feats.dtype)
    text = dict(tokenizer(question, return_tensors="pt"))
    table = net.get_input_embeddings().weight.detach()
    e = table[text.pop("input_ids")].clone().requires_grad_()
    if name == "lxmert":
        seen = {"visual_feats": feats, "visual_pos": torch.tensor(boxes)[None]}
        logits = net(inputs_embeds=e, **text, **seen).question_answering_score
    else:
        ones = torch.ones(1, len(boxes))
        seen = {"visual_embeds": feats, "visual_attention_mask": ones}
        logits = net(inputs_embeds=e, **text, **seen, visual_token_type_ids=ones.long()).logits
    (gradient,) = torch.autograd.grad(logits[0, answer], e)
    values = gradient.norm(dim=-1) if reduction == "l2_norm" else (gradient * e).sum(-1)
    return values[0].tolist()
