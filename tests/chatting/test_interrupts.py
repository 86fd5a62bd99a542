"""When Ctrl-C is raised."""

from __future__ import annotations

import signal

import pytest

from ktllama.chatting.interrupts import Interrupts


def test_it_is_raised_at_once_where_nothing_is_drawn() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), Interrupts().caught():
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
    assert steps == []


def test_it_waits_for_what_is_drawn_and_comes_once() -> None:
    interrupts, steps = Interrupts(), []
    with interrupts.caught():
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            steps.append("drawn")
        with interrupts.held():
            steps.append("and again")
    assert steps == ["drawn", "and again"]


def test_the_handler_that_was_there_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts().caught():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
