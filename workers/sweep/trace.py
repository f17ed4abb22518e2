"""A trunk's code -> a ``Program``, by ``torch.export``: any spelling, in-place or not.

Export runs the trunk once on fake tensors and yields a functional graph of a few ATen operations
with a free batch size.
"""

import warnings

import torch
from torch import Tensor, nn

from workers.sweep.program import Program, shortened
from workers.sweep.readers import READERS
from workers.sweep.tracer import Tracer, Untraceable
from workers.sweep.writes import functional

__all__ = ["Untraceable", "trace"]
MOST = 65535
"""Images at once; for more, batch normalisation on a GPU is another operation."""


def trace(trunk: nn.Module, pixels: Tensor) -> Program:
    """The program of ``trunk`` for inputs like ``pixels (n, 3, y, x)``, n > 1, of any n."""
    exported = _export(trunk, pixels)
    tracer = Tracer(_given(exported), READERS)
    for node in exported.graph.nodes:
        tracer.read(node)
    program = shortened(tracer.program(exported.graph.output_node()))
    if not any(map(program.macs, program.steps)):
        raise Untraceable("it has no convolution that windows could save")
    return program


def _export(trunk: nn.Module, pixels: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=MOST)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch 2.11 of its own
            exported = torch.export.export(
                trunk, (pixels,), dynamic_shapes=({0: batch},), strict=False
            )
            if functional(exported.graph, READERS):
                return exported
            return exported.run_decompositions({})
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        raise Untraceable(f"torch.export refuses it: {str(error).splitlines()[0]}") from error


def _given(exported: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Placeholder -> parameter, buffer or constant."""
    signature = exported.graph_signature
    held = {**exported.constants, **exported.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise Untraceable("it changes its own buffers or its input")
    return {placeholder: held[name].detach() for placeholder, name in names.items()}
