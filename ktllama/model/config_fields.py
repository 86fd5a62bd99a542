"""Typed reading of a ``config.json``, which anybody may have written: every mistake is kept, and told at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeVar

from ktllama.errors import ModelFileError
from ktllama.model.wording import quoted

_T = TypeVar("_T")


def parse(content: bytes, path: str) -> Mapping[str, object]:
    """The object in a JSON text.

    Raises:
        ModelFileError: for anything else.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ModelFileError(path, "is not UTF-8; expected a config.json", offset=error.start) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ModelFileError(path, f"is not JSON: {error.msg.lower()} in {where}") from error
    except (ValueError, RecursionError) as error:  # too many digits or brackets, NaN
        raise ModelFileError(path, "is not JSON that can be read: a number or its nesting is beyond bounds") from error
    if not isinstance(value, dict):
        raise ModelFileError(path, "is not a JSON object; expected a config.json")
    return value


def _no_number(text: str) -> float:
    raise ValueError(text)


class Fields:
    """The keys of a config. Getters return something usable in any case; :meth:`check` raises what was wrong.

    ``section`` is what to write before a key in a message. A default stands in for a missing key and for null.
    """

    def __init__(self, values: Mapping[str, object], path: str, section: str = "") -> None:
        self._values = values
        self._path = path
        self._section = section
        self.problems: list[str] = []

    def check(self, what: str) -> None:
        """Raise all that was found wrong with ``what``."""
        if self.problems:
            raise ModelFileError(self._path, f"is no config of {what}: {'; '.join(self.problems)}")

    def problem(self, key: str, reason: str) -> None:
        """Note what is wrong with a key's value."""
        self.problems.append(f"'{self._section}{key}' {reason}")

    def disagreement(self, key: str, reason: str) -> None:
        """Note that a value does not go with others; where one of them may be made up, that was noted already."""
        if not self.problems:
            self.problem(key, reason)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def integer(self, key: str, most: int, *, least: int = 1, default: int | None = None) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self._value(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        return self._wrong(key, value, f"a whole number from {least:,} to {most:,}", least)

    def number(self, key: str, most: float, *, default: float | None = None) -> float:
        """A number above 0."""
        value = self._value(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most:
            return float(value)
        return self._wrong(key, value, f"a number above 0, at most {most:g}", 1.0)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false", default)

    def word(self, key: str, known: tuple[str, ...], *, default: str) -> str:
        """One of some words."""
        value = self._value(key, default)
        if isinstance(value, str) and value in known:
            return value
        return self._wrong(key, value, " or ".join(quoted(word) for word in known), default)

    def only(self, key: str, *usual: object) -> None:
        """Refuse what would make tensors that are not known here."""
        if self.has(key) and self._values[key] not in usual:
            self.problem(key, f"is {_shown(self._values[key])}; only {_shown(usual[0])} is supported")

    def section(self, key: str) -> Fields:
        """The keys of an object within, which share the list of problems; none of it where it is missing."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            self._wrong(key, value, "an object", None)
            value = {}
        within = Fields(value, self._path, f"{self._section}{key}.")
        within.problems = self.problems
        return within

    def _value(self, key: str, default: object) -> object:
        return self._values[key] if self.has(key) else default

    def _wrong(self, key: str, value: object, expected: str, usable: _T) -> _T:
        said = "is missing" if value is None else f"is {_shown(value)}"
        self.problem(key, f"{said}, expected {expected}")
        return usable


def _shown(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | dict):
        return ("a list" if isinstance(value, list) else "an object") if value else json.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    return json.dumps(value)
