"""The collector of what a file's reading finds: every mistake at once, each once, and never too many."""

from __future__ import annotations

from ktllama.codes import RULESET_CODES
from ktllama.diagnostics import Diagnostic, Position, in_order

#: Errors, and findings of the other severities, that are kept; a hostile file could make millions.
MAX_KEPT = 1000

Place = tuple[int, int]


class Findings:
    """Collects diagnostics of one file. ``errors`` counts all errors, also repeated and dropped ones."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.errors = 0
        self._dropped = 0
        self._kept: dict[tuple[str, Place | None, str], Diagnostic] = {}
        self._room = {True: MAX_KEPT, False: MAX_KEPT}

    def position(self, place: Place) -> Position:
        """The position of a (line, column) in this file."""
        return Position(file=self.file, line=place[0], column=place[1])

    def add(self, code: str, message: str, place: Place | None, excerpt: tuple[str, ...] = ()) -> None:
        """Record a finding; an alias makes the same one appear again at the same place, which is kept once."""
        severity = RULESET_CODES[code].severity
        is_error = severity == "error"
        self.errors += is_error
        key = (code, place, message)
        if key in self._kept:
            return
        if not self._room[is_error]:
            self._dropped += 1
            return
        self._room[is_error] -= 1
        position = None if place is None else self.position(place)
        self._kept[key] = Diagnostic(code=code, severity=severity, message=message, position=position, excerpt=excerpt)

    def takes_more(self) -> bool:
        """Whether a warning or note is still kept. Asked before an expensive text is made; a refusal counts it."""
        self._dropped += not self._room[False]
        return bool(self._room[False])

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All findings in the order of the file."""
        found = in_order(tuple(self._kept.values()))
        if not self._dropped:
            return found
        message = f"{self._dropped} further findings are not shown; repair the first ones and look again"
        return (*found, Diagnostic(code="too-many-findings", severity="note", message=message))
