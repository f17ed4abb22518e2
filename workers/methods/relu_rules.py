"""How a gradient passes a ReLU backwards: the only place where the gradient methods differ.

The rules act on operations, not on modules, so it does not matter whether a network calls
``nn.ReLU``, ``F.relu``, ``Tensor.relu_`` or ``clamp(min=0)``, in place or not, how often it reuses
a module, and what else reads a ReLU's input. No hook is set and no module is touched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workers.methods.shortcuts import REPLACED

Rule = Literal["saliency", "guided", "deconvnet"]
"""The signal ``g`` that arrives at a ReLU of input ``x`` leaves it as

* ``saliency``: ``1[x > 0] g``, the derivative (Simonyan et al. 2014, section 3);
* ``deconvnet``: ``1[g > 0] g`` (Zeiler and Fergus 2014, section 2.1);
* ``guided``: ``1[x > 0] 1[g > 0] g`` (Springenberg et al. 2015, figure 1c).
"""

BACKWARD: dict[Rule, Callable[[Tensor, Tensor], Tensor]] = {
    "saliency": lambda g, is_open: g * is_open,
    "guided": lambda g, is_open: (g * is_open).relu_(),
    "deconvnet": lambda g, is_open: g.clamp(min=0),
}


class ReluCall(NamedTuple):
    """A call that is a ReLU of ``input``, or one cut at ``ceiling``."""

    input: Tensor
    inplace: bool
    ceiling: float | None = None


class ReluRules(TorchFunctionMode):
    """While active in a thread, every ReLU on a differentiated path records a selectable rule.

    The rule is chosen when the gradient is taken, so one forward pass serves all rules. A ReLU cut
    at a ceiling (``relu6``, ``clamp(0, c)``) is ``min(max(x, 0), c)``: the rule holds for the max,
    the min keeps its derivative. Every other operation, max-pooling and LSTM gates among them,
    keeps its own, a few by a shorter way (``shortcuts``). Not seen: ``x * (x > 0)``,
    ``torch.maximum(x, zeros)``, compiled code.
    """

    rule: Rule = "saliency"
    """Read when gradients are taken; kept here because autograd may run in other threads."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        call = RELUS[func](*args, **kwargs) if func in RELUS else None
        if call is None or not call.input.requires_grad:
            output = REPLACED[func](*args, **kwargs) if func in REPLACED else None
            return func(*args, **kwargs) if output is None else output
        output = _Relu.apply(call.input, self, call.inplace)
        if call.ceiling is None:
            return output
        return output.clamp_(max=call.ceiling) if call.inplace else output.clamp(max=call.ceiling)


class _Relu(torch.autograd.Function):
    """ReLU that asks its scope for the backward rule.

    It keeps the sign mask, not the activation, which a later in-place operation may overwrite;
    as numbers, because products of numbers with booleans are slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scope: ReluRules, inplace: bool) -> Tensor:
        ctx.scope = scope
        output = x.relu_() if inplace else x.relu()
        ctx.save_for_backward(output.sign())
        if inplace:
            ctx.mark_dirty(x)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (is_open,) = ctx.saved_tensors
        return BACKWARD[ctx.scope.rule](grads[0], is_open), None, None


def _is(bound: object, value: float) -> bool:
    return isinstance(bound, int | float) and bound == value


def _relu(input: Tensor, inplace: bool = False) -> ReluCall:
    return ReluCall(input, inplace)


def _relu6(input: Tensor, inplace: bool = False) -> ReluCall:
    return ReluCall(input, inplace, 6.0)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> ReluCall | None:
    return ReluCall(input, inplace, max_val) if _is(min_val, 0) else None


def _threshold(
    input: Tensor, threshold: float, value: float, inplace: bool = False
) -> ReluCall | None:
    return ReluCall(input, inplace) if _is(threshold, 0) and _is(value, 0) else None


def _clamp(
    input: Tensor,
    min: object = None,
    max: Any = None,
    inplace: bool = False,
    out: Tensor | None = None,
) -> ReluCall | None:
    plain = _is(min, 0) and out is None and not isinstance(max, Tensor)
    return ReluCall(input, inplace, max) if plain else None


def _inplace(parse: Callable[..., ReluCall | None]) -> Callable[..., ReluCall | None]:
    return lambda *args, **kwargs: parse(*args, **kwargs, inplace=True)


RELUS: dict[Callable[..., Any], Callable[..., ReluCall | None]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _inplace(_relu),
    Tensor.relu_: _inplace(_relu),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _inplace(_hardtanh),
    F.threshold: _threshold,
    torch.threshold: _threshold,
    F.threshold_: _inplace(_threshold),  # type: ignore[attr-defined]
    torch.clamp: _clamp,
    torch.clip: _clamp,
    torch.clamp_min: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clip: _clamp,
    Tensor.clamp_min: _clamp,
    torch.clamp_: _inplace(_clamp),
    torch.clip_: _inplace(_clamp),
    torch.clamp_min_: _inplace(_clamp),
    Tensor.clamp_: _inplace(_clamp),
    Tensor.clip_: _inplace(_clamp),
    Tensor.clamp_min_: _inplace(_clamp),
}
"""Every PyTorch call that can be a ReLU, and how to tell from its arguments whether it is one."""


@dataclass(frozen=True)
class Trace:
    """A forward pass with its graph; gradients can be taken under any rule, any number of times."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    rules: ReluRules

    def pull_back(self, gradient: Tensor, rule: Rule) -> tuple[Tensor, ...]:
        """The gradient at the output (of its shape) -> the gradient at each input."""
        self.rules.rule = rule
        return self._gradients(gradient)

    def pull_back_many(self, gradients: Tensor, rule: Rule) -> tuple[Tensor, ...]:
        """``(n, *output)`` -> ``(n, *input)`` for each input: n backward passes as one batch."""
        self.rules.rule = rule
        return torch.func.vmap(self._gradients)(self._laid_out(gradients))

    def _laid_out(self, gradients: Tensor) -> Tensor:
        """In memory as the output is, so that the sums of branches do not mix two orders."""
        axes = sorted(range(self.output.dim()), key=self.output.stride, reverse=True)
        order = [0, *(axis + 1 for axis in axes)]
        back = [order.index(axis) for axis in range(len(order))]
        return gradients.permute(order).contiguous().permute(back)

    def _gradients(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self.output, self.inputs, gradient, retain_graph=True, materialize_grads=True
        )


def record(forward: Callable[..., Tensor], *inputs: Tensor) -> Trace:
    """Run ``forward`` on copies of the inputs, which it may overwrite, and keep the graph."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    with torch.enable_grad(), ReluRules() as rules:
        output = forward(*(leaf.clone() for leaf in leaves))
    return Trace(leaves, output, rules)
