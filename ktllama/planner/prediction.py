"""What is predicted of a placement that is there already, at any depth."""

from __future__ import annotations

from dataclasses import replace

from ktllama import devices
from ktllama.placing.ir import Placement
from ktllama.planner.cost import Assignment, token_seconds
from ktllama.planner.machine import Machine
from ktllama.planner.parts import ModelParts, cut, with_nodes
from ktllama.runtime.context_options import ContextOptions


def decode_seconds(
    placement: Placement, machine: Machine, context: ContextOptions, depth: float, n_nodes: int = 0
) -> float:
    """Seconds to decode a token after ``depth`` others under ``placement``, in which nothing is left open.

    ``n_nodes`` is the length of llama.cpp's graph for it (``graph_nodes`` of a dry run), where the machine's nodes
    cost something.
    """
    # a model is cut for the middle of its context
    middle = replace(context, n_ctx=max(1, round(2 * depth)), n_seq_max=1)
    parts = with_nodes(cut(placement, middle), n_nodes)
    return token_seconds(parts, assignment_of(parts), machine)


def assignment_of(parts: ModelParts) -> Assignment:
    """The assignment of parts that all have their place."""
    return Assignment(
        cores=tuple(layer.device or devices.CPU for layer in parts.layers),
        matrices=tuple(
            tuple(part.device or layer.device or devices.CPU for part in layer.matrices) for layer in parts.layers
        ),
        output=parts.output.device or devices.CPU,
    )
