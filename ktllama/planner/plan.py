"""A plan: where everything is, what it takes, and how fast that is predicted to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ktllama.planner.cost import Assignment
from ktllama.planner.machine import Machine
from ktllama.planner.memory import DeviceMemory
from ktllama.runtime.context_options import ContextOptions
from ktllama.translation import Translation


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model of cost says; nothing here was measured.

    ``decode_tokens_per_second`` is of one sequence with half its context full, ``prefill_tokens_per_second`` of whole
    ubatches; ``host_read_bytes`` of host memory are read, and ``crossings`` changes of device made, for a token.
    """

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    crossings: int
    host_read_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice of ubatch and of where prefill uses host weights, and what was predicted of it before it was made.

    ``compute_bytes`` are llama.cpp's buffers by device, for the layers spread in a first guess; those of ubatches
    between the smallest and the largest are interpolated.
    """

    ubatch: int
    op_offload: bool
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    compute_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan that llama.cpp's dry run agreed to.

    ``rules`` is a rule file; translated it gives ``translation``, with the settings in it. ``memory`` is by device, the
    GPUs in their order and the host last. ``candidates`` are the ubatches that were weighed. ``stand_ins`` names the
    devices (llama.cpp's names) that the CPU played in the dry run, ``rounds`` counts the placements that it was asked
    about. ``flash_attention`` is what llama.cpp made of the context's wish, ``n_nodes`` the length of its graph for
    a decoded token, ``notes`` what else is worth knowing.
    """

    rules: str
    translation: Translation
    machine: Machine
    context: ContextOptions
    assignment: Assignment
    memory: tuple[DeviceMemory, ...]
    prediction: Prediction
    candidates: tuple[Candidate, ...]
    stand_ins: tuple[str, ...]
    flash_attention: bool | None
    rounds: int
    n_nodes: int = 0
    notes: tuple[str, ...] = ()
