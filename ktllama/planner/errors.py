"""Why there is no plan."""

from __future__ import annotations

from dataclasses import dataclass

from ktllama.errors import KtllamaError
from ktllama.units import format_bytes


class BudgetError(KtllamaError):
    """A budget, a speed or a context that cannot be understood or cannot be: wrong units, negative, named twice."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class PlanError(KtllamaError):
    """No plan fits. ``changes`` are the smallest changes, each by itself, that would make one fit.

    ``missing_bytes`` is how much more memory the host would need, 0 where that is not what is missing.
    """

    exit_status = 1

    def __init__(self, reason: str, *, changes: tuple[str, ...] = (), missing_bytes: int = 0) -> None:
        self.reason = reason
        self.changes = changes
        self.missing_bytes = missing_bytes
        super().__init__(reason, changes)

    def __str__(self) -> str:
        return self.reason + (f"; what would fit: {'; or '.join(self.changes)}" if self.changes else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCost:
    """What one rule puts on a device, KV caches included. ``rule`` says which it is, for people."""

    rule: str
    n_bytes: int


class FixedPartError(PlanError):
    """What the rules themselves put on ``device`` is over its budget. ``costs`` are their rules, the dearest first."""

    def __init__(self, device: str, needed_bytes: int, budget_bytes: int, costs: tuple[RuleCost, ...]) -> None:
        self.device = device
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.costs = costs
        super().__init__(self._sentence())
        self.args = (device, needed_bytes, budget_bytes, costs)

    def _sentence(self) -> str:
        listed = ", ".join(f"{cost.rule}: {format_bytes(cost.n_bytes)}" for cost in self.costs[:3])
        return (
            f"what the rules fix on {self.device} takes {format_bytes(self.needed_bytes)} with compute buffer and "
            f"margin, {format_bytes(self.needed_bytes - self.budget_bytes)} more than its budget of "
            f"{format_bytes(self.budget_bytes)}; the rules that take most: {listed}"
        )
