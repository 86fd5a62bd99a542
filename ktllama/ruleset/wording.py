"""How foreign text appears in messages: control characters escaped, long text cut, values named in YAML's terms."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN_CHARACTERS = 120
_SUGGESTED_CHARACTERS = 60


def printable(text: str) -> str:
    """``text`` with everything escaped that could move a terminal's cursor or colour it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def harmless(line: str) -> str:
    """``line`` made printable, and no command to GitHub Actions, whose runner obeys lines that begin with ``::``."""
    made = printable(line)
    return made.replace("::", r"\x3a:", 1) if made.lstrip().startswith("::") else made


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """``text`` made printable, and cut to about ``limit`` characters."""
    head = printable(text[: limit + 1])
    return head if len(head) <= limit and len(text) <= limit else f"{head[: limit - 3]}..."


def described_value(value: object) -> str:
    """What a YAML scalar's value is, for "expected a string, found ..."."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, str):
        return f"the text '{shown(value)}'"
    if isinstance(value, int):
        return f"the number {shown(str(value))}"
    if isinstance(value, float):
        return f"the number {value}"
    return f"a {type(value).__name__}"


def closest(word: object, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, if any is."""
    if not isinstance(word, str) or len(word) > _SUGGESTED_CHARACTERS:
        return None
    by_folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.7)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``"; did you mean 'name'?"``, or nothing."""
    suggestion = closest(word, known)
    return f"; did you mean '{suggestion}'?" if suggestion else ""
