"""Tiny checkpoints of Hugging Face families with random weights, saved as the real ones are."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests import region_files

ANSWERS = ("yes", "no", "red", "two dogs")
WORDS = (
    "thing",
    "on",
    "left",
    "one",
    "what",
    "is",
    "the",
    "this",
    "colour",
    "of",
    "it",
    "a",
    "red",
    "dog",
    "yes",
    "no",
    "?",
)
CHAT = (
    "{% for m in messages %}<|user|>{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def bert_tokenizer() -> hf.PreTrainedTokenizerBase:
    """Word pieces: whole words, and letters for all others."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS, *letters]
    pieces = list(dict.fromkeys([*pieces, *(f"##{letter}" for letter in letters)]))
    return hf.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def byte_tokenizer(*special: str, **named: str) -> hf.PreTrainedTokenizerBase:
    """Bytes, and the special tokens of a family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *special]
    vocab = {piece: i for i, piece in enumerate([*names, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(names)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )


def lively(net: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that images, words and answers make a difference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1 and "norm" not in name.lower():
                weight.copy_(torch.randn_like(weight) * 0.15)
    return net.eval()


def vilt(folder: Path) -> None:
    """Patches of 8 pixels, the shorter side 48; input follows the image's shape."""
    config = hf.ViltConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=48,
        patch_size=8,
        max_position_embeddings=24,
        max_image_length=20,
        id2label=dict(enumerate(ANSWERS)),
    )
    images = hf.ViltImageProcessor(size={"shortest_edge": 48}, size_divisor=8)
    save(folder, hf.ViltForQuestionAnswering(config), hf.ViltProcessor(images, bert_tokenizer()))


def blip(folder: Path) -> None:
    """Images of 32 x 32."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    text = {
        "vocab_size": 80,
        "hidden_size": 16,
        "encoder_hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 5,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    config = hf.BlipConfig(
        text_config=text,
        vision_config=vision | {"num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    images = hf.BlipImageProcessor(size={"height": 32, "width": 32})
    save(folder, hf.BlipForQuestionAnswering(config), hf.BlipProcessor(images, bert_tokenizer()))


def llava(
    folder: Path, side: int = 32, hidden: int = 16, layers: int = 2, window: int | None = None
) -> None:
    """CLIP with a centre crop, in patches of 8 pixels, and a small Llama; with a ``window`` a
    Mistral, whose tokens see so many before them."""
    tokenizer = byte_tokenizer("<image>", image_token="<image>")
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    text = language(len(tokenizer)) | sizes | {"head_dim": hidden // 2}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            **sizes, num_attention_heads=2, image_size=side, patch_size=8
        ),
        text_config=hf.MistralConfig(**text, sliding_window=window)
        if window
        else hf.LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    images = hf.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    save(folder, hf.LlavaForConditionalGeneration(config), processor)


def language(words: int) -> dict[str, int]:
    return {
        "vocab_size": words,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def smolvlm(
    folder: Path, side: int = 32, across: int = 2, hidden: int = 16, layers: int = 2
) -> None:
    """Tiles of 32 pixels: the image is cut into as many as it takes, two along its longer side,
    with a small one of all."""
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    tokenizer = byte_tokenizer(
        *special,
        *rows,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2,
        "num_hidden_layers": layers,
    }
    config = hf.Idefics3Config(
        vision_config=sizes | {"num_attention_heads": 2, "image_size": side, "patch_size": 8},
        text_config=hf.LlamaConfig(**language(len(tokenizer)) | sizes | {"head_dim": hidden // 2}),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    images = hf.Idefics3ImageProcessor(
        size={"longest_edge": across * side}, max_image_size={"longest_edge": side}
    )
    processor = hf.Idefics3Processor(
        images,
        tokenizer,
        image_seq_len=(side // 16) ** 2,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    save(folder, hf.Idefics3ForConditionalGeneration(config), processor)


def qwen2_vl(folder: Path) -> None:
    """Patches of 8 pixels, two by two merged; the grid follows the image's shape."""
    pads = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = byte_tokenizer(*pads)
    text = language(len(tokenizer)) | {"num_hidden_layers": 2}
    text.pop("head_dim")
    config = hf.Qwen2VLConfig(
        text_config=text
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 16,
            "num_heads": 2,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    images = hf.Qwen2VLImageProcessor(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = hf.Qwen2VLProcessor(
        images, tokenizer, hf.Qwen2VLVideoProcessor(patch_size=8), chat_template=template
    )
    save(folder, hf.Qwen2VLForConditionalGeneration(config), processor)


def paligemma(folder: Path) -> None:
    """SigLIP at 32 pixels and a small Gemma; no chat template."""
    tokenizer = byte_tokenizer("<image>", image_token="<image>")
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    words = len(processor.tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=hf.GemmaConfig(**language(words)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=16,
        hidden_size=16,
    )
    save(folder, hf.PaliGemmaForConditionalGeneration(config), processor)


def lxmert(folder: Path) -> None:
    """Regions of 8 features; one layer of each kind."""
    config = hf.LxmertConfig(
        vocab_size=80,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        l_layers=1,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=region_files.CHANNELS,
        num_qa_labels=len(ANSWERS),
        num_object_labels=3,
        num_attr_labels=3,
    )
    save_regions(folder, hf.LxmertForQuestionAnswering(config))


def visual_bert(folder: Path) -> None:
    """Regions of 8 features; its configuration names the answers."""
    config = hf.VisualBertConfig(
        vocab_size=80,
        hidden_size=16,
        visual_embedding_dim=region_files.CHANNELS,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        id2label=dict(enumerate(ANSWERS)),
    )
    save_regions(folder, hf.VisualBertForQuestionAnswering(config))


def save_regions(folder: Path, net: hf.PreTrainedModel) -> None:
    """Weights, tokeniser and answers, and features of three images."""
    lively(net).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    (folder / "label2ans.json").write_text(json.dumps(ANSWERS))
    images = {image: region_files.detected(image) for image in region_files.IMAGES}
    region_files.write_hdf5(folder / "val36.hdf5", images)


def save(folder: Path, net: hf.PreTrainedModel, processor: hf.ProcessorMixin) -> None:
    lively(net).save_pretrained(folder)
    processor.save_pretrained(folder)


CLASSIFYING: dict[str, Callable[[Path], None]] = {"vilt": vilt}
WRITING: dict[str, Callable[[Path], None]] = {
    "blip": blip,
    "llava": llava,
    "idefics3": smolvlm,
    "qwen2_vl": qwen2_vl,
    "paligemma": paligemma,
}
FAMILIES = CLASSIFYING | WRITING
SEEING_REGIONS: dict[str, Callable[[Path], None]] = {"lxmert": lxmert, "visual_bert": visual_bert}


def section(name: str, folder: Path, **options: object) -> dict[str, object]:
    """A recipe's model section."""
    own: dict[str, object] = {"answers": list(ANSWERS)} if name in WRITING else {}
    if name in SEEING_REGIONS:
        own = {"features": str(folder / "val36.hdf5")}
    if name == "lxmert":
        own["answers_file"] = str(folder / "label2ans.json")
    return {"kind": "huggingface", "path": str(folder), **own, **options}
