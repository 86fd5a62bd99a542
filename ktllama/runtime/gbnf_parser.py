"""Reads GBNF into rules, as llama.cpp's parser does, and refuses what that one would misread."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ktllama.engine.executor import GrammarError

_MAX_DEPTH = 100
_MAX_ELEMENTS = 50_000
_MAX_RULES = 5_000
_MAX_REPETITIONS = 2_000  # MAX_REPETITION_THRESHOLD
_MAX_RANGES = 512  # of one class
_RANGES_A_WAY = 4  # llama.cpp compares so many in the time that a state takes beside its ranges

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_TOKEN = re.compile(r"(!?)<(?:\[[0-9]{1,9}\]|[^>\[][^>]*)>")
_BRACES = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(,?)[ \t]*([0-9]{1,9})?[ \t]*\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class Characters:
    """One character: within ``ranges``, or outside them where ``inverted``.

    The ranges are in order and apart. ``ways`` is what it costs llama.cpp, which compares a token with each range as it
    was written: as much as so many literal characters.
    """

    ranges: tuple[tuple[int, int], ...]
    inverted: bool = False
    ways: int = 1

    def matches(self, character: int) -> bool:
        """Whether ``character`` is one of them."""
        index = bisect_right(self.ranges, character, key=lambda each: each[0])
        return (index > 0 and character <= self.ranges[index - 1][1]) != self.inverted


@dataclass(frozen=True, slots=True)
class TokenElement:
    """One token of the model, by its name or id as it is written; where ``inverted`` any other."""

    written: str
    inverted: bool = False
    ways: int = 1

    def matches(self, written: str) -> bool:
        """Whether the token that is so written is one of them."""
        return (written == self.written) != self.inverted


Symbol: TypeAlias = Characters | TokenElement | int  # a rule by its number
Sequence: TypeAlias = tuple[Symbol, ...]
Rules: TypeAlias = list[tuple[Sequence, ...]]  # a rule's alternatives

ANY = Characters((), inverted=True)


class Parser:
    """The rules, with groups and repetitions made into rules of their own as llama.cpp makes them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.bodies: list[tuple[Sequence, ...] | None] = []
        self.n_elements = 0

    def parse(self) -> None:
        """Read all of the text."""
        self._skip(_SPACE_AND_LINES)
        while self.position < len(self.text):
            self._rule()

    def finished_rules(self) -> Rules:
        """The rules by their number. Raises a GrammarError for one that is used and not defined."""
        rules = []
        for name, body in zip(self.names, self.bodies, strict=True):
            if body is None:
                raise GrammarError(f"the grammar uses the rule {name}, which it does not define")
            rules.append(body)
        return rules

    def _rule(self) -> None:
        number = self._number(self._match(_NAME, "a rule's name")[0])
        self._skip(_SPACE)
        if not self.text.startswith("::=", self.position):
            raise self._error("expected ::=")
        if self.bodies[number] is not None:
            raise self._error(f"the rule {self.names[number]} is defined twice")
        self.position += 3
        self._skip(_SPACE_AND_LINES)
        self.bodies[number] = self._alternatives(_SPACE, 0)
        if self.position < len(self.text) and self.text[self.position] not in "\r\n":
            raise self._error("expected the end of the line")
        self._skip(_SPACE_AND_LINES)

    def _alternatives(self, space: re.Pattern[str], depth: int) -> tuple[Sequence, ...]:
        if depth > _MAX_DEPTH:
            raise self._error(f"parentheses nest more than {_MAX_DEPTH} deep")
        found = [self._sequence(space, depth)]
        while self.text[self.position : self.position + 1] == "|":
            self.position += 1
            self._skip(_SPACE_AND_LINES)
            found.append(self._sequence(space, depth))
        return tuple(found)

    def _sequence(self, space: re.Pattern[str], depth: int) -> Sequence:
        done: list[Symbol] = []
        item: list[Symbol] = []  # what a repetition sign would repeat
        n_repeated = 1
        while self.position < len(self.text):
            if self.text[self.position] in "*+?{":
                if not item:
                    raise self._error("there is nothing to repeat before this place")
                bounds = self._repetition()
                n_repeated *= max(1, bounds[1] or bounds[0])
                if n_repeated > _MAX_REPETITIONS:
                    raise self._error(f"repetitions multiply to more than {_MAX_REPETITIONS}")
                item = self._repeated(item, *bounds)
            else:
                following = self._item(depth)
                if following is None:
                    break
                done += item
                item, n_repeated = following, 1
            self._count(len(item))
            self._skip(space)
        return tuple(done + item)

    def _item(self, depth: int) -> list[Symbol] | None:
        first = self.text[self.position]
        if first == '"':
            return list(self._literal())
        if first == "[":
            return [self._class()]
        if first == ".":
            self.position += 1
            return [ANY]
        if first in "<!":
            found = self._match(_TOKEN, "a token such as <|name|> or <[123]>")
            return [TokenElement(found[0].removeprefix("!"), bool(found[1]))]
        if first == "(":
            self.position += 1
            self._skip(_SPACE_AND_LINES)
            body = self._alternatives(_SPACE_AND_LINES, depth + 1)
            if self.text[self.position : self.position + 1] != ")":
                raise self._error("expected )")
            self.position += 1
            return [self._new_rule(body)]
        if named := _NAME.match(self.text, self.position):
            self.position = named.end()
            return [self._number(named[0])]
        return None

    def _literal(self) -> Iterator[Symbol]:
        self.position += 1
        while self.text[self.position : self.position + 1] != '"':
            character = self._character()
            yield Characters(((character, character),))
        self.position += 1

    def _class(self) -> Characters:
        self.position += 1
        inverted = self.text[self.position : self.position + 1] == "^"
        self.position += inverted
        ranges = []
        while self.text[self.position : self.position + 1] != "]":
            low = high = self._character()
            if self.text[self.position : self.position + 1] == "-" and self.text[self.position + 1 :][:1] != "]":
                self.position += 1
                high = self._character()
            ranges.append((low, high))
        self.position += 1
        if not ranges:
            raise self._error("a class of characters is empty")
        if len(ranges) > _MAX_RANGES:
            raise self._error(f"a class of characters has more than {_MAX_RANGES} ranges")
        self._count(len(ranges))
        return Characters(tuple(merged_ranges(ranges)), inverted, 1 + len(ranges) // _RANGES_A_WAY)

    def _character(self) -> int:
        if self.position >= len(self.text):
            raise self._error("the grammar ends within quotes or brackets")
        character = self.text[self.position]
        self.position += 1
        if character != "\\":
            return ord(character)
        escape = self.text[self.position : self.position + 1]
        self.position += 1
        if escape in _HEX_DIGITS:
            digits = self.text[self.position : self.position + _HEX_DIGITS[escape]]
            self.position += len(digits)
            if re.fullmatch(r"[0-9a-fA-F]+", digits) and len(digits) == _HEX_DIGITS[escape]:
                return int(digits, 16)
        elif escape in _ESCAPES:
            return ord(_ESCAPES[escape])
        raise self._error(f"unknown escape \\{escape}")

    def _repetition(self) -> tuple[int, int | None]:
        sign = self.text[self.position]
        if sign != "{":
            self.position += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        least, comma, most = self._match(_BRACES, "a repetition such as {2} or {1,3}").groups()
        low = int(least)
        high = int(most) if most else None if comma else low
        if low > _MAX_REPETITIONS or (high or 0) > _MAX_REPETITIONS:
            raise self._error(f"more than {_MAX_REPETITIONS} repetitions")
        if high is not None and high < low:
            raise self._error(f"{{{low},{high}}} ends before it begins")
        return low, high

    def _repeated(self, item: list[Symbol], low: int, high: int | None) -> list[Symbol]:
        self._count(len(item) * max(low, high or 0))
        made = item * low
        if high is None:
            number = self._new_rule(())
            self.bodies[number] = ((*item, number), ())
            return [*made, number]
        rest: list[Symbol] = []
        for _ in range(high - low):
            rest = [self._new_rule(((*item, *rest), ()))]
        return made + rest

    def _number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = self._append(name, None)
        return self.numbers[name]

    def _new_rule(self, body: tuple[Sequence, ...]) -> int:
        return self._append("", body)

    def _append(self, name: str, body: tuple[Sequence, ...] | None) -> int:
        if len(self.bodies) >= _MAX_RULES:
            raise GrammarError(f"the grammar needs more than {_MAX_RULES} rules")
        self.bodies.append(body)
        self.names.append(name)
        return len(self.bodies) - 1

    def _count(self, n_elements: int) -> None:
        self.n_elements += n_elements
        if self.n_elements > _MAX_ELEMENTS:
            raise GrammarError(f"the grammar needs more than {_MAX_ELEMENTS} elements")

    def _skip(self, space: re.Pattern[str]) -> None:
        found = space.match(self.text, self.position)
        assert found is not None
        self.position = found.end()

    def _match(self, pattern: re.Pattern[str], wanted: str) -> re.Match[str]:
        found = pattern.match(self.text, self.position)
        if found is None:
            raise self._error(f"expected {wanted}")
        self.position = found.end()
        return found

    def _error(self, reason: str) -> GrammarError:
        line = self.text.count("\n", 0, self.position) + 1
        column = self.position - (self.text.rfind("\n", 0, self.position) + 1) + 1
        return GrammarError(f"grammar, line {line}, column {column}: {reason}")


def merged_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same characters as ranges in order that do not touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(each for each in ranges if each[0] <= each[1]):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
