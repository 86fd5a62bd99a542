"""What a plan is made for: devices with their budgets, and how fast they read and compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """A device. ``name`` is a canonical rule device; ``memory_bytes`` its budget (None: without limit).

    ``bandwidth`` is what it reads of its own memory, in bytes a second; ``flops`` what it multiplies with weights of a
    ggml type (``Q4_K``), in operations a second, ``default_flops`` for types that are not listed.

    What was measured of decode replaces what follows from these: ``read_seconds`` and ``expert_seconds`` are seconds
    for each byte that a token reads of weights of a type, in whole matrices and in chosen experts;
    ``attention_seconds`` for each operation of its attention, ``node_seconds`` for each node of its graph.
    """

    name: str
    memory_bytes: int | None
    bandwidth: float
    default_flops: float
    flops: Mapping[str, float] = field(default_factory=dict)
    read_seconds: Mapping[str, float] = field(default_factory=dict)
    expert_seconds: Mapping[str, float] = field(default_factory=dict)
    attention_seconds: float = 0.0
    node_seconds: float = 0.0

    def flops_of(self, tensor_type: str) -> float:
        """Operations a second with weights of ``tensor_type``."""
        return self.flops.get(tensor_type, self.default_flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The host and its GPUs.

    ``link_bandwidth`` is from host memory to a GPU, in bytes a second; ``crossing_seconds`` what it costs a decoded
    token to go from one device to another, ``token_seconds`` what it costs whatever it reads. ``measured`` says that
    the speeds are this machine's and not assumed, ``measured_threads`` that they are of another number of threads than
    the plan's.
    """

    cpu: Processor
    gpus: tuple[Processor, ...] = ()
    link_bandwidth: float = 25e9
    crossing_seconds: float = 20e-6
    token_seconds: float = 0.0
    measured: bool = False
    measured_threads: int | None = None

    @property
    def processors(self) -> tuple[Processor, ...]:
        """All devices, the host first."""
        return (self.cpu, *self.gpus)

    def processor(self, name: str) -> Processor:
        """The device of that name; KeyError where there is none."""
        return {one.name: one for one in self.processors}[name]

    @property
    def names(self) -> frozenset[str]:
        """The names of all devices."""
        return frozenset(one.name for one in self.processors)
