"""Reads GBNF and refuses what llama.cpp would abort, hang or run out of memory on.

llama.cpp's parser (``src/llama-grammar.cpp`` of llama-cpp-python 0.3.36) trusts its input: ``"a"{5,2}`` loops for ever,
deep parentheses overflow the stack, left recursion behind a rule that is empty only by another rule is not seen and
grows without end, more than 2,000 repetitions silently become any number, and an ambiguous rule doubles the parse
states with every character. A grammar that passes :func:`check_gbnf` has none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ktllama.engine.executor import GrammarError

MAX_TEXT_BYTES = 256 * 1024
_MAX_DEPTH = 100
_MAX_ELEMENTS = 50_000
_MAX_RULES = 5_000
_MAX_REPETITIONS = 2_000  # MAX_REPETITION_THRESHOLD
_MAX_STATES = 2_000  # ways to go on at one place of the text
_PROBED_CHARACTERS = 24
_PROBED_RULES = 32
_PROBED_CANDIDATES = 48
_PROBED_STACKS = 30_000

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_TOKEN = re.compile(r"!?<(?:\[[0-9]{1,9}\]|[^>\[][^>]*)>")
_BRACES = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(,?)[ \t]*([0-9]{1,9})?[ \t]*\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class _Characters:
    """One character: within ``ranges``, or outside them where ``inverted``. A token element has no ranges."""

    ranges: tuple[tuple[int, int], ...]
    inverted: bool = False

    def matches(self, character: int) -> bool:
        return any(low <= character <= high for low, high in self.ranges) != self.inverted


_Symbol: TypeAlias = _Characters | int  # a rule by its number
_Sequence: TypeAlias = tuple[_Symbol, ...]
#: places in rules (rule, alternative, index), the top first
_Stack: TypeAlias = "tuple[tuple[int, int, int], _Stack] | None"

_ANY = _Characters((), inverted=True)


def check_gbnf(text: str) -> None:
    """Raise a GrammarError that says what is wrong with a grammar, if something is."""
    if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise GrammarError(f"the grammar has more than {MAX_TEXT_BYTES} bytes")
    if "\0" in text:
        raise GrammarError("the grammar holds a NUL character")
    parser = _Parser(text)
    parser.parse()
    if "root" not in parser.numbers:
        raise GrammarError("the grammar has no rule called root")
    rules = parser.finished_rules()
    empty = _nullable(rules)
    order = _left_order(rules, empty, parser.names)
    _check_states(rules, empty, order, parser.names)
    _probe_ambiguity(rules, parser.numbers["root"])


class _Parser:
    """The rules, with groups and repetitions made into rules of their own as llama.cpp makes them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.bodies: list[tuple[_Sequence, ...] | None] = []
        self.n_elements = 0

    def parse(self) -> None:
        self._skip(_SPACE_AND_LINES)
        while self.position < len(self.text):
            self._rule()

    def finished_rules(self) -> list[tuple[_Sequence, ...]]:
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

    def _alternatives(self, space: re.Pattern[str], depth: int) -> tuple[_Sequence, ...]:
        if depth > _MAX_DEPTH:
            raise self._error(f"parentheses nest more than {_MAX_DEPTH} deep")
        found = [self._sequence(space, depth)]
        while self.text[self.position : self.position + 1] == "|":
            self.position += 1
            self._skip(_SPACE_AND_LINES)
            found.append(self._sequence(space, depth))
        return tuple(found)

    def _sequence(self, space: re.Pattern[str], depth: int) -> _Sequence:
        done: list[_Symbol] = []
        item: list[_Symbol] = []  # what a repetition sign would repeat
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

    def _item(self, depth: int) -> list[_Symbol] | None:
        first = self.text[self.position]
        if first == '"':
            return list(self._literal())
        if first == "[":
            return [self._class()]
        if first == ".":
            self.position += 1
            return [_ANY]
        if first in "<!":
            self._match(_TOKEN, "a token such as <|name|> or <[123]>")
            return [_Characters(())]
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

    def _literal(self) -> Iterator[_Symbol]:
        self.position += 1
        while self.text[self.position : self.position + 1] != '"':
            character = self._character()
            yield _Characters(((character, character),))
        self.position += 1

    def _class(self) -> _Characters:
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
        self._count(len(ranges))
        return _Characters(tuple(ranges), inverted)

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

    def _repeated(self, item: list[_Symbol], low: int, high: int | None) -> list[_Symbol]:
        self._count(len(item) * max(low, high or 0))
        made = item * low
        if high is None:
            number = self._new_rule(())
            self.bodies[number] = ((*item, number), ())
            return [*made, number]
        rest: list[_Symbol] = []
        for _ in range(high - low):
            rest = [self._new_rule(((*item, *rest), ()))]
        return made + rest

    def _number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = self._append(name, None)
        return self.numbers[name]

    def _new_rule(self, body: tuple[_Sequence, ...]) -> int:
        return self._append("", body)

    def _append(self, name: str, body: tuple[_Sequence, ...] | None) -> int:
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


