"""Sets of numbers as regular expressions: readable decimal alternations, free of ``{``, ``}``, ``,`` and ``=``.

They are valid for Python's ``re`` and for C++'s ECMAScript grammar alike, and survive llama.cpp's ``-ot``, which splits
its argument at ``,`` and ``=`` (``common/arg.cpp``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number_range(first: int, last: int) -> str:
    """A pattern that fully matches ``first`` to ``last``, both included: ``(3, 60)`` → ``([3-9]|[1-5][0-9]|60)``.

    Raises:
        ValueError: for an empty range or a negative number.
    """
    return numbers_pattern(range(first, last + 1))


def numbers_pattern(numbers: Iterable[int]) -> str:
    """A pattern whose full match is any of ``numbers``, without leading zeros; in parentheses if it has alternatives.

    Raises:
        ValueError: when there are no numbers, or one is negative.
    """
    ordered = sorted(set(numbers))
    if not ordered:
        raise ValueError("no numbers")
    if ordered[0] < 0:
        raise ValueError(f"negative number {ordered[0]}")
    by_length: dict[int, list[str]] = {}
    for number in ordered:
        text = str(number)
        by_length.setdefault(len(text), []).append(text)
    found = [pattern for texts in by_length.values() for pattern in _alternatives(texts)]
    return found[0] if len(found) == 1 else f"({'|'.join(found)})"


def _alternatives(texts: Sequence[str]) -> list[str]:
    """Patterns for digit strings of one length, sorted by what they match first.

    Leading digits that are followed by the same set of endings share a character class.
    """
    if texts[0] == "":
        return [""]
    endings: dict[str, list[str]] = {}
    for text in texts:
        endings.setdefault(text[0], []).append(text[1:])
    heads: dict[tuple[str, ...], list[str]] = {}
    for digit, tails in endings.items():
        heads.setdefault(tuple(tails), []).append(digit)
    return [
        head + tail
        for tails, digits in heads.items()
        for head in _digit_classes(digits)
        for tail in _alternatives(tails)
    ]


def _digit_classes(digits: Sequence[str]) -> list[str]:
    """``["3"]`` → ``3``, ``["1", "2"]`` → ``[12]``, ``["3", "4", "5"]`` → ``[3-5]``.

    A range stands alone in its class: ``[1-57]`` would mean 1 to 5 and 7, and be read as 1 to 57.
    """
    runs: list[list[str]] = []
    for digit in digits:
        if runs and int(digit) == int(runs[-1][-1]) + 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    ranges = [run for run in runs if len(run) > 2]
    singles = [digit for run in runs if len(run) <= 2 for digit in run]
    classes = [f"[{run[0]}-{run[-1]}]" for run in ranges]
    if singles:
        classes.append(singles[0] if len(singles) == 1 else f"[{''.join(singles)}]")
    return sorted(classes, key=lambda written: written.strip("[")[0])
