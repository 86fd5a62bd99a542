"""Patterns of ``std::regex`` (ECMAScript) as patterns of Python's ``re`` that find the same.

llama.cpp compiles an override with ``std::regex`` and searches with ``std::regex_search``
(src/llama-model-loader.cpp). Most patterns mean the same to both; what would not is refused rather than guessed.
"""

from __future__ import annotations

import re

_CLASS_ESCAPES = frozenset("dDwWsSbB")
_CONTROL_ESCAPES = frozenset("tnrfv0")
_HEX_ESCAPES = {"x": 2, "u": 4}
_QUANTIFIER = re.compile(r"[*+?]|\{[0-9]+(?:,[0-9]*)?\}")


class PatternError(ValueError):
    """A pattern that ``std::regex`` refuses, or that means something else to Python."""


def translate(pattern: str) -> re.Pattern[str]:
    """``pattern`` as a Python pattern.

    Raises:
        PatternError: with what is wrong, for people.
    """
    translated = _Translator(pattern).run()
    try:
        return re.compile(translated, re.ASCII)
    except (re.error, OverflowError, RecursionError) as fault:
        raise PatternError(f"not a regular expression: {fault}") from fault


class _Translator:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.written: list[str] = []

    def run(self) -> str:
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            if character == "\\":
                self._escape()
            elif character == "[":
                self._character_class()
            elif character == "(":
                self._group()
            elif character in "*+?{":
                self._quantifier()
            elif character == "}":
                raise PatternError("a lone '}' is not portable; write \\}")
            else:
                self._copy(1)
        return "".join(self.written)

    def _copy(self, length: int) -> None:
        self.written.append(self.pattern[self.at : self.at + length])
        self.at += length

    def _escape(self) -> None:
        letter = self.pattern[self.at + 1 : self.at + 2]
        if not letter:
            raise PatternError("it ends with a lone backslash")
        if letter in _HEX_ESCAPES:
            digits = self.pattern[self.at + 2 : self.at + 2 + _HEX_ESCAPES[letter]]
            if len(digits) < _HEX_ESCAPES[letter] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise PatternError(f"\\{letter} needs {_HEX_ESCAPES[letter]} hexadecimal digits")
            self._copy(2 + _HEX_ESCAPES[letter])
        elif letter.isdigit() and letter != "0":
            raise PatternError(f"the back-reference \\{letter} means something else in Python; write the text out")
        elif letter.isalnum() and letter not in _CLASS_ESCAPES | _CONTROL_ESCAPES:
            raise PatternError(f"std::regex has no escape \\{letter}")
        else:
            self._copy(2)

    def _group(self) -> None:
        if self.pattern[self.at + 1 : self.at + 2] != "?":
            self._copy(1)
        elif self.pattern[self.at + 2 : self.at + 3] in (":", "!", "="):
            self._copy(3)
        elif self.at + 2 == len(self.pattern):
            raise PatternError(
                "it ends in '(?': -ot takes what stands before the first '=' as the pattern, so it cannot hold (?=…)"
            )
        else:
            group = self.pattern[self.at : self.at + 3]
            raise PatternError(f"std::regex has no group {group!r}; it has (…), (?:…) and (?!…)")

    def _quantifier(self) -> None:
        found = _QUANTIFIER.match(self.pattern, self.at)
        if found is None:
            raise PatternError("a '{' that begins no repeat such as {2}; write \\{")
        end = found.end()
        end += self.pattern[end : end + 1] == "?"
        if self.pattern[end : end + 1] == "+":
            raise PatternError("a '+' behind a repeat means something else in Python; put the repeat in parentheses")
        self._copy(end - self.at)

    def _character_class(self) -> None:
        start = self.at
        self._copy(2 if self.pattern[self.at + 1 : self.at + 2] == "^" else 1)
        if self.pattern[self.at : self.at + 1] == "]":
            raise PatternError("an empty class '[]' means something else in Python")
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            if character == "]":
                self._copy(1)
                return
            if character == "[":
                if self.pattern[self.at + 1 : self.at + 2] in (":", ".", "="):
                    raise PatternError(
                        f"the POSIX class in {self.pattern[start : start + 12]!r} means something else in Python; "
                        "write [0-9], [a-z] or the like"
                    )
                self.written.append("\\")
            if character == "\\":
                self._escape()
            elif character in "-&~|" and self.pattern[self.at + 1 : self.at + 2] == character:
                self.written.append("\\")
                self._copy(1)
            else:
                self._copy(1)
        raise PatternError("a '[' without its ']'")
