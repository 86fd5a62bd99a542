"""How long a decoded token takes under an assignment, predicted.

Decode reads weights: a part costs its bytes over the bandwidth of the device that holds it, or its operations over
that device's rate for the type where that is longer; where seconds a byte were measured, those. A KV cache costs its
bytes, or attention's operations. Devices work one after another, every node of the graph costs a little, and every
change of device a synchronisation. A layer's output is added where the layer is, so matrices elsewhere cost the way
there and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ktllama import devices
from ktllama.model.tensor_types import TENSOR_TYPES
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import Layer, ModelParts, Part

#: Multiply and add, for each weight.
_OPERATIONS_PER_WEIGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A device for everything: ``cores`` by layer, ``matrices`` by layer in the order of ``Layer.matrices``."""

    cores: tuple[str, ...]
    matrices: tuple[tuple[str, ...], ...]
    output: str

    @property
    def gpu_order(self) -> tuple[str, ...]:
        """The GPUs in the order of their layers."""
        return tuple(dict.fromkeys(core for core in self.cores if core != devices.CPU))


def part_seconds(part: Part, processor: Processor) -> float:
    """Time to read ``part`` for one token on ``processor``."""
    measured = processor.expert_seconds if part.chosen else processor.read_seconds
    return sum(
        n_bytes * (measured.get(tensor_type) or _seconds_per_byte(tensor_type, processor))
        for tensor_type, n_bytes in part.reads
    )


def core_seconds(layer: Layer, processor: Processor) -> float:
    """Time of a layer's core, its KV cache and the nodes of its graph included, for one token on ``processor``."""
    return part_seconds(layer.core, processor) + beside_seconds(layer, processor)


def beside_seconds(layer: Layer, processor: Processor) -> float:
    """What a layer costs beside its weights: attention over its KV cache, and the nodes of its graph."""
    attention = max(layer.kv_read_bytes / processor.bandwidth, layer.attention_operations * processor.attention_seconds)
    return attention + layer.n_nodes * processor.node_seconds


def token_seconds(model: ModelParts, assignment: Assignment, machine: Machine) -> float:
    """Predicted seconds a decoded token takes: everything that is read, and every change of device."""
    reading = sum(
        part_seconds(part, machine.processor(device)) for part, device in parts_with_devices(model, assignment)
    )
    reading += sum(
        beside_seconds(layer, machine.processor(core))
        for layer, core in zip(model.layers, assignment.cores, strict=True)
    )
    return reading + machine.token_seconds + machine.crossing_seconds * n_crossings(assignment)


def host_read_bytes(model: ModelParts, assignment: Assignment) -> float:
    """Bytes of host memory that a decoded token reads."""
    parts = sum(part.read_bytes for part, device in parts_with_devices(model, assignment) if device == devices.CPU)
    caches = zip(model.layers, assignment.cores, strict=True)
    return parts + sum(layer.kv_read_bytes for layer, core in caches if core == devices.CPU)


def memory_bytes(model: ModelParts, assignment: Assignment) -> dict[str, int]:
    """Bytes by device of tensors and KV caches, without compute buffers."""
    used: dict[str, int] = {}
    for part, device in parts_with_devices(model, assignment):
        used[device] = used.get(device, 0) + part.n_bytes
    for layer, core in zip(model.layers, assignment.cores, strict=True):
        used[core] = used.get(core, 0) + layer.kv_bytes
    return used


def n_crossings(assignment: Assignment) -> int:
    """How often a token goes from one device to another, from the host's embedding to the host's logits."""
    return sum(a != b for a, b in pairwise(_way(assignment)))


def _way(assignment: Assignment) -> Iterator[str]:
    yield devices.CPU
    for core, matrices in zip(assignment.cores, assignment.matrices, strict=True):
        yield from (core, *matrices, core)
    yield assignment.output
    yield devices.CPU


def parts_with_devices(model: ModelParts, assignment: Assignment) -> Iterator[tuple[Part, str]]:
    """Every part with its device."""
    for part in model.fixed:
        yield part, part.device or devices.CPU
    for layer, core, matrices in zip(model.layers, assignment.cores, assignment.matrices, strict=True):
        yield layer.core, core
        yield from zip(layer.matrices, matrices, strict=True)
        for part in layer.fixed:
            yield part, part.device or devices.CPU
    yield model.output, assignment.output


def operations_per_byte(tensor_type: str) -> float:
    """Operations that a token costs for each byte of weights that it uses."""
    known = TENSOR_TYPES[tensor_type]
    return _OPERATIONS_PER_WEIGHT * known.block_items / known.block_bytes


def _seconds_per_byte(tensor_type: str, processor: Processor) -> float:
    return max(1 / processor.bandwidth, operations_per_byte(tensor_type) / processor.flops_of(tensor_type))
