"""Nothing fits: by how much, and the smallest change that would help, found by trying it.

A shorter context and a smaller KV type are tried with the whole loop, dry run included, so what is said to fit does.
A smaller quantization is a size: the weights must shrink by what is missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ktllama import devices
from ktllama.errors import KtllamaError
from ktllama.model.kv_cache import CELL_PADDING
from ktllama.planner.assigning import Reserve, least_host_bytes
from ktllama.planner.errors import PlanError
from ktllama.planner.machine import Machine
from ktllama.planner.parts import ModelParts, cut
from ktllama.planner.plan import Plan
from ktllama.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from ktllama.planner.planning import Planner

_SMALLER_KV = {"f32": "q8_0", "f16": "q8_0", "bf16": "q8_0", "q8_0": "q4_0", "q5_1": "q4_0", "q5_0": "q4_0"}
_SHORTEST_CONTEXT = 2048

#: Bits a weight, the largest first, as llama.cpp's quantizer says for an 8-billion model (``QUANT_OPTIONS`` in
#: ``tools/quantize/quantize.cpp``; sizes there are of 8.03 billion weights, in GiB).
_QUANTIZATIONS: tuple[tuple[str, float], ...] = (
    *((name, gib * 2**33 / 8.03e9) for name, gib in (
        ("Q8_0", 7.96), ("Q6_K", 6.14), ("Q5_K_M", 5.33), ("Q5_K_S", 5.21), ("Q4_K_M", 4.58), ("Q4_K_S", 4.37),
        ("Q3_K_L", 4.03), ("Q3_K_M", 3.74), ("Q3_K_S", 3.41), ("Q2_K", 2.96),
    )),
    ("IQ2_M", 2.7), ("IQ2_S", 2.5), ("IQ2_XS", 2.31), ("IQ2_XXS", 2.06), ("IQ1_M", 1.75), ("IQ1_S", 1.56),
)  # fmt: skip


def refuse(planner: Planner, parts: ModelParts) -> PlanError:
    """The refusal of what ``planner`` was asked for, with the changes that would make it fit if it suggests any."""
    unlimited = _tried(planner, _with_ram(planner.machine, None)) if planner.suggests else None
    missing = max(missing_bytes(planner, parts, unlimited), 0)
    reason = f"{planner.opened.model.name} does not fit: {_budgets(planner)} " + (
        f"are {format_bytes(missing)} too little" if missing else "are too little for llama.cpp's buffers"
    )
    changes = tuple(_changes(planner, missing, unlimited)) if planner.suggests else ()
    return PlanError(reason, changes=changes, missing_bytes=missing)


def missing_bytes(planner: Planner, parts: ModelParts, unlimited: Plan | None = None) -> int:
    """By how much the host's memory is too small for the assignment that needs the least of it.

    Compute buffers are those of ``unlimited``, a plan with all the RAM that it takes; without it they are left out.
    """
    budget = planner.machine.cpu.memory_bytes
    if budget is None:
        return 0
    margins = {one.name: planner.wishes.margin for one in planner.machine.processors}
    buffers = {one.device: one.compute + planner.padding for one in unlimited.memory if one.used} if unlimited else {}
    reserve = Reserve(by_device={name: margin + buffers.get(name, 0) for name, margin in margins.items()})
    return least_host_bytes(parts, planner.machine, reserve) - budget


def _budgets(planner: Planner) -> str:
    ram = planner.machine.cpu.memory_bytes
    host = [] if ram is None else [f"{format_bytes(ram)} of RAM"]
    return " and ".join(
        [*host, *(f"{format_bytes(gpu.memory_bytes or 0)} on {gpu.name}" for gpu in planner.machine.gpus)]
    )


def _changes(planner: Planner, missing: int, unlimited: Plan | None) -> Iterator[str]:
    wishes = planner.wishes
    if wishes.ubatch is not None and wishes.ubatch > 512 and _fits(planner, ubatch=512):
        yield "--ubatch 512"
    longest = _longest_context(planner)
    if longest is not None:
        yield f"--ctx {longest}"
    smaller = _SMALLER_KV.get(wishes.kv_type)
    if smaller is not None and wishes.flash_attn != "off" and _fits(planner, kv_type=smaller):
        yield f"--kv-type {smaller}"
    if missing:
        yield from _quantization(planner, missing)
    if unlimited is not None and planner.machine.cpu.memory_bytes is not None:
        yield f"{format_bytes(_enough_ram(planner, planner.machine.cpu.memory_bytes + missing, unlimited))} of RAM"


def _enough_ram(planner: Planner, least: int, unlimited: Plan) -> int:
    """RAM that a plan was found with: ``least`` if that does, else what the plan without limit takes."""
    ram = _as_said(least)
    if _tried(planner, _with_ram(planner.machine, ram)) is not None:
        return ram
    host = next(one for one in unlimited.memory if one.device == devices.CPU)
    return _as_said(host.used + host.margin)


def _as_said(n_bytes: int) -> int:
    """The least size that is no less when it is read as it is written, with few digits."""
    larger = (n_bytes + more * n_bytes // 1000 for more in itertools.count())
    return next(said for said in (parse_bytes(format_bytes(size)) for size in larger) if said >= n_bytes)


def _longest_context(planner: Planner) -> int | None:
    """The longest shorter context that fits, in whole cells; None if not even a short one does."""
    low, high = _SHORTEST_CONTEXT // CELL_PADDING, (planner.wishes.n_ctx - 1) // CELL_PADDING
    if low > high or not _fits(planner, n_ctx=low * CELL_PADDING):
        return None
    while high - low > max(1, low // 64):
        middle = (low + high + 1) // 2
        if _fits(planner, n_ctx=middle * CELL_PADDING):
            low = middle
        else:
            high = middle - 1
    return low * CELL_PADDING


def _quantization(planner: Planner, missing: int) -> Iterator[str]:
    """The largest common quantization whose weights are small enough."""
    tensors = planner.opened.model.tensors
    n_weights = sum(math.prod(tensor.shape) for tensor in tensors)
    n_bytes = sum(tensor.n_bytes for tensor in tensors)
    for name, bits in _QUANTIZATIONS:
        if n_weights * bits / 8 <= n_bytes - missing:
            yield (
                f"a quantization of at most {format_bytes(n_bytes - missing)}, such as {name} (about "
                f"{format_bytes(round(n_weights * bits / 8))}, now {format_bytes(n_bytes)})"
            )
            return


def _fits(planner: Planner, **changes: object) -> bool:
    """Whether a plan is found with some wishes changed."""
    return _tried(planner, planner.machine, **changes) is not None


def _tried(planner: Planner, machine: Machine, **changes: object) -> Plan | None:
    """A plan for another machine or with some wishes changed, if there is one; no further refusal is worked out."""
    asked = planner.wishes
    smallest = {"ubatch": asked.ubatches[0], "op_offload": asked.op_offload or False, **changes}
    wishes = replace(asked, **smallest)  # type: ignore[arg-type]  # the callers above name fields
    tried = planner.trial(machine=machine, wishes=wishes)
    parts = cut(planner.opened.placement, wishes.context(wishes.ubatches[0]), planner.opened.resolution.tree)
    if missing_bytes(tried, parts) > 0:
        return None
    try:
        return tried.plan()
    except KtllamaError:
        return None


def _with_ram(machine: Machine, n_bytes: int | None) -> Machine:
    return replace(machine, cpu=replace(machine.cpu, memory_bytes=n_bytes))
