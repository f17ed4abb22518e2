"""Checkpoints of Hugging Face: which family a folder or a name holds, loaded and checked."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from safetensors import safe_open
from torch import Tensor

from workers.errors import UserError
from workers.models.base import ModelSpec, VQAModel, freeze
from workers.models.blip import Blip
from workers.models.checkpoints import read_state_dict, refuse_extra
from workers.models.chooser import Chooser
from workers.models.generative import Generative
from workers.models.pixels import Pixels, check_processor
from workers.models.region_model import Files
from workers.models.region_transformer import (
    RegionTransformer,
    RegionTransformerConfig,
    answers_of,
    assemble,
)
from workers.models.regions import RegionFeatures
from workers.models.transformer import Classifier, Transformer, TransformerConfig

Family = Literal["classifier", "blip", "generative", "regions"]
CLASSIFIERS = {"vilt": "ViltForQuestionAnswering"}
DECODERS = {"blip": "BlipForQuestionAnswering"}
REGIONS = {
    "lxmert": "LxmertForQuestionAnswering",
    "visual_bert": "VisualBertForQuestionAnswering",
}
RAW_PROMPTS = {"paligemma": "<image>answer en {question}"}
"""What a model without chat template was trained on."""
DEFAULT_PROMPT = "{question}\nAnswer with one word or a short phrase."
SAFE = "*.safetensors"
PIXELS_OR_WRITING = ("answers", "prompt", "image_size")
"""Options that mean nothing to a model of regions."""
HARMLESS: dict[Family, tuple[str, ...]] = {
    "classifier": (),
    "blip": (
        r"^(vision_model|visual_encoder|text_encoder|text_decoder)_m\.",  # ALBEF's momentum copies
        r"^(vision_proj|text_proj|itm_head)(_m)?\.",  # of matching images to text
    ),
    "generative": (r"(^|\.)rotary_emb\.inv_freq$",),
    "regions": (
        r"^cls\.(predictions|seq_relationship)\.",  # of pre-training
        r"^obj_predict_head\.",
    ),
}
"""What a published checkpoint of a family holds beside its model, which no logit depends on."""
COUNTED = (r"(^|\.)position_ids$", r"\.num_batches_tracked$")
"""Likewise of all families: 0, 1, 2 ... and how often a layer was trained."""
CANDIDATES = 256
"""Answers a generative model may choose from."""


class HuggingFaceSpec(ModelSpec):
    """A visual question answering model of ``transformers``, by its files.

    The family is found from ``config.json``: classifiers (ViLT), BLIP, models that see regions
    (LXMERT, VisualBERT), and any generative model that reads an image and a text and has a chat
    template, or for which ``prompt`` is given. A folder is never looked for on the network; only
    safetensors are read (of models of regions also a ``pytorch_model.bin`` that holds nothing but
    tensors), and no code of others.
    """

    path: str
    """A folder as ``save_pretrained`` writes it, or a name on the Hub."""
    answers: tuple[str, ...] = ()
    """Candidates of a model that writes its answer: it chooses among them."""
    answers_file: Path | None = None
    """In place of ``answers``: a text file with one a line, or a JSON list. Of a model of regions
    the answers in the order of its logits."""
    features: Files = ()
    """Of a model of regions: HDF5 files with their indexes beside them, TSV files, or folders."""
    prompt: str = Field("", pattern=r"^$|\{question\}")
    """What a generative model is asked; has ``{question}`` in it. Without chat template it is the
    whole text, the image's placeholder included."""
    image_size: PositiveInt | None = None
    """Squash every image to this square first. Needed where the model's input follows the image's
    shape and a method stores maps at its pixels."""
    longest: int = Field(768, ge=32)
    """The canvas' longer side where the processor cuts images into tiles or patches, or where the
    model sees regions."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""
    mode: Literal["choice", "open"] = "choice"
    """``choice``: a model that writes chooses among candidates. ``open``: it writes its answer,
    which is the target ``predicted``; ``truth`` is the dataset's answer, given to it. What is
    explained is the probability of exactly that text."""
    longest_answer: PositiveInt = 16
    """Sub-tokens that an open model writes at most."""

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.mode == "open" and (self.answers or self.answers_file is not None):
            raise ValueError("an open model writes its answers; leave out answers and answers_file")
        if self.answers and self.answers_file is not None:
            raise ValueError("give either answers or answers_file")
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("an answer is there more than once")
        return self

    def build(self, device: torch.device) -> VQAModel:
        with _quiet():
            config = read_config(self.path)
            family = family_of(config, self.path)
            self._check_features(family, config["model_type"])
            net = load(self, architecture(family, config), config, family)
            if family == "regions":
                return freeze(self._of_regions(net).to(device))
            processor = _processor(self.path)
        pixels = Pixels(processor.image_processor, self.image_size, self.longest)
        settings = TransformerConfig(
            family=family,
            processor=_digest(processor),
            prompt=self.prompt,
            size=self.image_size,
            longest=self.longest,
            mode=self.mode,
            longest_answer=self.longest_answer,
        )
        answers = self._answers(family, net)
        model = _KINDS[family](net, processor, pixels, answers, settings)
        self._complete(model)
        model.about = f"{self.path}: {config['model_type']}, {_ABOUT[family]}"
        return freeze(model.to(device))

    def _check_features(self, family: Family, kind: str) -> None:
        if family == "regions" and not self.features:
            raise UserError(
                f"{self.path} is a {kind} model, which sees regions; give model.features, the "
                "files that hold those of your images (.hdf5 or .tsv)"
            )
        if family != "regions" and self.features:
            raise UserError(
                f"{self.path} is a {kind} model, which sees pixels; leave out model.features"
            )
        foreign = [name for name in PIXELS_OR_WRITING if getattr(self, name)]
        foreign += ["mode"] if self.mode == "open" else []
        if family == "regions" and foreign:
            raise UserError(
                f"{self.path} is a {kind} model, which sees regions and has its own answers (in "
                f"their order in model.answers_file); leave out model.{', model.'.join(foreign)}"
            )

    def _of_regions(self, net: Any) -> RegionTransformer:
        tokenizer, features = _tokenizer(self.path), RegionFeatures(self.features)
        config = RegionTransformerConfig(
            family=net.config.model_type,
            tokeniser=_tokeniser_digest(tokenizer),
            features=features.digest,
        )
        answers = answers_of(net.config, self.answers_file, self.path)
        return assemble(net, tokenizer, answers, features, config, self.longest, self.path)

    def _answers(self, family: Family, net: Any) -> tuple[str, ...]:
        given = self.answers or self._read_answers()
        if family == "classifier":
            if given or self.mode == "open":
                raise UserError(
                    f"{self.path} has its own answers (id2label); leave out answers and mode"
                )
            labels = net.config.id2label
            return tuple(labels[i] for i in range(len(labels)))
        if self.mode == "open":
            return ()
        if len(given) < 2:
            raise UserError(
                f"{self.path} writes its answers; give the candidates it chooses from: "
                "model.answers: [yes, no, ...], or model.answers_file; or set model.mode: open to "
                "explain what it writes"
            )
        if family == "generative" and len(given) > CANDIDATES:
            raise UserError(
                f"model.answers: {len(given)} candidates, the limit of a generative model is "
                f"{CANDIDATES}; give the likely ones"
            )
        return given

    def _read_answers(self) -> tuple[str, ...]:
        if self.answers_file is None:
            return ()
        try:
            text = self.answers_file.read_text("utf-8")
            found = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(
                f"model.answers_file: {self.answers_file} cannot be read ({error}); give a text "
                "file with one answer a line, or a JSON list of strings"
            ) from None
        answers = tuple(a.strip() for a in found if isinstance(a, str) and a.strip())
        if len(set(answers)) < len(found) and len(answers) < len(found):
            raise UserError(
                f"model.answers_file: {self.answers_file} has entries that are empty or no text"
            )
        return tuple(dict.fromkeys(answers))

    def _complete(self, model: Transformer) -> None:
        """What the kinds need beyond their net."""
        self._complete_kind(model)
        if isinstance(model, Chooser):
            model.open, model.longest = self.mode == "open", self.longest_answer
            model.set_candidates([model.spelt(answer) for answer in model.answers])
        model.lay_out()
        if isinstance(model, Generative):
            model.try_sharing()

    def _complete_kind(self, model: Transformer) -> None:
        if isinstance(model, Blip):
            model.limit = model.net.config.text_config.max_position_embeddings
        elif isinstance(model, Classifier):
            model.limit = model.net.config.max_position_embeddings
        elif isinstance(model, Generative):
            self._complete_generative(model)

    def _complete_generative(self, model: Generative) -> None:
        prompt = Prompt(model.processor, self.prompt, model.net.config.model_type, self.path)
        model.prompt = prompt
        model.keeps = "logits_to_keep" in inspect.signature(model.net.forward).parameters
        text = model.net.config.get_text_config()
        model.new_cache = partial(_transformers().DynamicCache, config=text)
        if model.tokenizer.eos_token_id is None:
            raise UserError(f"{self.path}: its tokeniser has no eos_token, which ends an answer")
        model.continued = prompt.continued


class Prompt:
    """A question -> the text a generative model is given, with the image's placeholder."""

    def __init__(self, processor: Any, template: str, kind: str, path: str) -> None:
        self.processor = processor
        self.chat = bool(processor.chat_template)
        self.template = template or (DEFAULT_PROMPT if self.chat else RAW_PROMPTS.get(kind, ""))
        if not self.template:
            raise UserError(
                f"{path}: its processor has no chat template; give model.prompt, the whole text "
                "with {question} and the image's placeholder in it"
            )

    def __call__(self, question: str) -> str:
        text = self.template.replace("{question}", question)
        if not self.chat:
            return text
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def continued(self, answer: str) -> list[int]:
        """Sub-tokens of an answer where it follows the prompt, after a space unless the prompt ends
        with white space or a mark-up token."""
        text = self("what is this")
        space = "" if text[-1].isspace() or text[-1] in ">]" or not self.chat else " "
        encode = self.processor.tokenizer
        before = encode(text, add_special_tokens=False)["input_ids"]
        whole = encode(text + space + answer, add_special_tokens=False)["input_ids"]
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return encode(space + answer, add_special_tokens=False)["input_ids"]


