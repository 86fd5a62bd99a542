"""From memories to an assignment: room on every GPU, the host's budget kept too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ktllama import devices
from ktllama.planner.cost import Assignment, memory_bytes, part_seconds
from ktllama.planner.machine import Machine
from ktllama.planner.optimise import Solution, least_seconds, optimise, solve
from ktllama.planner.options import Problem
from ktllama.planner.parts import ModelParts

#: Seconds a byte at which host memory is all that counts: a plan's seconds are below 10⁴, a tensor has 10³ bytes.
_ALL_THAT_COUNTS = 1e3
_PRICE_RATIO = 1.1

#: A better assignment within the host's memory is searched where there may be one that is faster by this share.
_WORTH_SEARCHING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Bytes by device that no tensor and no KV cache may take: compute buffers, streamed copies, padding, margin."""

    by_device: Mapping[str, int]

    def of(self, device: str) -> int:
        """The reserve of one device."""
        return self.by_device.get(device, 0)


def raised(
    reserve: Reserve, said: Reserve, taken: Mapping[str, int], over: Mapping[str, int], machine: Machine
) -> Reserve:
    """``reserve`` with what llama.cpp ``said``, where a device is ``over``, and so large that no assignment can take as
    much as the one that did, which takes ``taken``: what was left beside it may be more than it was over by."""
    found = {
        device: max(said.of(device), (machine.processor(device).memory_bytes or 0) - taken.get(device, 0) + n_bytes)
        for device, n_bytes in over.items()
    }
    return Reserve(by_device={**reserve.by_device, **found})


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
    is fixed on a GPU alone does not, or the output.

    ``order`` and ``output`` are what is not free (:class:`~ktllama.planner.options.Problem`).
    """
    free = room(model, machine, reserve)
    if any(free.get(device, 0) < 0 for device in fixed_bytes(model)):
        return None
    problem = Problem(model=model, machine=machine, room=free, order=order, output=output)
    fastest = solve(problem)
    if fastest is None:
        return None
    budget = machine.cpu.memory_bytes
    if budget is None or host_bytes(model, fastest.assignment, reserve) <= budget:
        return fastest.assignment
    return _within_ram(problem, reserve, budget)


def _within_ram(problem: Problem, reserve: Reserve, budget: int) -> Assignment | None:
    """The fastest assignment within ``budget`` bytes of host memory too.

    A price a byte gives one that is nearly as fast and a bound; where they differ, the rest is searched between them.
    """
    model = problem.model
    always = reserve.of(devices.CPU) + sum(part.n_bytes for part in model.always_on_host)

    def at(price: float) -> Solution:
        found = solve(replace(problem, host_price=price))
        assert found is not None
        return found

    def host(solution: Solution) -> int:
        return host_bytes(model, solution.assignment, reserve)

    low, high = 1e-18, _ALL_THAT_COUNTS
    best = at(high)
    if host(best) > budget:
        return None
    while high / low > _PRICE_RATIO:
        price = float((low * high) ** 0.5)
        found = at(price)
        if host(found) <= budget:
            best, high = found, price
        else:
            low = price
    seconds = best.seconds - high * (host(best) - always)
    least = best.seconds - high * (budget - always)
    if seconds <= least * (1 + _WORTH_SEARCHING):
        return best.assignment
    capped = replace(problem, host_price=high, host_room=budget - always)
    better = solve(capped, seconds)
    return best.assignment if better is None else better.assignment


def bound_seconds(model: ModelParts, machine: Machine, reserve: Reserve) -> float:
    """What no assignment's token takes less than; RAM is without limit."""
    problem = Problem(model=model, machine=machine, room=room(model, machine, reserve))
    elsewhere = (*model.fixed, *(part for layer in model.layers for part in layer.fixed))
    fixed = sum(part_seconds(part, machine.processor(part.device or devices.CPU)) for part in elsewhere)
    return machine.token_seconds + fixed + least_seconds(problem)


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
