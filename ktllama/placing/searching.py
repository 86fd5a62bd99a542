"""``re.search`` over many names, with a limit on the time that one pattern may take.

Python's matcher cannot be interrupted from outside. So a pattern whose shape can make it backtrack without bound
(a repeat inside a repeat, a choice or back-reference inside a repeat, many unbounded repeats) is tried in a child
process, which can be ended; all others take polynomial time of low degree on names of a few dozen characters and
run here, with a look at the clock between names.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

#: Seconds that one pattern may take over all module names of a model.
TIME_LIMIT = 2.0
#: Seconds that all patterns of a rule file may take together.
ALL_TIME_LIMIT = 20.0

_MANY_REPEATS = 4
_NAMES_BETWEEN_CLOCKS = 64
_NUMBER = re.compile("[0-9]+")

_CHILD = (
    "import json,re,sys\n"
    "asked=json.load(sys.stdin)\n"
    "found=re.compile(asked['pattern']).search\n"
    "print(''.join('1' if found(name) else '0' for name in asked['names']))"
)


class RunawayPatternError(Exception):
    """A pattern used up :data:`TIME_LIMIT`, or all patterns together :data:`ALL_TIME_LIMIT`."""


class Searcher:
    """Searches for the many patterns of one rule file, which together may take :data:`ALL_TIME_LIMIT` seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether all patterns together have used up their time."""
        return self.seconds > ALL_TIME_LIMIT

    def search_all(self, pattern: re.Pattern[str], names: Sequence[str]) -> list[bool]:
        """As :func:`search_all`.

        Raises:
            RunawayPatternError: after :data:`TIME_LIMIT` seconds, or at once when :attr:`is_exhausted`.
        """
        if self.is_exhausted:
            raise RunawayPatternError
        started = time.monotonic()
        try:
            return search_all(pattern, names)
        finally:
            self.seconds += time.monotonic() - started


def compiled(pattern: str) -> re.Pattern[str]:
    """``re.compile`` without its warnings, which are about Python's future, not about the rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(pattern)


def search_all(pattern: re.Pattern[str], names: Sequence[str]) -> list[bool]:
    """For each name whether ``pattern.search`` finds something.

    Raises:
        RunawayPatternError: after :data:`TIME_LIMIT` seconds.
    """
    if may_run_away(pattern.pattern):
        return _search_in_child(pattern, names)
    if not is_met(need_of(pattern.pattern), "\n".join(names)):
        return [False] * len(names)
    search, give_up = pattern.search, time.monotonic() + TIME_LIMIT
    found: list[bool] = []
    for start in range(0, len(names), _NAMES_BETWEEN_CLOCKS):
        found += [search(name) is not None for name in names[start : start + _NAMES_BETWEEN_CLOCKS]]
        if time.monotonic() > give_up:
            raise RunawayPatternError
    return found


def _search_in_child(pattern: re.Pattern[str], names: Sequence[str]) -> list[bool]:
    asked = json.dumps({"pattern": pattern.pattern, "names": list(names)})
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _CHILD]
    try:
        answer = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):  # the second: memory ran out before the time
        raise RunawayPatternError from None
    return [character == "1" for character in answer.stdout.strip()]


def _parsed(pattern: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sre_parser.parse(pattern)


@functools.lru_cache(maxsize=1024)
def may_run_away(pattern: str) -> bool:
    """Whether the pattern's shape allows exponential or high-degree polynomial backtracking."""
    unbounded = [0]

    def visit(items: Iterable[Any], in_repeat: bool) -> bool:
        return any(visit_one(operation, argument, in_repeat) for operation, argument in items)

    def visit_one(operation: Any, argument: Any, in_repeat: bool) -> bool:
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            _, most, body = argument
            repeats = most is sre.MAXREPEAT or most > _MANY_REPEATS
            unbounded[0] += repeats
            return (in_repeat and most != 1) or visit(body, in_repeat or repeats)
        if in_repeat and operation in (sre.BRANCH, sre.GROUPREF):
            return True
        if operation is sre.BRANCH:
            return any(visit(branch, in_repeat) for branch in argument[1])
        if operation is sre.SUBPATTERN:
            return visit(argument[3], in_repeat)
        if operation in (sre.ASSERT, sre.ASSERT_NOT):
            return visit(argument[1], in_repeat)
        if operation is sre.ATOMIC_GROUP:
            return visit(argument, in_repeat)
        if operation is sre.GROUPREF_EXISTS:
            return any(visit(branch, in_repeat) for branch in argument[1:] if branch is not None)
        return False

    try:
        return visit(_parsed(pattern), False) or unbounded[0] >= _MANY_REPEATS
    except RecursionError:  # deeper than can be looked at here
        return True


#: A text that a name must hold for a pattern to be found in it; ``all`` or ``any`` of such; "" where nothing is known.
Need = str | tuple[str, tuple["Need", ...]]


@functools.lru_cache(maxsize=16384)
def need_of(pattern: str) -> Need:
    """What every name in which ``pattern`` is found must hold: cheap to ask, and seldom there in a rule for others."""
    try:
        parsed = _parsed(pattern)
        return "" if parsed.state.flags & re.IGNORECASE else _need(parsed)
    except RecursionError:
        return ""


def _need(items: Iterable[Any]) -> Need:
    needs: list[Need] = []
    for is_literal, group in itertools.groupby(items, key=lambda item: item[0] is sre.LITERAL):
        if is_literal:
            needs.append("".join(chr(code) for _, code in group))
        else:
            needs += [_need_of_one(operation, argument) for operation, argument in group]
    return ("all", tuple(need for need in needs if need))


def _need_of_one(operation: Any, argument: Any) -> Need:
    if operation is sre.BRANCH:
        return ("any", tuple(_need(branch) for branch in argument[1]))
    if operation is sre.SUBPATTERN:
        _, added_flags, _, body = argument
        return "" if added_flags & re.IGNORECASE else _need(body)
    if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return _need(argument[2]) if argument[0] else ""
    if operation is sre.ATOMIC_GROUP:
        return _need(argument)
    return ""


def is_met(need: Need, text: str) -> bool:
    """Whether ``text`` (one name, or several) holds what is needed."""
    if isinstance(need, str):
        return need in text
    kind, parts = need
    found = (is_met(part, text) for part in parts)
    return all(found) if kind == "all" else any(found)


def without_numbers(need: Need) -> Need:
    """What a name must hold whose numbers were all replaced by ``0``."""
    if isinstance(need, str):
        return _NUMBER.sub("0", need)
    kind, parts = need
    return (kind, tuple(without_numbers(part) for part in parts))


@functools.lru_cache(maxsize=16384)
def literal_prefix(pattern: str) -> str:
    """The text that every name found by an anchored pattern begins with; empty where nothing is certain."""
    try:
        parsed = _parsed(pattern)
    except RecursionError:
        return ""
    items = list(parsed)
    if not items or items[0] != (sre.AT, sre.AT_BEGINNING) or parsed.state.flags & (re.IGNORECASE | re.MULTILINE):
        return ""
    literals = itertools.takewhile(lambda item: item[0] is sre.LITERAL, items[1:])
    return "".join(chr(argument) for _, argument in literals)
