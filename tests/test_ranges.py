from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.ranges import number_range, numbers_pattern


@pytest.mark.parametrize(
    ("first", "last", "pattern"),
    [
        (5, 5, "5"),
        (0, 9, "[0-9]"),
        (1, 2, "[12]"),
        (3, 60, "([3-9]|[1-5][0-9]|60)"),
        (0, 29, "([0-9]|[12][0-9])"),
        (4, 10, "([4-9]|10)"),
        (10, 20, "(1[0-9]|20)"),
        (15, 29, "(1[5-9]|2[0-9])"),
        (30, 60, "([3-5][0-9]|60)"),
        (30, 59, "[3-5][0-9]"),
        (0, 60, "([0-9]|[1-5][0-9]|60)"),
        (98, 112, "(9[89]|10[0-9]|11[0-2])"),
    ],
)
def test_a_range_is_the_alternation_one_would_write_by_hand(first: int, last: int, pattern: str) -> None:
    assert number_range(first, last) == pattern


@pytest.mark.parametrize(
    ("numbers", "pattern"),
    [
        ([1, 3, 5], "[135]"),
        ([1, 3, 4, 5, 9], "([19]|[3-5])"),
        ([3, 3, 3], "3"),
        ([10, 20, 30, 11, 21, 31], "[1-3][01]"),
        ([60, 3], "(3|60)"),
    ],
)
def test_a_set_shares_what_its_numbers_share(numbers: list[int], pattern: str) -> None:
    assert numbers_pattern(numbers) == pattern


@given(st.sets(st.integers(min_value=0, max_value=999), min_size=1))
@settings(deadline=None)
def test_a_pattern_matches_its_numbers_and_no_other(numbers: set[int]) -> None:
    pattern = numbers_pattern(numbers)
    assert {number for number in range(1000) if re.fullmatch(pattern, str(number))} == numbers
    assert not set(pattern) & set("{},=")


@given(st.integers(min_value=0, max_value=999), st.integers(min_value=0, max_value=999))
@settings(deadline=None)
def test_a_range_matches_its_numbers_and_no_other(one: int, other: int) -> None:
    first, last = sorted((one, other))
    compiled = re.compile(number_range(first, last))
    assert [number for number in range(1000) if compiled.fullmatch(str(number))] == list(range(first, last + 1))


@pytest.mark.parametrize(("first", "last"), [(5, 4), (-1, 3)])
def test_an_empty_or_negative_range_is_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError):
        number_range(first, last)
