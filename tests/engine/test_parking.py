"""Prompts that leave the context for main memory and come back."""

from __future__ import annotations

import pytest

from ktllama.engine.parking import MOST_PROMPTS, Parked, ParkingLot
from tests.engine.driver import Driver, alone, ask
from tests.engine.fake_executor import FakeOptions, SavedFakes

OPTIONS = FakeOptions(n_ctx=400, n_ubatch=16, n_parallel=4, n_sequences=8, parking_bytes=1000)
PREFIX = "a prefix of more than thirty-two tokens that many share: "


def parked(text: str) -> Parked:
    tokens = list(text.encode())
    return Parked(tokens, SavedFakes([(token, 0) for token in tokens]))


def park(lot: ParkingLot, prompt: Parked) -> None:
    if lot.make_room(prompt.tokens, prompt.cells.n_bytes):
        lot.park(prompt)


def found(lot: ParkingLot, text: str, limit: int = 1000) -> tuple[str | None, int]:
    known, n_tokens = lot.find(list(text.encode()), limit)
    return None if known is None else bytes(known.tokens).decode(), n_tokens


def emptied(driver: Driver) -> None:
    while driver.engine.tidy():
        driver.check()


def test_the_longest_beginning_is_found_up_to_the_limit() -> None:
    lot = ParkingLot(1000)
    for text in ("hello world", "hello there"):
        park(lot, parked(text))
    assert found(lot, "hello them") == ("hello there", 9)
    assert found(lot, "hello world and more") == ("hello world", 11)
    assert found(lot, "hello world and more", limit=4) == ("hello world", 4)
    assert found(lot, "nothing") == (None, 0)


def test_what_goes_on_from_a_parked_prompt_takes_its_place() -> None:
    lot = ParkingLot(1000)
    park(lot, parked("one turn"))
    assert lot.wants(list(b"one turn and another"))
    park(lot, parked("one turn and another"))
    assert (len(lot), lot.n_bytes) == (1, 20)
    assert not lot.wants(list(b"one turn"))
    assert not lot.wants(list(b"one turn and another"))


def test_a_prompt_that_is_here_but_for_its_end_is_not_wanted() -> None:
    lot = ParkingLot(10_000)
    park(lot, parked("x" * 800 + "first"))
    assert not lot.wants(list(b"x" * 800 + b"y" * 99))
    assert lot.wants(list(b"x" * 800 + b"y" * 130))


def test_the_least_recently_used_make_room_and_what_is_too_large_stays_out() -> None:
    lot = ParkingLot(20)
    first, second = parked("1234567890"), parked("abcdefghij")
    park(lot, first)
    park(lot, second)
    lot.use(first)
    park(lot, parked("ABCDE"))
    assert (found(lot, "1"), found(lot, "a"), found(lot, "A")) == (("1234567890", 1), (None, 0), ("ABCDE", 1))
    park(lot, parked("ABCDE" + "-" * 16))
    assert (len(lot), lot.n_bytes, lot.evictions) == (2, 15, 1)


def test_so_many_prompts_are_kept_at_most_that_comparing_them_costs_little() -> None:
    lot = ParkingLot(1_000_000)
    for number in range(MOST_PROMPTS + 1):
        park(lot, parked(f"{number:04}"))
    assert (len(lot), lot.n_bytes, lot.evictions) == (MOST_PROMPTS, 4 * MOST_PROMPTS, 1)
    assert found(lot, "0000") == ("0001", 3)


def test_a_parked_prompt_leaves_the_cells_and_comes_back_as_computed() -> None:
    request = ask("first", PREFIX + "one", max_tokens=20)
    driver = Driver(OPTIONS)
    driver.submit(request)
    driver.run()
    emptied(driver)
    stats = driver.engine.stats()
    assert (driver.fake.used_cells(), stats.cells_cached, stats.sequences_cached) == (0, 0, 1)
    assert stats.parked_bytes == driver.engine.cache.lot.n_bytes > len(PREFIX)
    again = driver.submit(ask("second", PREFIX + "two", max_tokens=20))
    driver.run()
    assert again.finished.usage.cached_tokens == len(PREFIX)
    assert again.content == alone(ask("second", PREFIX + "two", max_tokens=20), OPTIONS).content


