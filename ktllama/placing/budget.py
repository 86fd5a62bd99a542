"""Whether a plan fits the memory that its devices are said to have."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama import devices
from ktllama.diagnostics import Diagnostic
from ktllama.placing.ir import Placement
from ktllama.units import format_bytes


def check_budget(placement: Placement, budgets: Mapping[str, int]) -> tuple[Diagnostic, ...]:
    """An error for every device whose tensors alone are more than its budget in bytes."""
    used = placement.bytes_by_device()
    return tuple(
        Diagnostic(
            code="over-budget",
            severity="error",
            message=f"the tensors on {device} take {format_bytes(used[device])}, "
            f"{format_bytes(used[device] - budgets[device])} more than its budget of {format_bytes(budgets[device])}, "
            "before any KV cache and compute buffer; move layers or experts to another device",
        )
        for device in sorted(used, key=devices.order)
        if device in budgets and used[device] > budgets[device]
    )
