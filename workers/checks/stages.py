"""The parts of a model whose weights a cascade draws anew, from the answer back to the pixels."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workers.errors import UserError
from workers.models.base import VQAModel


class Stage(NamedTuple):
    """Modules that are randomised together, named after the first of them."""

    name: str
    modules: tuple[str, ...]


def stages(model: VQAModel) -> list[Stage]:
    """Stages by named modules, last first.

    A model registers its parts in the order in which it runs them, the trunk first. A part that is
    a plain sequence, itself or by way of an only child, gives a stage for each of its layers; one
    that holds a list of layers somewhere, as transformers do, is taken apart down to that list; any
    other part is one stage. A layer without a weight matrix (normalisation) belongs to the one
    before it. LXMERT registers the layers of its regions behind those that join them with the
    question; there the two are the other way round.
    Weights that two stages share are drawn with the first of them.
    """
    if loose := [name for name, _ in model.named_parameters(recurse=False)]:
        raise UserError(
            f"{type(model).__name__} holds weights outside of any module, which no rule draws anew "
            f"({', '.join(loose)}); put them into a module with reset_parameters(), or remove "
            "metrics.sanity"
        )
    found: list[Stage] = []
    for name, part in model.named_children():
        layers = _layers(name, part)
        own = [(n, m) for n, m in layers if any(True for _ in m.parameters())]
        for i, (path, module) in enumerate(own):
            if i and not any(p.ndim > 1 for p in module.parameters()):
                found[-1] = Stage(found[-1].name, (*found[-1].modules, path))
            else:
                found.append(Stage(path, (path,)))
    return found[::-1]


def _layers(name: str, part: nn.Module) -> list[tuple[str, nn.Module]]:
    children = list(part.named_children())
    if len(children) == 1 and not list(part.parameters(recurse=False)):
        return _layers(f"{name}.{children[0][0]}", children[0][1])
    if isinstance(part, nn.Sequential | nn.ModuleList):
        return [(f"{name}.{child}", module) for child, module in children]
    listed = any(isinstance(module, nn.ModuleList) for module in part.modules())
    if listed and not list(part.parameters(recurse=False)):
        return [layer for child, module in children for layer in _layers(f"{name}.{child}", module)]
    return [(name, part)]


@torch.no_grad()
def reset(model: VQAModel, seed: int) -> VQAModel:
    """A copy with every weight drawn anew by its layer's own rule for new layers, and running
    statistics as new; drawn on the CPU, so that it is the same on every device."""
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for stage in stages(fresh):
            for path in stage.modules:
                for name, _ in fresh.get_submodule(path).named_modules():
                    _reset_layer(fresh, f"{path}.{name}".rstrip("."))
    return fresh.to(model.device)


def _reset_layer(model: nn.Module, path: str) -> None:
    """What a module holds itself. A net of transformers has the rule for all of its layers; what
    that leaves as it is (ViLT's position embeddings) is drawn with the deviation it has."""
    module = model.get_submodule(path)
    before = [p.detach().clone() for p in module.parameters(recurse=False)]
    nets = [net for net in _around(model, path) if hasattr(net, "_init_weights")]
    rule = getattr(module, "reset_parameters", None)
    if nets:
        nets[-1]._init_weights(module)  # type: ignore[operator]
        for old, parameter in zip(before, module.parameters(recurse=False), strict=True):
            if _kept(old, parameter):
                parameter.normal_(float(old.float().mean()), float(old.float().std()))
    elif callable(rule):
        rule()
    elif before:
        raise UserError(
            f"{path}: a {type(module).__name__} holds weights and has no reset_parameters() to "
            "draw them anew; give it one, or remove metrics.sanity"
        )


def _around(model: nn.Module, path: str) -> list[nn.Module]:
    """The module there and all that hold it, the whole model first."""
    names = path.split(".")
    return [model.get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]


def _kept(before: Tensor, after: Tensor) -> bool:
    """Whether a tensor is what it was; all ones, or all zeros, are what many a rule gives."""
    return torch.equal(before, after) and bool((before != before.flatten()[:1]).any())


def cascade(model: VQAModel, seed: int, independent: bool) -> Iterator[tuple[Stage, VQAModel]]:
    """Each stage with the model in which it, and unless ``independent`` every stage before it, has
    weights drawn anew. The models share their tensors; the one given is left as it is."""
    fresh, drawn = reset(model, seed), list[Stage]()
    for stage in stages(model):
        drawn = [stage] if independent else [*drawn, stage]
        yield stage, _with(model, fresh, drawn)


def _with(model: VQAModel, fresh: VQAModel, drawn: Sequence[Stage]) -> VQAModel:
    """A copy of the modules alone: tensors are the model's own, or those drawn anew."""
    tensors: dict[int, object] = {id(t): t for t in _tensors(model)}
    for path in (path for stage in drawn for path in stage.modules):
        pairs = zip(
            _tensors(model.get_submodule(path)), _tensors(fresh.get_submodule(path)), strict=True
        )
        tensors.update({id(own): other for own, other in pairs})
    return copy.deepcopy(model, tensors)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
