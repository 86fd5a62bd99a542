"""Findings about a rule file or a plan: a stable code, a severity, a place, and a message that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Position:
    """A place in a text file; ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding. ``position`` is None where no line of the rule file is to blame.

    ``excerpt`` holds the text shown below the message, such as the source line and a caret.
    """

    code: str
    severity: Severity
    message: str
    position: Position | None = None
    excerpt: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = "" if self.position is None else f"{self.position}: "
        head = f"{where}{self.severity}: {self.message} [{self.code}]"
        return "\n".join([head, *(f"    {line}" for line in self.excerpt)])


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeInfo:
    """What a diagnostic code means, for ``docs/diagnostics.md`` and ``ktllama lint --explain``."""

    severity: Severity
    meaning: str
    remedy: str


def worst(diagnostics: tuple[Diagnostic, ...]) -> Severity | None:
    """The highest severity among ``diagnostics``, or None when there are none."""
    present = {found.severity for found in diagnostics}
    return next((severity for severity in SEVERITIES if severity in present), None)


def in_order(diagnostics: tuple[Diagnostic, ...]) -> tuple[Diagnostic, ...]:
    """Sort by place in the file (findings without a place last), keeping the order of equals."""

    def key(found: Diagnostic) -> tuple[bool, str, int, int]:
        at = found.position
        return (at is None, at.file if at else "", at.line if at else 0, at.column if at else 0)

    return tuple(sorted(diagnostics, key=key))
