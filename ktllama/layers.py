"""Layer numbers as people write them: ``0-2, 7``."""

from __future__ import annotations

from collections.abc import Iterable


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Maximal runs of consecutive numbers, as (first, last) pairs in ascending order."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def layer_ranges(numbers: Iterable[int]) -> str:
    """``{0, 1, 2, 7}`` → ``0-2, 7``."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs(numbers))
