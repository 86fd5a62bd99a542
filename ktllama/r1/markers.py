"""Where one of several fixed strings begins in text that is still growing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Match(NamedTuple):
    """``marker`` stands at ``start``, counted in characters."""

    start: int
    marker: str


def earliest(text: str, markers: Iterable[str]) -> Match | None:
    """The marker that is complete first, the longest of those that end together.

    Not the one that begins first: a reader of single characters would have seen the other before that one is
    complete, and chunks must make no difference.
    """
    found = [Match(start, marker) for marker in markers if (start := text.find(marker)) >= 0]
    return min(found, key=lambda match: (match.start + len(match.marker), match.start), default=None)


def held_back(text: str, markers: Iterable[str]) -> int:
    """How many of the last characters of ``text`` may be the beginning of a marker. None is complete in ``text``."""
    return max((_overlap(text, marker) for marker in markers), default=0)


def _overlap(text: str, marker: str) -> int:
    start = max(0, len(text) - len(marker) + 1)
    # The earliest place is the longest beginning; mostly the marker's first character is not there at all.
    while (start := text.find(marker[0], start)) >= 0:
        if marker.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


def common_beginning(first: str, second: str) -> str:
    """What two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    length = next((place for place, (one, two) in pairs if one != two), min(len(first), len(second)))
    return first[:length]
