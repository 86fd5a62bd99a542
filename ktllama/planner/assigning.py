"""From memories to an assignment: room on every GPU, the host's budget kept too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ktllama import devices
from ktllama.planner.cost import Assignment, memory_bytes
from ktllama.planner.machine import Machine
from ktllama.planner.optimise import Problem, optimise
from ktllama.planner.parts import ModelParts

#: Seconds a byte at which host memory is all that counts: a plan's seconds are below 10⁴, a tensor has 10³ bytes.
_ALL_THAT_COUNTS = 1e3
_BISECTIONS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Bytes by device that no tensor and no KV cache may take: compute buffers, streamed copies, padding, margin."""

    by_device: Mapping[str, int]

    def of(self, device: str) -> int:
        """The reserve of one device."""
        return self.by_device.get(device, 0)


def fixed_bytes(model: ModelParts) -> dict[str, int]:
    """Bytes by device of what the rules decide, KV caches included."""
    used: dict[str, int] = {}
    for part in model.all_fixed:
        assert part.device is not None
        used[part.device] = used.get(part.device, 0) + part.n_bytes
    for layer in model.layers:
        if layer.device is not None:
            used[layer.device] = used.get(layer.device, 0) + layer.core_bytes
    if model.output.device is not None:
        used[model.output.device] = used.get(model.output.device, 0) + model.output.n_bytes
    return used


def room(model: ModelParts, machine: Machine, reserve: Reserve) -> dict[str, int]:
    """Bytes by GPU that are left for what is open."""
    fixed = fixed_bytes(model)
    return {gpu.name: (gpu.memory_bytes or 0) - reserve.of(gpu.name) - fixed.get(gpu.name, 0) for gpu in machine.gpus}


def host_bytes(model: ModelParts, assignment: Assignment, reserve: Reserve) -> int:
    """Bytes of host memory that an assignment needs; mapped weights must stay in the page cache, so they count."""
    return memory_bytes(model, assignment).get(devices.CPU, 0) + reserve.of(devices.CPU)


def assign(
    model: ModelParts,
    machine: Machine,
    reserve: Reserve,
    *,
    order: tuple[str, ...] = (),
    output: str | None = None,
) -> Assignment | None:
    """The fastest assignment within all memories, None where not even the one with the least host memory fits, or what
    is fixed on a GPU alone does not.

    Host memory gets a price a byte where the fastest assignment takes too much of it, the lowest price that makes one
    fit. At that price the assignment is optimal among those that take as much host memory as it does. ``order`` and
    ``output`` are what is not free (:class:`~ktllama.planner.optimise.Problem`).
    """
    free = room(model, machine, reserve)
    if any(free.get(device, 0) < 0 for device in fixed_bytes(model)):
        return None

    def at(price: float) -> Assignment:
        return optimise(Problem(model=model, machine=machine, room=free, host_price=price, order=order, output=output))

    def fits(assignment: Assignment) -> bool:
        budget = machine.cpu.memory_bytes
        return budget is None or host_bytes(model, assignment, reserve) <= budget

    fastest = at(0.0)
    if fits(fastest):
        return fastest
    best = at(_ALL_THAT_COUNTS)
    if not fits(best):
        return None
    low, high = 1e-18, _ALL_THAT_COUNTS
    for _ in range(_BISECTIONS):
        price = (low * high) ** 0.5
        found = at(price)
        if fits(found):
            best, high = found, price
        else:
            low = price
        if high / low < 1.1:
            break
    return best


def least_host_bytes(model: ModelParts, machine: Machine, reserve: Reserve) -> int:
    """The least host memory that any assignment takes."""
    problem = Problem(model=model, machine=machine, room=room(model, machine, reserve), host_price=_ALL_THAT_COUNTS)
    return host_bytes(model, optimise(problem), reserve)


def relaxed_seconds(model: ModelParts, machine: Machine, reserve: Reserve) -> float:
    """About how long a token takes: every part may be cut, and all GPUs are one, as fast as they are on average.

    Cheap enough to weigh ubatches with; what is best by value a byte goes first.
    """
    free = room(model, machine, reserve)
    total = sum(max(0, n_bytes) for n_bytes in free.values())
    if not machine.gpus:
        bandwidth = machine.cpu.bandwidth
    else:
        bandwidth = sum(gpu.bandwidth for gpu in machine.gpus) / len(machine.gpus)
    pieces = [
        (read, n_bytes)
        for layer in model.layers
        for read, n_bytes in (
            *([(layer.core_read_bytes, layer.core_bytes)] if layer.device is None else []),
            *((part.read_bytes, part.n_bytes) for part in layer.matrices if part.device is None),
        )
    ]
    if model.output.device is None:
        pieces.append((model.output.read_bytes, model.output.n_bytes))
    pieces.sort(key=lambda piece: -piece[0] / max(1, piece[1]))
    seconds = sum(
        part.read_bytes / machine.processor(part.device).bandwidth
        for part in model.all_fixed
        if part.device is not None
    )
    seconds += sum(
        layer.core_read_bytes / machine.processor(layer.device).bandwidth
        for layer in model.layers
        if layer.device is not None
    )
    if model.output.device is not None:
        seconds += model.output.read_bytes / machine.processor(model.output.device).bandwidth
    for read, n_bytes in pieces:
        share = min(1.0, total / n_bytes) if n_bytes else 1.0
        total -= round(share * n_bytes)
        seconds += read * (share / bandwidth + (1 - share) / machine.cpu.bandwidth)
    return seconds
