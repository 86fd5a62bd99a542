"""Plans for other machines and other contexts: whether another card pays, and what a longer context costs.

Every one is a whole plan, optimised and tried in llama.cpp's dry run as the one that was asked for is, and refused as
that would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ktllama.planner import hardware
from ktllama.planner.budgets import MAX_GPUS
from ktllama.planner.cost import token_seconds
from ktllama.planner.errors import PlanError
from ktllama.planner.machine import Machine, Processor
from ktllama.planner.parts import cut, with_nodes
from ktllama.planner.plan import Plan, Prediction
from ktllama.planner.planning import Planner

#: Told what is being worked on, and which share of it is done.
Progress: TypeAlias = Callable[[str, float], None]

_GIB = 1 << 30

#: Memories of cards that one can buy.
CARD_BYTES = tuple(size * _GIB for size in (8, 12, 16, 24, 32, 48, 80))

#: A card of the ladder that is nearly the one that is there would be drawn on top of it.
_NEARLY = 0.1

_SHORTEST_CONTEXT = 4096
_LONGEST_CONTEXT = 131072


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a plan. ``start_tokens_per_second`` is decode's speed while the context is still empty;
    ``op_offload`` whether prefill uses host weights on a GPU."""

    prediction: Prediction
    start_tokens_per_second: float
    ubatch: int
    op_offload: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there is no plan. ``missing_bytes`` of host memory would be needed more, 0 if that is not what is missing."""

    reason: str
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One of the plans. ``amount`` is what is varied: bytes of a card, or tokens of context."""

    amount: int
    found: Outcome | Refusal

    @property
    def tokens_per_second(self) -> float | None:
        """Predicted decode with half the context full; None where there is no plan."""
        return None if isinstance(self.found, Refusal) else self.found.prediction.decode_tokens_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A plan and its neighbours.

    ``replaced`` are plans with another card in place of the smallest one, called ``replaced_name``; ``added`` with one
    more card, ``added_name``, beside all that are there. Either is empty, and its name None, where that cannot be. The
    plan itself is a point of ``replaced`` and of ``contexts``.
    """

    plan: Plan
    replaced: tuple[Point, ...]
    added: tuple[Point, ...]
    contexts: tuple[Point, ...]
    replaced_name: str | None
    added_name: str | None


def with_another(machine: Machine, n_bytes: int = 0) -> Machine:
    """``machine`` with one more card of ``n_bytes``, as fast as its first (or as one that nothing is known of).

    The same machine where llama.cpp takes no more.
    """
    if len(machine.gpus) >= MAX_GPUS:
        return machine
    like = machine.gpus[0] if machine.gpus else hardware.machine({"cuda:0": n_bytes}, None).gpus[0]
    taken, kind = {gpu.name for gpu in machine.gpus}, like.name.partition(":")[0]
    name = next(name for number in range(MAX_GPUS + 1) if (name := f"{kind}:{number}") not in taken)
    return replace(machine, gpus=(*machine.gpus, replace(like, name=name, memory_bytes=n_bytes)))


def survey(planner: Planner, progress: Progress | None = None) -> Survey:
    """The plan of ``planner`` and its neighbours. The planner's session must know the devices of :func:`with_another`.

    Raises:
        PlanError: when the plan itself does not fit; a neighbour that does not is a point that says so.
    """
    return _Surveyor(planner, planner.plan(), progress or (lambda _what, _share: None)).survey()


class _Surveyor:
    def __init__(self, planner: Planner, made: Plan, progress: Progress) -> None:
        self.planner = planner
        self.made = made
        self.machine = made.machine
        self.progress = progress

    def survey(self) -> Survey:
        smallest = min(self.machine.gpus, key=_size, default=None)
        bigger = with_another(self.machine)
        added_name = bigger.gpus[-1].name if bigger is not self.machine else None
        return Survey(
            plan=self.made,
            replaced=() if smallest is None else self._replaced(smallest),
            added=() if added_name is None else tuple(self._each("one more card", CARD_BYTES, self._with_another)),
            contexts=self._contexts(),
            replaced_name=smallest.name if smallest else None,
            added_name=added_name,
        )

    def _trial(self, *gpus: Processor) -> Planner:
        """A planner for these GPUs in place of those that are there."""
        return self.planner.trial(machine=replace(self.machine, gpus=gpus), elsewhere=True)

    def _replaced(self, smallest: Processor) -> tuple[Point, ...]:
        there = _size(smallest)

        def planner(n_bytes: int) -> Planner:
            gpus = (replace(gpu, memory_bytes=n_bytes) if gpu is smallest else gpu for gpu in self.machine.gpus)
            return self._trial(*gpus)

        sizes = {there, *(size for size in CARD_BYTES if abs(size / there - 1) > _NEARLY)}
        return tuple(self._each("another card", sorted(sizes), planner, known=there))

    def _with_another(self, n_bytes: int) -> Planner:
        return self._trial(*with_another(self.machine, n_bytes).gpus)

    def _contexts(self) -> tuple[Point, ...]:
        """Doubling, as far as the model was trained, and the context of the plan itself."""
        context, model = self.made.context, self.planner.opened.model
        longest = model.integer("context_length") * context.n_seq_max or _LONGEST_CONTEXT
        longest = min(longest, max(context.n_ctx, _LONGEST_CONTEXT))
        sizes, size = {context.n_ctx}, _SHORTEST_CONTEXT
        while size <= longest:
            sizes.add(size)
            size *= 2

        def planner(n_ctx: int) -> Planner:
            return self.planner.trial(wishes=replace(self.planner.wishes, n_ctx=n_ctx))

        return tuple(self._each("other contexts", sorted(sizes), planner, known=context.n_ctx))

    def _each(
        self, what: str, amounts: Sequence[int], planner: Callable[[int], Planner], *, known: int | None = None
    ) -> Iterator[Point]:
        """A point for each amount; ``known`` is the amount of the plan that is there already."""
        for number, amount in enumerate(amounts):
            self.progress(what, number / len(amounts))
            found = _outcome(self.planner, self.made) if amount == known else _tried(planner(amount))
            yield Point(amount=amount, found=found)
        self.progress(what, 1.0)


def _tried(planner: Planner) -> Outcome | Refusal:
    try:
        return _outcome(planner, planner.plan())
    except PlanError as fault:
        return Refusal(reason=fault.reason, missing_bytes=fault.missing_bytes)


def _outcome(planner: Planner, made: Plan) -> Outcome:
    parts = with_nodes(cut(planner.opened.placement, made.context, planner.opened.resolution.tree), made.n_nodes)
    empty = replace(
        parts,
        layers=tuple(replace(layer, kv_read_bytes=0.0, attention_operations=0.0) for layer in parts.layers),
    )
    return Outcome(
        prediction=made.prediction,
        start_tokens_per_second=1 / token_seconds(empty, made.assignment, made.machine),
        ubatch=made.context.n_ubatch,
        op_offload=made.translation.settings.op_offload,
    )


def _size(gpu: Processor) -> int:
    assert gpu.memory_bytes is not None
    return gpu.memory_bytes