def test_many_that_come_together_share_what_one_brought_back() -> None:
    driver = Driver(OPTIONS)
    driver.submit(ask("first", PREFIX, max_tokens=4))
    driver.run()
    emptied(driver)
    computed = driver.engine.stats().prompt_tokens
    answers = [driver.submit(ask(f"r{i}", f"{PREFIX}{i}", max_tokens=4)) for i in range(4)]
    driver.step()
    assert driver.fake.used_cells() == len(PREFIX) + 4
    driver.run()
    assert [answer.finished.usage.cached_tokens for answer in answers] == [len(PREFIX)] * 4
    assert driver.engine.stats().prompt_tokens - computed == 4


def test_a_parked_prompt_that_cannot_come_back_displaces_nothing() -> None:
    driver = Driver(FakeOptions(n_ctx=160, n_ubatch=16, n_parallel=4, n_sequences=8, parking_bytes=1000))
    driver.submit(ask("first", PREFIX + "y" * 40, max_tokens=4))
    driver.run()
    emptied(driver)
    driver.submit(ask("long", "o" * 66, max_tokens=30))
    while driver.engine.cache.n_held < 66:
        driver.step()
    driver.submit(ask("cached", PREFIX[:20] + "c", max_tokens=1))
    while "cached" in driver.engine.generations:
        driver.step()
    again = driver.submit(ask("second", PREFIX[:35], max_tokens=4))
    driver.run()
    assert again.finished.usage.cached_tokens == 20
    assert driver.engine.stats().evictions == 0


def test_copies_never_take_more_than_the_lot_has() -> None:
    driver = Driver(FakeOptions(n_ctx=400, n_ubatch=16, n_parallel=4, n_sequences=8, parking_bytes=60))
    save, lot, most = driver.fake.save, driver.engine.cache.lot, []

    def counted(sequence: int) -> SavedFakes:
        saved = save(sequence)
        most.append(lot.n_bytes + saved.n_bytes)
        return saved

    driver.fake.save = counted  # type: ignore[method-assign]
    for letter in "abcd":
        driver.submit(ask(letter, letter * 40, max_tokens=4))
        driver.run()
        emptied(driver)
    assert len(most) == 4
    assert max(most) <= 60


def test_a_copy_that_fails_costs_the_cached_sequence_alone() -> None:
    driver = Driver(OPTIONS)
    driver.submit(ask("first", PREFIX, max_tokens=4))
    driver.run()
    driver.fake.fail_next = "no save"
    emptied(driver)
    stats = driver.engine.stats()
    assert (driver.fake.used_cells(), stats.sequences_cached, stats.parked_bytes) == (0, 0, 0)


@pytest.mark.parametrize("why", ["no restore", "a full context"])
def test_where_there_is_no_room_to_come_back_the_prompt_is_computed(why: str) -> None:
    driver = Driver(FakeOptions(n_ctx=100, n_ubatch=16, n_parallel=4, n_sequences=8, parking_bytes=1000))
    driver.submit(ask("first", PREFIX, max_tokens=30))
    driver.run()
    emptied(driver)
    if why == "no restore":
        driver.fake.fail_next = "no restore"
    else:
        driver.submit(ask("other", "o" * 30, max_tokens=4))
        driver.step()
    again = driver.submit(ask("second", PREFIX + "x", max_tokens=4))
    driver.run()
    assert again.finished.usage.cached_tokens == 0
    assert again.content == alone(ask("second", PREFIX + "x", max_tokens=4), OPTIONS).content


def test_nothing_is_parked_where_there_is_no_room_for_it_or_nothing_may_be_shared() -> None:
    for options in (FakeOptions(), FakeOptions(parking_bytes=1000, can_share_prefix=False)):
        driver = Driver(options)
        driver.submit(ask("first", PREFIX, max_tokens=4))
        driver.run()
        assert not driver.engine.tidy()


def test_little_is_brought_back_only_where_little_is_copied_for_it() -> None:
    assert parked("x" * 100).least_gain == 8
    assert parked("x" * 6400).least_gain == 100
    lot = ParkingLot(1000)
    for text in ("the same, and much more", "the same!"):
        park(lot, parked(text))
    assert found(lot, "the same") == ("the same!", 8)
