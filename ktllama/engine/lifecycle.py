"""The life of a generation, as one table.

A generation is *queued* until the scheduler admits it: then it owns a sequence of the context and, bit by bit, cells.
While it has more than one token that is known and not computed it is *prefilling*: its prompt, what the engine forced
into its answer, or everything again after it lost its cells. Once the token after its last one has been sampled, it
is *decoding*: one known token is left to compute, each step gives the next.

When cells run out, the youngest are *preempted*: they keep their sequence, their sampler and what they have said, and
lose their cells. They resume before anything queued is admitted. The oldest is never preempted, and a generation
alone fits the context (its limit says so), so the oldest always goes on and all others get their turn.

A generation that waits for another to compute their common prefix is *prefilling* too: it owns a sequence and is
merely given no rows.

Each ends in one of three ways and stays there: *finished* (by the model, a stop string, a limit or the guard),
*failed* (a Failed event) or *cancelled* (its client left). Whoever ends it frees what it holds, in the same step.

    queued ──admit──► prefilling ──sample──► decoding        any of these four:  ─end──► finished
                        │  ▲  ▲ ▲──────force────┘ │                             ─fail─► failed
                  preempt  │  └───resume───┐      │preempt                      ─cancel► cancelled
                        ▼  │               │      ▼
                        preempted ◄──────────── preempted
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Phase(Enum):
    """Where a generation stands."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Turn(Enum):
    """What moves a generation on."""

    ADMIT = "admit"
    SAMPLE = "sample"
    FORCE = "force"
    PREEMPT = "preempt"
    RESUME = "resume"
    END = "end"
    FAIL = "fail"
    CANCEL = "cancel"


_ENDS = {Turn.END: Phase.FINISHED, Turn.FAIL: Phase.FAILED, Turn.CANCEL: Phase.CANCELLED}

#: All that is legal. `SAMPLE` while decoding changes nothing and is not asked for.
TRANSITIONS: Mapping[Phase, Mapping[Turn, Phase]] = {
    Phase.QUEUED: {Turn.ADMIT: Phase.PREFILLING, **_ENDS},
    Phase.PREFILLING: {Turn.SAMPLE: Phase.DECODING, Turn.PREEMPT: Phase.PREEMPTED, **_ENDS},
    Phase.DECODING: {Turn.FORCE: Phase.PREFILLING, Turn.PREEMPT: Phase.PREEMPTED, **_ENDS},
    Phase.PREEMPTED: {Turn.RESUME: Phase.PREFILLING, **_ENDS},
    Phase.FINISHED: {},
    Phase.FAILED: {},
    Phase.CANCELLED: {},
}

ENDED = frozenset(phase for phase, turns in TRANSITIONS.items() if not turns)


class IllegalTransitionError(AssertionError):
    """A bug of ours: a turn that the table does not have."""

    def __init__(self, phase: Phase, turn: Turn) -> None:
        super().__init__(f"'{turn.value}' of a generation that is {phase.value}")
        self.phase = phase
        self.turn = turn


def after(phase: Phase, turn: Turn) -> Phase:
    """The phase that `turn` leads to. Raises IllegalTransitionError."""
    try:
        return TRANSITIONS[phase][turn]
    except KeyError:
        raise IllegalTransitionError(phase, turn) from None
