"""Sizes and numbers as people read them."""

from __future__ import annotations

import pytest

from ktllama.units import counted, format_bytes, format_number, parse_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.2475, "7.25"), (0.01234, "0.0123"), (99.96, "100"), (100.4, "100"), (1047.9, "1048"), (6691297.3, "6691297")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert format_number(value) == text


def test_only_one_of_a_thing_is_singular() -> None:
    assert [counted(count, "thread") for count in (0, 1, 2, 1086)] == [
        "0 threads",
        "1 thread",
        "2 threads",
        "1086 threads",
    ]
    assert [counted(count, "mismatch", "mismatches") for count in (1, 2)] == ["1 mismatch", "2 mismatches"]


def test_sizes_are_binary_and_read_as_they_are_written() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1536, 999 << 20, 24 << 30)] == [
        "0 B",
        "1 KiB",
        "1.5 KiB",
        "999 MiB",
        "24 GiB",
    ]
    assert parse_bytes("24G") == parse_bytes("24 GiB") == 24 << 30
