"""The life cycle is the table and nothing else."""

from __future__ import annotations

import pytest

from ktllama.engine.lifecycle import ENDED, TRANSITIONS, IllegalTransitionError, Phase, Turn, after

QUEUED, PREFILLING, DECODING, PREEMPTED, FINISHED, FAILED, CANCELLED = Phase


def test_the_whole_table() -> None:
    ends = {Turn.END: FINISHED, Turn.FAIL: FAILED, Turn.CANCEL: CANCELLED}
    assert {
        QUEUED: {Turn.ADMIT: PREFILLING, **ends},
        PREFILLING: {Turn.SAMPLE: DECODING, Turn.PREEMPT: PREEMPTED, **ends},
        DECODING: {Turn.FORCE: PREFILLING, Turn.PREEMPT: PREEMPTED, **ends},
        PREEMPTED: {Turn.RESUME: PREFILLING, **ends},
        FINISHED: {},
        FAILED: {},
        CANCELLED: {},
    } == TRANSITIONS


def test_an_end_is_an_end() -> None:
    assert frozenset({FINISHED, FAILED, CANCELLED}) == ENDED
    for phase in ENDED:
        for turn in Turn:
            with pytest.raises(IllegalTransitionError):
                after(phase, turn)


def test_from_every_phase_an_end_can_be_reached() -> None:
    for phase in Phase:
        if phase not in ENDED:
            assert {after(phase, Turn.END), after(phase, Turn.FAIL), after(phase, Turn.CANCEL)} == ENDED


def test_an_illegal_turn_says_what_it_was() -> None:
    with pytest.raises(IllegalTransitionError, match="'resume' of a generation that is decoding") as caught:
        after(DECODING, Turn.RESUME)
    assert (caught.value.phase, caught.value.turn) == (DECODING, Turn.RESUME)
