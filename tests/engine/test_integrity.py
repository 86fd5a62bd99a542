"""The integrity check sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ktllama.engine import integrity
from ktllama.engine.lifecycle import Phase
from tests.engine.driver import Driver, ask
from tests.engine.fake_executor import FakeOptions


def busy() -> Driver:
    """Two requests that share a prefix and decode, one that waits, one that is cached."""
    driver = Driver(FakeOptions(n_parallel=2, end_chance=0))
    driver.submit(ask("gone", "cached text", max_tokens=3))
    driver.run()
    for i in range(3):
        driver.submit(ask(f"r{i}", "the very same beginning of a prompt, " + str(i), max_tokens=20))
    for _ in range(4):
        driver.step()
    return driver


def lose_a_cell(driver: Driver) -> None:
    driver.fake.remove(driver.engine.scheduler.running[1].sequence, 38)


def count_wrong(driver: Driver) -> None:
    driver.engine.cache.n_used += 1


def hold_wrong(driver: Driver) -> None:
    driver.engine.cache.n_held -= 1


def forget_a_holder(driver: Driver) -> None:
    driver.engine.cache.root.children[-1].n_holders -= 1


def lose_a_sequence(driver: Driver) -> None:
    driver.engine.cache.free.pop()


def forget_an_end(driver: Driver) -> None:
    node = driver.engine.cache.ends[driver.engine.scheduler.running[0].sequence]
    node.ends.clear()


def break_the_path(driver: Driver) -> None:
    driver.engine.cache.root.children[-1].end -= 1


def compute_too_much(driver: Driver) -> None:
    driver.engine.scheduler.running[0].n_computed -= 1


def forget_a_request(driver: Driver) -> None:
    del driver.engine.generations["r2"]


def queue_what_runs(driver: Driver) -> None:
    driver.engine.scheduler.queue[0].phase = Phase.DECODING


def end_what_runs(driver: Driver) -> None:
    driver.engine.scheduler.running[0].phase = Phase.FINISHED


def change_a_token(driver: Driver) -> None:
    running = driver.engine.scheduler.running
    driver.engine.cache.running[running[1].sequence][0] += 1


@pytest.mark.parametrize(
    ("corrupt", "says"),
    [
        (lose_a_cell, "the executor uses"),
        (count_wrong, "the books say"),
        (hold_wrong, "the books say"),
        (forget_a_holder, "holders"),
        (lose_a_sequence, "sequences free"),
        (forget_an_end, "that does not know it"),
        (break_the_path, "does not continue its parent"),
        (compute_too_much, "has computed"),
        (forget_a_request, "are not those that are queued or running"),
        (queue_what_runs, "is queued and decoding"),
        (end_what_runs, "is running and finished"),
        (change_a_token, "other tokens"),
    ],
)
def test_what_is_wrong_is_found(corrupt: Callable[[Driver], None], says: str) -> None:
    driver = busy()
    integrity.check(driver.engine, deep=True)
    corrupt(driver)
    with pytest.raises(integrity.IntegrityError, match=says):
        integrity.check(driver.engine, deep=True)
