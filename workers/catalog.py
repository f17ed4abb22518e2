"""Every dataset, model, method and metric by name; one line each. Adding one: CONTRIBUTING.md."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.config import Component
from workers.checks.base import Check
from workers.checks.curves import DeletionInsertion
from workers.checks.randomisation import Sanity
from workers.checks.sensitivity import MaxSensitivity
from workers.datasets.base import Dataset
from workers.datasets.easy_vqa import EasyVQA
from workers.datasets.photos import Photos
from workers.datasets.shapes import Shapes
from workers.datasets.vqa import VQA
from workers.datasets.vqa_cp import VQACP
from workers.errors import UserError
from workers.methods.adapters import IntegratedGradients, KernelShap, Lime, SmoothGrad
from workers.methods.attention import Attention
from workers.methods.base import Method
from workers.methods.baselines import Center, Random
from workers.methods.gradients import (
    Deconvnet,
    GradCam,
    GradCamPlusPlus,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    Saliency,
)
from workers.methods.lrp import LRP
from workers.methods.occlusion import Occlusion
from workers.methods.question_grad_cam import QuestionGradCam
from workers.methods.regions import RegionAttention, RegionGradient, RegionOcclusion
from workers.methods.rise import RISE
from workers.methods.token_attention import (
    AttentionRollout,
    CrossGradCam,
    Relevance,
    WordRelevance,
)
from workers.methods.words import WordGradient, WordOcclusion
from workers.metrics.base import Measure
from workers.metrics.localisation import Localisation
from workers.metrics.rank_correlation import RankCorrelation
from workers.metrics.sparsity import Sparsity
from workers.metrics.tang_yuan import TangYuan
from workers.models import deeper_lstm_torch7, san_files
from workers.models.base import ModelSpec, VQAModel
from workers.models.flat import Sources
from workers.models.huggingface import HuggingFaceSpec
from workers.models.own import PythonSpec
from workers.models.pythia import PythiaSpec
from workers.models.specs import (
    DeeperLSTMSpec,
    DemoLSTMSpec,
    DemoSpec,
    EasyVQASpec,
    KazemiSpec,
    SANSpec,
)
from workers.models.updn import UpDnSpec

DATASETS: dict[str, type[Dataset]] = {
    "shapes": Shapes,
    "vqa": VQA,
    "vqa_cp": VQACP,
    "easy_vqa": EasyVQA,
    "photos": Photos,
}
MODELS: dict[str, type[ModelSpec]] = {
    "demo": DemoSpec,
    "demo_lstm": DemoLSTMSpec,
    "easy_vqa": EasyVQASpec,
    "kazemi": KazemiSpec,
    "deeper_lstm": DeeperLSTMSpec,
    "san": SANSpec,
    "python": PythonSpec,
    "huggingface": HuggingFaceSpec,
    "updn": UpDnSpec,
    "pythia": PythiaSpec,
}
CONVERSIONS: dict[str, Callable[[Sources, Mapping[str, Any], Path], VQAModel]] = {
    "deeper_lstm": deeper_lstm_torch7.convert,
    "san": san_files.convert,
}
"""What makes a weight file of ours from published ones; a conversion's sizes are options too."""
METHODS: dict[str, type[Method]] = {
    "occlusion": Occlusion,
    "saliency": Saliency,
    "guided_backprop": GuidedBackprop,
    "deconvnet": Deconvnet,
    "grad_cam": GradCam,
    "guided_grad_cam": GuidedGradCam,
    "grad_cam_plus_plus": GradCamPlusPlus,
    "question_grad_cam": QuestionGradCam,
    "input_x_gradient": InputXGradient,
    "integrated_gradients": IntegratedGradients,
    "smooth_grad": SmoothGrad,
    "lrp": LRP,
    "lime": Lime,
    "kernel_shap": KernelShap,
    "rise": RISE,
    "attention": Attention,
    "attention_rollout": AttentionRollout,
    "cross_grad_cam": CrossGradCam,
    "relevance": Relevance,
    "random": Random,
    "center": Center,
    "region_occlusion": RegionOcclusion,
    "region_gradient": RegionGradient,
    "region_attention": RegionAttention,
    "word_occlusion": WordOcclusion,
    "word_gradient": WordGradient,
    "word_relevance": WordRelevance,
}
METRICS: dict[str, type[Measure]] = {
    "rank_correlation": RankCorrelation,
    "tang_yuan": TangYuan,
    "localisation": Localisation,
    "sparsity": Sparsity,
    "deletion_insertion": DeletionInsertion,
    "max_sensitivity": MaxSensitivity,
    "sanity": Sanity,
}
Entry = TypeVar("Entry", bound=BaseModel)
Options = Mapping[str, Mapping[str, Any]]


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown: give auto, cpu, cuda or cuda:N") from None


def dataset(component: Component) -> Dataset:
    return _build("dataset", component.name, component.options, DATASETS)


def model_spec(component: Component) -> ModelSpec:
    return _build("model", component.name, component.options, MODELS)


def methods(options: Options) -> dict[str, Method]:
    """Label -> method; ``method: NAME`` among the options gives a label another method."""
    return {label: _labelled("methods", label, given, METHODS) for label, given in options.items()}


def metrics(options: Options) -> dict[str, Measure]:
    """Label -> metric; ``metric: NAME`` likewise."""
    return {label: _labelled("metrics", label, given, METRICS) for label, given in options.items()}


def checks(options: Options) -> dict[str, Check]:
    """Of these metrics those that ask the model."""
    return {label: m for label, m in metrics(options).items() if isinstance(m, Check)}


def _labelled(
    where: str, label: str, options: Mapping[str, Any], registry: Mapping[str, type[Entry]]
) -> Entry:
    options = dict(options)
    name = options.pop(where.removesuffix("s"), label)
    return _build(f"{where}.{label}", name, options, registry)


def _build(
    where: str, name: object, options: Mapping[str, Any], registry: Mapping[str, type[Entry]]
) -> Entry:
    if not isinstance(name, str) or name not in registry:
        raise UserError(f"{where}: unknown name {name!r:.80}. Available: {', '.join(registry)}.")
    entry = registry[name]
    try:
        return entry.model_validate(options)
    except ValidationError as error:
        raise UserError(explain_invalid(where, entry, error)) from None


MISTAKES = 20
"""Mistakes that one message tells at most."""


def explain_invalid(where: str, schema: type[BaseModel], error: ValidationError) -> str:
    """A pydantic error as sentences: where, the value, what is allowed."""
    items = error.errors()
    lines = [_sentence(where, schema, item) for item in items[:MISTAKES]]
    if len(items) > MISTAKES:
        lines.append(f"... and {len(items) - MISTAKES} more mistakes.")
    return "\n".join(lines)


def _sentence(where: str, schema: type[BaseModel], item: ErrorDetails) -> str:
    path = ".".join([*([where] if where else []), *(f"{part!s:.80}" for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = ", ".join(_fields_at(schema, item["loc"][:-1]))
        return f"{path}: unknown key. Known here: {known}."
    if item["type"] == "missing":
        return f"{path}: missing; this key is required."
    return f"{path}: {item['msg']:.500}, not {item['input']!r:.200}."


def _fields_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = schema.model_fields.get(str(part))
        if field is None:
            return []
        annotation = field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        schema = annotation
    return list(schema.model_fields)
