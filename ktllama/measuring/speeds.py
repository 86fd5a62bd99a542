"""What was measured of one machine's devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ktllama.runtime.op_timing import MatrixTimes

#: Models by what their layers cost beside their weights: MLA with experts, grouped queries with experts, dense.
Kind = Literal["mla-moe", "gqa-moe", "dense"]
KINDS: tuple[Kind, ...] = ("mla-moe", "gqa-moe", "dense")

#: A device that the CPU plays, in the cache; llama.cpp has no name for it that stays.
STAND_IN = "stand-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What a decoded token costs beside reading: ``node`` seconds for each node of llama.cpp's graph, and ``token``.

    ``layer`` is what the nodes of one layer take together, where the graph of a model is not known yet.
    """

    node: float
    token: float
    layer: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpeeds:
    """One device with ``n_threads`` CPU threads (what computes, or for a GPU what drives it).

    ``matrices`` is by ggml type and kind of buffer, empty for a type that it has no kernel for; ``attention`` by KV
    type and kind of attention (``f16 mla``), in seconds an operation; ``crossing`` seconds for one change between it
    and the host, ``copy`` bytes a second from the host to it.
    """

    matrices: Mapping[str, Mapping[str, MatrixTimes]] = field(default_factory=dict)
    attention: Mapping[str, float] = field(default_factory=dict)
    overheads: Mapping[str, Overheads] = field(default_factory=dict)
    crossing: float | None = None
    copy: float | None = None

    @property
    def has_matrices(self) -> bool:
        """Whether any type of weights has figures: one that a device has no kernel for is kept without any."""
        return any(self.matrices.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Every device that was measured, by llama.cpp's name and number of threads."""

    devices: Mapping[tuple[str, int], DeviceSpeeds] = field(default_factory=dict)

    def of(self, device: str, n_threads: int) -> DeviceSpeeds:
        """What was measured of a device with so many threads; nothing where it was not."""
        return self.devices.get((device, n_threads), DeviceSpeeds())

    def of_gpu(self, device: str, n_threads: int) -> DeviceSpeeds:
        """What is known of a GPU: its operations do not depend on the threads, so they may be of another number."""
        found = self.of(device, n_threads)
        others = [self.of(device, number) for number in self.threads_of(device)]
        full = next((one for one in others if one.has_matrices), found)
        return replace(found, matrices=full.matrices, attention=full.attention, copy=full.copy)

    def with_device(self, device: str, n_threads: int, speeds: DeviceSpeeds) -> Speeds:
        """These, and what was measured of one device."""
        return Speeds(devices={**self.devices, (device, n_threads): speeds})

    def threads_of(self, device: str) -> tuple[int, ...]:
        """The numbers of threads that a device was measured with, in rising order."""
        return tuple(sorted(n_threads for name, n_threads in self.devices if name == device))
