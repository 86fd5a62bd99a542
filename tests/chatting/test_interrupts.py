"""When Ctrl-C is raised."""

from __future__ import annotations

import signal

import pytest

from ktllama.chatting.interrupts import Interrupts


def interrupted(steps: list[str]) -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    steps.append("went on")


def test_it_is_raised_at_once_where_nothing_is_drawn() -> None:
    steps: list[str] = []
    with Interrupts().caught(), pytest.raises(KeyboardInterrupt):
        interrupted(steps)
    assert steps == []


def test_it_waits_for_what_is_drawn_and_comes_once() -> None:
    interrupts, steps = Interrupts(), list[str]()

    def draw() -> None:
        with interrupts.held():
            interrupted(steps)

    with interrupts.caught():
        with pytest.raises(KeyboardInterrupt):
            draw()
        with interrupts.held():
            steps.append("and again")
    assert steps == ["went on", "and again"]


def test_the_handler_that_was_there_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts().caught():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