def _nullable(rules: list[tuple[_Sequence, ...]]) -> list[bool]:
    """Which rules can be empty."""
    users: list[list[int]] = [[] for _ in rules]
    for number, body in enumerate(rules):
        for sequence in body:
            for symbol in sequence:
                if isinstance(symbol, int):
                    users[symbol].append(number)
    empty = [False] * len(rules)
    todo = list(range(len(rules)))
    while todo:
        number = todo.pop()
        if empty[number] or not any(_all_empty(sequence, empty) for sequence in rules[number]):
            continue
        empty[number] = True
        todo += users[number]
    return empty


def _all_empty(sequence: _Sequence, empty: list[bool]) -> bool:
    return all(isinstance(symbol, int) and empty[symbol] for symbol in sequence)


def _left_symbols(body: tuple[_Sequence, ...], empty: list[bool]) -> Iterator[_Symbol]:
    """What can come first in a rule."""
    for sequence in body:
        for symbol in sequence:
            yield symbol
            if not (isinstance(symbol, int) and empty[symbol]):
                break


def _left_order(rules: list[tuple[_Sequence, ...]], empty: list[bool], names: list[str]) -> list[int]:
    """The rules, each after those that it can begin with.

    Raises:
        GrammarError: where a rule can begin with itself.
    """
    order: list[int] = []
    state = [0] * len(rules)  # 1: being visited, 2: done
    for start in range(len(rules)):
        if state[start]:
            continue
        state[start] = 1
        path = [(start, _left_symbols(rules[start], empty))]
        while path:
            number, symbols = path[-1]
            following = next((symbol for symbol in symbols if isinstance(symbol, int) and state[symbol] != 2), None)
            if following is None:
                path.pop()
                state[number] = 2
                order.append(number)
            elif state[following] == 1:
                named = next((names[rule] for rule, _ in reversed(path) if names[rule]), "root")
                raise GrammarError(f"the rule {named} can begin with itself, or repeats something that may be empty")
            else:
                state[following] = 1
                path.append((following, _left_symbols(rules[following], empty)))
    return order


def _check_states(rules: list[tuple[_Sequence, ...]], empty: list[bool], order: list[int], names: list[str]) -> None:
    """Refuse rules that can begin in too many ways."""
    ways = [0] * len(rules)
    for number in order:
        ways[number] = sum(
            ways[symbol] if isinstance(symbol, int) else 1 for symbol in _left_symbols(rules[number], empty)
        )
        if ways[number] > _MAX_STATES:
            raise GrammarError(f"the rule {names[number] or 'root'} can begin in more than {_MAX_STATES} ways")


