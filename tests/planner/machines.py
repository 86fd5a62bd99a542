"""Machines and models of a few parts for the planner's tests."""

from __future__ import annotations

from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import Layer, ModelParts, Part

GIB = 1 << 30


def machine(*gpus: int, ram: int | None = None) -> Machine:
    """A host and GPUs of these budgets, in bytes; a GPU is eighteen times as fast."""
    return Machine(
        cpu=Processor(name="cpu", memory_bytes=ram, bandwidth=50.0, default_flops=1e12),
        gpus=tuple(
            Processor(name=f"cuda:{number}", memory_bytes=n_bytes, bandwidth=900.0, default_flops=1e12)
            for number, n_bytes in enumerate(gpus)
        ),
        crossing_seconds=0.0,
    )


def part(n_bytes: int, read: float | None = None, device: str | None = None) -> Part:
    return Part(tensors=(), n_bytes=n_bytes, reads=(("Q8_0", n_bytes if read is None else read),), device=device)


def layer(index: int, core: int, *matrices: Part, kv: int = 0, device: str | None = None) -> Layer:
    return Layer(index=index, device=device, core=part(core), kv_bytes=kv, kv_read_bytes=kv / 2, matrices=matrices)


def model(*layers: Layer, output: int = 1) -> ModelParts:
    return ModelParts(layers=layers, output=part(output))
