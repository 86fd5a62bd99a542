"""Sizes and counts as people write and read them."""

from __future__ import annotations

import re

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def format_bytes(n_bytes: int) -> str:
    """``1536`` → ``1.5 KiB``; three significant digits at most."""
    value, unit = float(n_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 else max(0, 2 - (value >= 10) - (value >= 100))
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {_UNITS[unit]}"


def size_word(n_bytes: int) -> str:
    """``25769803776`` → ``24G``: exactly these bytes, as :func:`parse_bytes` reads them."""
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if n_bytes and n_bytes % 1024**power == 0:
            return f"{n_bytes // 1024**power}{letter}"
    return str(n_bytes)


def format_number(value: float) -> str:
    """``7.2475`` → ``7.25``, ``1047.9`` → ``1048``: three significant digits, and never an exponent below 10¹⁵."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1, "token"`` → ``1 token``, ``0, "token"`` → ``0 tokens``; ``plural`` is for nouns that do not take an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or f'{noun}s'}"


def parse_bytes(text: str) -> int:
    """``24G`` → 24 × 2³⁰; ``K``, ``M``, ``G``, ``T`` are binary, as llama.cpp's are.

    Raises:
        ValueError: for anything that is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    return int(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2).upper() or " "))
