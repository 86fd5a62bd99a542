"""How many ways to go on a grammar leaves open at one place of a text: what llama.cpp pays for with every token."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from ktllama.engine.executor import GrammarError
from ktllama.runtime.gbnf_parser import Characters, Rules, Symbol, TokenElement

MAX_STATES = 2_000  # ways to go on at one place of the text
_PROBED_CHARACTERS = 24
_PROBED_RULES = 32
_PROBED_CANDIDATES = 48
_PROBED_STACKS = 30_000
#: ways to read the same few characters: those that lead to one state are one for the sequence, but llama.cpp walks
#: each of them when it looks whether a token fits
_MAX_READINGS = 30_000
_READ_CHARACTERS = 8

#: places in rules (rule, alternative, index), the top first
_Stack: TypeAlias = "tuple[tuple[int, int, int], _Stack] | None"


def probe_ambiguity(rules: Rules, root: int) -> None:
    """Follow the character that leaves the most states open, from the root and from rules that contain themselves.

    Raises:
        GrammarError: when a short text can be read in too many ways at once.
    """
    recursive = _recursive(rules)
    states = _States(rules)
    for number in (root, *(rule for rule, embeds in recursive.items() if embeds))[: 1 + _PROBED_RULES]:
        stacks = states.start(number)
        for _ in range(_PROBED_CHARACTERS):
            if states.ways(stacks) > MAX_STATES:
                raise GrammarError(
                    f"a short text can be read in more than {MAX_STATES} ways at once; make the grammar unambiguous"
                )
            if not stacks or states.n_opened > _PROBED_STACKS:
                break
            stacks = states.worst_step(stacks)
    states = _States(rules)
    for number in (root, *recursive):
        _probe_readings(states, number)


def _probe_readings(states: _States, rule: int) -> None:
    readings = Counter(states.start(rule))
    for _ in range(_READ_CHARACTERS):
        if states.n_opened > _PROBED_STACKS:
            break
        readings = states.worst_readings(readings)
        if readings.total() > _MAX_READINGS:
            raise GrammarError(
                f"{_READ_CHARACTERS} characters can be read in more than {_MAX_READINGS} ways; "
                "make the grammar unambiguous"
            )


def _recursive(rules: Rules) -> dict[int, bool]:
    """The rules that contain themselves, and whether with something after it.

    Only those with something after it can leave ever more states open.
    """
    component = _components(
        [{symbol for sequence in body for symbol in sequence if isinstance(symbol, int)} for body in rules]
    )
    found: dict[int, bool] = {}
    for number, body in enumerate(rules):
        for sequence in body:
            places = [isinstance(each, int) and component[each] == component[number] for each in sequence]
            if any(places):
                found[number] = found.get(number, False) or any(places[:-1])
    return found


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

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.n_opened = 0
        self._after: dict[_Stack, set[_Stack]] = {}

    def start(self, rule: int) -> set[_Stack]:
        """The states in which a text of ``rule`` begins."""
        return self._advance(self._openings(rule, None))

    def ways(self, stacks: set[_Stack]) -> int:
        """What ``stacks`` cost llama.cpp when it holds a token against them: as much as so many literal characters."""
        tops = [self._top(stack) for stack in stacks if stack is not None]
        return sum([top.ways for top in tops if not isinstance(top, int)])

    def worst_step(self, stacks: set[_Stack]) -> set[_Stack]:
        """The states after the character or token that most of ``stacks`` can take."""
        tops = [(self._top(stack), stack) for stack in stacks if stack is not None]
        worst: list[_Stack] = []
        for candidate in _candidates({top for top, _ in tops}):
            matching: list[_Stack] = [stack for top, stack in tops if _takes(top, candidate)]
            if len(matching) > len(worst):
                worst = matching
        return self._advance([self._next(stack) for stack in worst])

    def worst_readings(self, readings: Counter[_Stack]) -> Counter[_Stack]:
        """Likewise where every state comes with the number of ways that led to it, and the most ways are followed."""
        tops = [(self._top(stack), stack, number) for stack, number in readings.items() if stack is not None]
        worst: list[tuple[_Stack, int]] = []
        most = 0
        for candidate in _candidates({top for top, _, _ in tops}):
            matching: list[tuple[_Stack, int]] = [(stack, n) for top, stack, n in tops if _takes(top, candidate)]
            total = sum([n for _, n in matching])
            if total > most:
                most, worst = total, matching
        after: Counter[_Stack] = Counter()
        for stack, number in worst:
            if stack not in self._after:
                self._after[stack] = self._advance([self._next(stack)])
            for following in self._after[stack]:
                after[following] += number
        return after

    def _advance(self, todo: list[_Stack]) -> set[_Stack]:
        """Open rules until every stack has a character on top; an empty stack is the grammar's end."""
        done: set[_Stack] = set()
        seen: set[_Stack] = set()
        while todo and len(done) <= MAX_STATES:
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

    def _top(self, stack: _Stack) -> Symbol:
        assert stack is not None
        rule, alternative, index = stack[0]
        return self.rules[rule][alternative][index]

    def _next(self, stack: _Stack) -> _Stack:
        assert stack is not None
        (rule, alternative, index), below = stack
        return ((rule, alternative, index + 1), below) if index + 1 < len(self.rules[rule][alternative]) else below


def _candidates(tops: set[Symbol]) -> list[int | str]:
    """Characters, and tokens as they are written, that are worth trying."""
    characters = {low for top in tops if isinstance(top, Characters) for low, _ in top.ranges[:4]}
    tokens = {top.written for top in tops if isinstance(top, TokenElement)}
    unnamed = [""] if tokens else []  # the token that every !<name> takes
    return [*sorted(characters | {32, 97, 49})[:_PROBED_CANDIDATES], *unnamed, *sorted(tokens)[:_PROBED_CANDIDATES]]


def _takes(top: Symbol, candidate: int | str) -> bool:
    if isinstance(candidate, int):
        return isinstance(top, Characters) and top.matches(candidate)
    return isinstance(top, TokenElement) and top.matches(candidate)
