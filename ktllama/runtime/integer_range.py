"""GBNF of the whole numbers within bounds, digit by digit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ktllama.engine.executor import GrammarError

_MOST_DIGITS = 18


def integers(bounds: Mapping[str, float], where: str) -> str:
    """A right-hand side for the integers that a schema's ``minimum``, ``exclusiveMaximum`` … allow.

    Raises:
        GrammarError: when there is none, or a bound is too large.
    """
    lows = [math.ceil(_finite(bounds["minimum"], where))] if "minimum" in bounds else []
    highs = [math.floor(_finite(bounds["maximum"], where))] if "maximum" in bounds else []
    if "exclusiveMinimum" in bounds:
        lows.append(math.floor(_finite(bounds["exclusiveMinimum"], where)) + 1)
    if "exclusiveMaximum" in bounds:
        highs.append(math.ceil(_finite(bounds["exclusiveMaximum"], where)) - 1)
    largest = 10**_MOST_DIGITS - 1
    low, high = max(lows, default=-largest), min(highs, default=largest)
    if low > high:
        raise GrammarError(f"the JSON schema at {where} has no integer within its bounds")
    return " | ".join(_signed(low, high))


def _finite(bound: float, where: str) -> float:
    if not abs(bound) < 10**_MOST_DIGITS:  # also refuses NaN
        raise GrammarError(f"the JSON schema at {where} has a bound of more than {_MOST_DIGITS} digits")
    return bound


def _signed(low: int, high: int) -> Iterator[str]:
    if low < 0:
        yield from (f'"-" {digits}' for digits in _unsigned(max(1, -high), -low))
    if high >= 0:
        yield from _unsigned(max(low, 0), high)


def _unsigned(low: int, high: int) -> Iterator[str]:
    """Numbers of one length each: from 5 to 120 are 5–9, 10–99 and 100–120."""
    n_digits = len(str(low))
    while low <= high:
        last = min(high, 10**n_digits - 1)
        yield _same_length(str(low), str(last))
        low, n_digits = last + 1, n_digits + 1


def _same_length(low: str, high: str) -> str:
    if not low:
        return '""'
    n_free = len(low)
    if low == high:
        return f'"{low}"'
    if low.strip("0") == "" and high.strip("9") == "":
        return f"[0-9]{{{n_free}}}"
    first, last = int(low[0]), int(high[0])
    if first == last:
        return f'"{first}" ({_same_length(low[1:], high[1:])})' if n_free > 1 else f'"{first}"'
    lowest, highest = "0" * (n_free - 1), "9" * (n_free - 1)
    parts = []
    if low[1:] != lowest:
        parts.append(f'"{first}" ({_same_length(low[1:], highest)})')
        first += 1
    upper = ""
    if high[1:] != highest:
        upper = f'"{last}" ({_same_length(lowest, high[1:])})'
        last -= 1
    if first <= last:
        digit = f"[{first}-{last}]" if first < last else f'"{first}"'
        parts.append(f"{digit} [0-9]{{{n_free - 1}}}" if n_free > 1 else digit)
    return "(" + " | ".join(filter(None, (*parts, upper))) + ")"
