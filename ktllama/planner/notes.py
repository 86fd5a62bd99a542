"""What is worth knowing about a plan besides its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ktllama import devices
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.planner.hardware import HOST_SHARES, OTHER_HOST_SHARE
from ktllama.planner.machine import Machine
from ktllama.planner.memory import DeviceMemory
from ktllama.translation import Translation
from ktllama.units import counted, format_bytes

#: A type without repacked kernels on x86 → one of about its size that has them (``ggml/src/ggml-cpu/repack.cpp``,
#: ``ggml_repack_get_optimal_repack_type``: Q4_0, Q4_K, IQ4_NL and MXFP4 with AVX2, Q2_K with AVX512).
_FASTER = {"Q4_1": "Q4_0", "IQ4_XS": "IQ4_NL", "NVFP4": "MXFP4", "IQ2_S": "Q2_K"}
_WORTH_A_NOTE = 0.1
_WORTH_CHANGING = 1.2


def notes(
    translation: Translation, memory: tuple[DeviceMemory, ...], machine: Machine, n_threads: int | None
) -> tuple[str, ...]:
    """One sentence a note; ``n_threads`` are the plan's."""
    return (
        *_other_threads(machine, n_threads),
        *_slow_types(translation, machine),
        *_unused(memory),
        *_host_memory(memory, machine),
    )


def _other_threads(machine: Machine, n_threads: int | None) -> Iterator[str]:
    if machine.measured_threads is not None and n_threads is not None:
        yield (
            f"{counted(n_threads, 'thread')} {'was' if n_threads == 1 else 'were'} not measured; these are the figures "
            f"of {machine.measured_threads}"
        )


def _slow_types(translation: Translation, machine: Machine) -> Iterator[str]:
    """Types on the host that llama.cpp multiplies with slowly, where another of the size is fast."""
    tensors = {tensor.name: tensor for tensor in translation.model.tensors}
    on_host: Counter[str] = Counter()
    for name, placed in translation.placement.tensors.items():
        if placed.loaded and placed.device == devices.CPU and ".ffn_" in name:
            on_host[tensors[name].type] += placed.n_bytes
    total = sum(on_host.values())
    for name, n_bytes in on_host.items():
        faster = _FASTER.get(name)
        if faster is None or n_bytes < total * _WORTH_A_NOTE:
            continue
        size = _bits(faster) / _bits(name) - 1
        gain = HOST_SHARES[faster] / HOST_SHARES.get(name, OTHER_HOST_SHARE)
        if {faster, name} <= machine.cpu.read_seconds.keys():  # measured here
            gain = machine.cpu.flops_of(faster) / machine.cpu.flops_of(name)
        if gain < _WORTH_CHANGING:
            continue
        difference = "the same size" if abs(size) < 0.005 else f"{abs(size):.0%} {'larger' if size > 0 else 'smaller'}"
        yield (
            f"{format_bytes(n_bytes)} on the host are {name}, for which llama.cpp has no repacked kernels on x86; "
            f"{faster} ({difference}) computes about {gain:.1f} times as fast there"
        )


def _unused(memory: tuple[DeviceMemory, ...]) -> Iterator[str]:
    for one in memory:
        if not one.used and one.device != devices.CPU:
            yield f"{one.device} holds nothing: its compute buffer and the margin would leave no room for a layer"


def _host_memory(memory: tuple[DeviceMemory, ...], machine: Machine) -> Iterator[str]:
    if machine.cpu.memory_bytes is None:
        used = next(one.used for one in memory if one.device == devices.CPU)
        yield (
            f"the host needs {format_bytes(used)}, page cache for mapped weights included; no --ram was given to hold "
            "it against"
        )


def _bits(tensor_type: str) -> float:
    known = TENSOR_TYPES[tensor_type]
    return known.block_bytes * 8 / known.block_items
