"""A JSON object read character by character, so that what was read is always the beginning of a valid one."""

from __future__ import annotations

import re
from typing import Literal

_NUMBER_PREFIX = re.compile(r"-?(?:0|[1-9][0-9]*)?(?:(?<=[0-9])\.[0-9]*)?(?:(?<=[0-9])[eE][+-]?[0-9]*)?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = ("true", "false", "null")
_BLANKS = " \t\r\n"
#: Less than a prompt takes (`limits.MAX_DEPTH`, with the messages around it), so that every call can be sent back.
_MAX_DEPTH = 48

_Expected = Literal["value", "value or end", "key or end", "key", "colon", "comma or end", "nothing"]


class JsonReader:
    """Accepts one JSON object.

    Line breaks and other control characters inside strings, which models write and JSON forbids, are escaped.
    """

    def __init__(self) -> None:
        self._open: list[str] = []  # of "{" and "["
        self._expected: _Expected = "value"
        self._string: Literal["key", "value"] | None = None
        self._escape = ""  # from its backslash on
        self._scalar = ""  # a number or a word
        #: Whether the object is closed.
        self.complete = False

    @property
    def depth(self) -> int:
        """How many objects and lists are open."""
        return len(self._open)

    def feed(self, character: str) -> str | None:
        """What to write for one character; None where it cannot stand here, which ends the reading."""
        if self.complete:
            return None
        if self._string:
            return self._in_string(character)
        if self._scalar and character not in ",}]" and character not in _BLANKS:
            return self._in_scalar(self._scalar + character)
        if self._scalar and not self._ends_scalar():
            return None
        if character in _BLANKS:
            return character
        return character if self._structure(character) else None

    def _in_string(self, character: str) -> str | None:
        if self._escape:
            self._escape += character
            if self._escape[1] == "u":
                if len(self._escape) > 2 and character not in "0123456789abcdefABCDEF":
                    return None
                self._escape = "" if len(self._escape) == 6 else self._escape
                return character
            self._escape = ""
            return character if character in '"\\/bfnrt' else None
        if character == "\\":
            self._escape = character
        elif character == '"':
            self._expected = "colon" if self._string == "key" else "comma or end"
            self._string = None
        elif character < " ":
            return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\u{ord(character):04x}")
        return character

    def _in_scalar(self, scalar: str) -> str | None:
        if not _NUMBER_PREFIX.fullmatch(scalar) and not any(word.startswith(scalar) for word in _WORDS):
            return None
        self._scalar = scalar
        return scalar[-1]

    def _ends_scalar(self) -> bool:
        whole = self._scalar in _WORDS or _NUMBER.fullmatch(self._scalar) is not None
        self._scalar, self._expected = "", "comma or end"
        return whole

    def _structure(self, character: str) -> bool:
        """A character outside of strings and scalars; whether it may stand here."""
        expected = self._expected
        if character in "}]":
            return self._close(character)
        if character == ",":
            self._expected = "key" if self._open and self._open[-1] == "{" else "value"
            return expected == "comma or end"
        if character == ":":
            self._expected = "value"
            return expected == "colon"
        if character == '"' and expected in ("key", "key or end"):
            self._string = "key"
            return True
        return expected in ("value", "value or end") and self._value(character)

    def _value(self, character: str) -> bool:
        if not self._open and character != "{":
            return False
        if character in "{[":
            self._open.append(character)
            self._expected = "key or end" if character == "{" else "value or end"
            return len(self._open) <= _MAX_DEPTH
        if character == '"':
            self._string = "value"
            return True
        return self._in_scalar(character) is not None

    def _close(self, character: str) -> bool:
        kind, empty = ("{", "key or end") if character == "}" else ("[", "value or end")
        if not self._open or self._open[-1] != kind or self._expected not in (empty, "comma or end"):
            return False
        self._open.pop()
        self._expected = "comma or end" if self._open else "nothing"
        self.complete = not self._open
        return True
