from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktllama.r1.repetition import RepetitionGuard


def fires_at(tokens: list[int]) -> tuple[int, int] | None:
    """After how many tokens the guard fires, and the length of the cycle."""
    guard = RepetitionGuard()
    for index, token in enumerate(tokens):
        if guard.feed(token):
            return index + 1, guard.cycle_tokens
    return None


def noise(n_tokens: int, seed: int = 1) -> list[int]:
    return [random.Random(seed + index).randrange(100_000) for index in range(n_tokens)]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([5] * 5000, (1025, 1)),
        ([5, 6] * 5000, (1026, 2)),
        (noise(100) + [5] * 5000, (1125, 1)),
        (([5] * 24 + [6]) * 200, (1049, 25)),
        (noise(200) * 20, (1800, 200)),
        (noise(2048) * 12, (9 * 2048, 2048)),
    ],
)
def test_a_cycle_without_end_is_stopped(tokens: list[int], expected: tuple[int, int]) -> None:
    assert fires_at(tokens) == expected


@pytest.mark.parametrize(
    "tokens",
    [
        noise(20_000),
        [random.Random(1).randrange(4)] * 1000,
        [5, 6] * 500,
        noise(200) * 8,
        noise(2049) * 20,
        [token for row in range(500) for token in (1, 2, 1000 + row, 3, 4, 5, 6, 7, 8, 9)],
        ([5] * 1000 + [6]) + ([5] * 1000 + [7]),
    ],
    ids=["noise", "one token", "zeros", "boilerplate", "longer than is remembered", "table", "runs"],
)
def test_repetition_that_may_be_meant_passes(tokens: list[int]) -> None:
    assert fires_at(tokens) is None


def test_the_guard_forgets_what_is_too_far_back() -> None:
    guard = RepetitionGuard(max_cycle_tokens=64)
    for token in noise(10_000):
        guard.feed(token)
    assert len(guard._tokens) <= 2 * (64 + 16)


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 2), min_size=1, max_size=20),
)
def test_it_fires_as_soon_as_the_last_tokens_repeat_often_enough(before: list[int], cycle: list[int]) -> None:
    guard = RepetitionGuard(min_tokens=64, min_cycles=2, max_cycle_tokens=24)
    tokens: list[int] = []
    for token in [*before, *cycle * 200]:
        tokens.append(token)
        fired = guard.feed(token)
        enough = [length for length in range(1, 25) if _repeated(tokens, length) >= 64]
        assert fired == bool(enough)
        if fired:
            assert guard.cycle_tokens in enough
            return


def _repeated(tokens: list[int], cycle: int) -> int:
    count = 0
    while count + cycle < len(tokens) and tokens[-1 - count] == tokens[-1 - count - cycle]:
        count += 1
    return count