_KINDS: dict[Family, Callable[..., Transformer]] = {
    "classifier": Classifier,
    "blip": Blip,
    "generative": Generative,
}
_ABOUT: dict[Family, str] = {
    "classifier": "one logit an answer; trained with a sigmoid each, compared here by softmax",
    "blip": "writes its answer; logits are the candidates' log-likelihoods, end included",
    "generative": "writes its answer; logits are the candidates' log-likelihoods, end included",
}


def read_config(path: str) -> dict[str, Any]:
    """``config.json`` of a folder or of the Hub."""
    transformers = _transformers()
    folder = Path(path).is_dir()
    try:
        file = transformers.utils.cached_file(path, "config.json", local_files_only=folder)
        config = json.loads(Path(file or Path(path, "config.json")).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path: {path} has no readable config.json ({str(error).splitlines()[0]:.200}); "
            "give a folder that save_pretrained wrote, or a name on the Hub that is reachable"
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: config.json has no model_type; give a checkpoint of transformers")
    return config


def family_of(config: dict[str, Any], path: str) -> Family:
    """Which way the model is asked, or the reason why it cannot be."""
    kind, classes = config["model_type"], config.get("architectures") or []
    answering = CLASSIFIERS | DECODERS | REGIONS
    if kind in answering:
        if answering[kind] not in classes:
            raise UserError(
                f"{path} is a {kind} checkpoint of {', '.join(classes) or 'no stated class'}, "
                f"which does not answer questions{_purpose(classes)}; give one of {answering[kind]}"
            )
        if kind in REGIONS:
            return "regions"
        return "classifier" if kind in CLASSIFIERS else "blip"
    if kind in generative_types():
        return "generative"
    auto = _transformers().models.auto.modeling_auto
    text_only = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    text_only |= kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    reason = "a text model, which sees no image" if text_only else "of a family that is not known"
    raise UserError(
        f"{path} is a {kind} checkpoint, {reason}. Known: {', '.join(answering)}; and, generative, "
        f"with a chat template or a prompt: {', '.join(generative_types())}"
    )


def _purpose(classes: list[str]) -> str:
    words = {
        "ConditionalGeneration": "it writes captions",
        "Retrieval": "it matches images to text",
    }
    found = [told for part, told in words.items() if any(part in name for name in classes)]
    return f" ({found[0]})" if found else ""


CAPTIONING = ("blip", "git", "pix2struct", "vision-encoder-decoder", "kosmos-2")
"""In transformers' list of models from image and text to text, but not asked questions."""


def generative_types() -> list[str]:
    """Model types of transformers that answer a text about an image in text."""
    names = _transformers().models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return [name for name in names if name not in CAPTIONING]


def architecture(family: Family, config: dict[str, Any]) -> Any:
    """The class that holds the weights."""
    transformers = _transformers()
    if family == "generative":
        return transformers.AutoModelForImageTextToText
    return getattr(transformers, (CLASSIFIERS | DECODERS | REGIONS)[config["model_type"]])


def load(spec: HuggingFaceSpec, kind: Any, config: dict[str, Any], family: Family) -> Any:
    """The net with all its weights from safetensors, and with no others; transformers would fill
    gaps at random and leave out what it has no place for."""
    own: dict[str, Any] = {"max_image_length": -1} if config["model_type"] == "vilt" else {}
    folder = Path(spec.path)
    source: str | None = spec.path
    weights = folder / "pytorch_model.bin"
    if config["model_type"] in REGIONS and weights.exists() and not any(folder.glob(SAFE)):
        settings = kind.config_class.from_dict(config)
        source, own = None, {"state_dict": read_state_dict(weights), "config": settings}
    try:
        net, found = kind.from_pretrained(
            source,
            use_safetensors=True,
            local_files_only=folder.is_dir(),
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=getattr(torch, spec.dtype),
            **own,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model.path: the weights of {spec.path} cannot be loaded "
            f"({str(error).strip().splitlines()[0]:.300}); give model.safetensors as "
            "save_pretrained writes it"
        ) from error
    _refuse_gaps(spec.path, net, found)
    _refuse_extra(folder, family, net, found, own.get("state_dict"))
    return net


def _refuse_gaps(path: str, net: Any, found: Any) -> None:
    wanted: dict[str, Tensor] = net.state_dict()
    missing, extra = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        first = ", ".join(f"{name!r} {list(wanted[name].shape)}" for name in missing[:3])
        others = f"; it has {extra[0]!r} and {len(extra) - 1} more unknown ones" if extra else ""
        raise UserError(
            f"{path}: {len(missing)} tensors that {type(net).__name__} needs are not in its "
            f"weights, first {first}{others}. Give the whole checkpoint of that class"
        )
    wrong = sorted(
        (name, list(there), list(here)) for name, there, here in found["mismatched_keys"]
    )
    if wrong:
        name, there, here = wrong[0]
        raise UserError(
            f"{path}: {len(wrong)} tensors have another shape than config.json says, first {name!r}"
            f": {there} in the file, {here} by the configuration. Give weights and configuration "
            "of one model"
        )


def _refuse_extra(
    folder: Path, family: Family, net: Any, found: Any, given: Mapping[str, Tensor] | None
) -> None:
    """What the file has beside the net, unless it is known to do no harm."""
    harmless = re.compile("|".join((*HARMLESS[family], *COUNTED)))
    extra = [name for name in sorted(found["unexpected_keys"]) if not harmless.search(name)]
    own = None if given is None else {name: list(tensor.shape) for name, tensor in given.items()}
    shapes = stored_shapes(folder) if own is None else own
    remedy = f"give what {type(net).__name__}.save_pretrained wrote, with its config.json"
    refuse_extra({name: shapes.get(name) for name in extra}, folder, remedy)


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Of every tensor in a folder's safetensors; nothing of a name on the Hub."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob(SAFE)):
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _tokenizer(path: str) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(
            path, local_files_only=Path(path).is_dir(), trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{path}: its tokeniser cannot be loaded ({str(error).strip().splitlines()[0]:.300}); "
            "put vocab.txt and tokenizer_config.json beside the weights, those of "
            "google-bert/bert-base-uncased unless it has its own"
        ) from error


def _processor(path: str) -> Any:
    folder = Path(path).is_dir()
    try:
        processor = _transformers().AutoProcessor.from_pretrained(
            path, local_files_only=folder, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{path}: its processor cannot be loaded ({str(error).strip().splitlines()[0]:.300}); "
            "save it beside the weights: processor.save_pretrained(folder)"
        ) from error
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise UserError(
                f"{path}: its processor has no {part}; save the whole processor beside the weights"
            )
    check_processor(processor.image_processor, path)
    return processor


def _digest(processor: Any) -> str:
    settings = processor.image_processor.to_json_string()
    words = _settings(processor.tokenizer)
    template = str(getattr(processor, "chat_template", None))
    return hashlib.sha256("\n".join([settings, words, template]).encode()).hexdigest()


def _tokeniser_digest(tokenizer: Any) -> str:
    return hashlib.sha256(_settings(tokenizer).encode()).hexdigest()


def _settings(tokenizer: Any) -> str:
    tokeniser = getattr(tokenizer, "backend_tokenizer", None)
    return tokeniser.to_str() if tokeniser is not None else repr(tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports: what matters of them is an error here."""
    logging = _transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise UserError(
            "model: huggingface needs transformers, which is not installed; "
            "pip install 'vqatlas[hf]'"
        ) from None
    return transformers