def _probe_ambiguity(rules: list[tuple[_Sequence, ...]], root: int) -> None:
    """Follow the character that leaves the most states open, from the root and from rules that contain themselves.

    Raises:
        GrammarError: when a short text can be read in too many ways at once.
    """
    states = _States(rules)
    for number in (root, *_embedding(rules)[:_PROBED_RULES]):
        stacks = states.start(number)
        for _ in range(_PROBED_CHARACTERS):
            if len(stacks) > _MAX_STATES:
                raise GrammarError(
                    f"a short text can be read in more than {_MAX_STATES} ways at once; make the grammar unambiguous"
                )
            if not stacks or states.n_opened > _PROBED_STACKS:
                break
            stacks = states.worst_step(stacks)


def _embedding(rules: list[tuple[_Sequence, ...]]) -> list[int]:
    """The rules that contain themselves with something after it: only those can leave ever more states open."""
    component = _components(
        [{symbol for sequence in body for symbol in sequence if isinstance(symbol, int)} for body in rules]
    )
    return [
        number
        for number, body in enumerate(rules)
        if any(
            isinstance(symbol, int) and component[symbol] == component[number]
            for sequence in body
            for symbol in sequence[:-1]
        )
    ]


def _components(used: list[set[int]]) -> list[int]:
    """For every rule a number that it shares with the rules that it contains and that contain it (Kosaraju)."""
    users: list[set[int]] = [set() for _ in used]
    for number, symbols in enumerate(used):
        for symbol in symbols:
            users[symbol].add(number)
    finished: list[int] = []
    visited = [False] * len(used)
    for start in range(len(used)):
        todo = [(start, False)]
        while todo:
            number, done = todo.pop()
            if done:
                finished.append(number)
            elif not visited[number]:
                visited[number] = True
                todo.append((number, True))
                todo += [(symbol, False) for symbol in used[number]]
    component = [-1] * len(used)
    for start in reversed(finished):
        members = [start] if component[start] < 0 else []
        while members:
            number = members.pop()
            if component[number] < 0:
                component[number] = start
                members += users[number]
    return component


class _States:
    """The parse states of a grammar, as llama.cpp keeps them: stacks of places in rules, a character on top."""

    def __init__(self, rules: list[tuple[_Sequence, ...]]) -> None:
        self.rules = rules
        self.n_opened = 0

    def start(self, rule: int) -> set[_Stack]:
        """The states in which a text of ``rule`` begins."""
        return self._advance(self._openings(rule, None))

    def worst_step(self, stacks: set[_Stack]) -> set[_Stack]:
        """The states after the character that most of ``stacks`` can take."""
        tops = [(self._top(stack), stack) for stack in stacks if stack is not None]
        candidates = {low for top, _ in tops if isinstance(top, _Characters) for low, _ in top.ranges[:4]}
        worst: list[_Stack] = []
        for character in sorted(candidates | {32, 97, 49})[:_PROBED_CANDIDATES]:
            matching: list[_Stack] = [
                stack for top, stack in tops if isinstance(top, _Characters) and top.matches(character)
            ]
            if len(matching) > len(worst):
                worst = matching
        return self._advance([self._next(stack) for stack in worst])

    def _advance(self, todo: list[_Stack]) -> set[_Stack]:
        """Open rules until every stack has a character on top; an empty stack is the grammar's end."""
        done: set[_Stack] = set()
        seen: set[_Stack] = set()
        while todo and len(done) <= _MAX_STATES:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            self.n_opened += 1
            symbol = None if stack is None else self._top(stack)
            if isinstance(symbol, int):
                todo += self._openings(symbol, self._next(stack))
            else:
                done.add(stack)
        return done

    def _openings(self, rule: int, below: _Stack) -> list[_Stack]:
        return [((rule, index, 0), below) if sequence else below for index, sequence in enumerate(self.rules[rule])]

    def _top(self, stack: _Stack) -> _Symbol:
        assert stack is not None
        rule, alternative, index = stack[0]
        return self.rules[rule][alternative][index]

    def _next(self, stack: _Stack) -> _Stack:
        assert stack is not None
        (rule, alternative, index), below = stack
        return ((rule, alternative, index + 1), below) if index + 1 < len(self.rules[rule][alternative]) else below
