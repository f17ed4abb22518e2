"""Whether an exported graph can be read as it stands, its in-place writes made functional.

``run_decompositions`` does so for any graph, but takes longer than export itself. A write into a
tensor of which no other tensor can be a view needs no more than another name.
"""

from collections.abc import Container
from typing import Any

import torch
from torch import fx

from workers.sweep.tracer import aten, bound

NEW = {
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.linear.default,
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default,
}
"""Composite operations that make a new tensor; of others their schema does not tell."""
DROPOUT = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}


def functional(graph: fx.Graph, known: Container[Any]) -> bool:
    """Replaces the writes of ``graph``. False where one has to stay, or where a composite
    operation is not ``known``, which may stand for some that are."""
    _erase_dropout(graph)
    calls = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if any(_is_composite(call.target) and not _is_known(call.target, known) for call in calls):
        return False
    return all(_replace(graph, call) for call in calls if call.target._schema.is_mutable)


def _erase_dropout(graph: fx.Graph) -> None:
    """Dropout that is off returns its input itself, which not every PyTorch's export knows when
    that is written to."""
    for node in graph.nodes:
        if node.target not in DROPOUT:
            continue
        given = bound(node.target, node.args, node.kwargs)
        if not given["train"]:
            node.replace_all_uses_with(given["input"])
            graph.erase_node(node)


def _is_known(operation: Any, known: Container[Any]) -> bool:
    return operation in NEW or operation in known or _functional(operation) in known


def _replace(graph: fx.Graph, write: fx.Node) -> bool:
    """``y = x.f_(...)`` -> ``y = x.f(...)``, and who reads ``x`` later reads ``y``."""
    target, operation = write.args[0], _functional(write.target)
    if operation is None or not isinstance(target, fx.Node) or not _alone(target, write):
        return False
    if target.meta["val"].dtype != write.meta["val"].dtype:
        return False
    earlier = {node for node in target.users if node < write}
    target.replace_all_uses_with(write, lambda user: user is not write and user not in earlier)
    write.target = operation
    return True


def _functional(operation: Any) -> Any:
    """``aten.relu_.default`` -> ``aten.relu.default``; None if there is none."""
    name, overload = operation._schema.name.split("::")[1], operation._overloadname
    if operation.namespace != "aten" or not name.endswith("_"):
        return None
    found = getattr(getattr(aten, name[:-1], None), overload, None)
    return None if found is None or found._schema.is_mutable else found


def _alone(target: fx.Node, write: fx.Node) -> bool:
    """Whether ``target`` is a tensor of its own and nothing made of it before is a view of it."""
    return _is_new(target) and all(_is_new(user) for user in target.users if user < write)


def _is_new(node: fx.Node) -> bool:
    """Whether its result shares memory with none of its arguments."""
    operation = node.target
    if not isinstance(operation, torch._ops.OpOverload) or operation.namespace != "aten":
        return False
    if any(result.alias_info is not None for result in operation._schema.returns):
        return False
    return operation in NEW or not _is_composite(operation)


def _is_composite(operation: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        operation.name(), "CompositeImplicitAutograd"
    )
