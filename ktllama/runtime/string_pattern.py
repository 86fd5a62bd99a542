"""A schema's ``pattern`` as GBNF of the JSON text of the strings that match it.

The expression is read by Python's parser, whose syntax agrees with ECMAScript's in what a grammar can say: characters,
classes, groups, alternatives, repetitions, and anchors at an end. The rest is refused. ``\\d`` and ``\\w`` mean ASCII,
as in ECMAScript.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, TypeAlias

from ktllama.engine.executor import GrammarError
from ktllama.runtime.gbnf_parser import merged_ranges

_Ranges: TypeAlias = list[tuple[int, int]]

_LAST = 0x10FFFF
_MAX_CHARACTERS = 4096
_MAX_REPETITIONS = 2_000
_MAX_DEPTH = 50
#: what a JSON string cannot hold as it is: controls, the quotation mark, the backslash, and halves of characters
_NEVER_RAW = [(0, 31), (34, 34), (92, 92), (127, 127), (0xD800, 0xDFFF)]
_ESCAPED = {34: '\\\\\\"', 92: "\\\\\\\\", 10: "\\\\n", 13: "\\\\r", 9: "\\\\t"}
_CATEGORIES = {
    ops.CATEGORY_DIGIT: [(48, 57)],
    ops.CATEGORY_WORD: [(48, 57), (65, 90), (95, 95), (97, 122)],
    ops.CATEGORY_SPACE: [(9, 13), (32, 32), (160, 160), (0x2028, 0x2029), (0xFEFF, 0xFEFF)],
}
_NEGATED = {
    ops.CATEGORY_NOT_DIGIT: ops.CATEGORY_DIGIT,
    ops.CATEGORY_NOT_WORD: ops.CATEGORY_WORD,
    ops.CATEGORY_NOT_SPACE: ops.CATEGORY_SPACE,
}
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]


def pattern_to_gbnf(pattern: str) -> str:
    """What stands between the quotation marks of a string that matches; it uses the rule ``char``.

    Raises:
        GrammarError: for an expression that cannot be read or enforced.
    """
    if len(pattern) > _MAX_CHARACTERS:
        raise GrammarError(f"a pattern of the JSON schema has more than {_MAX_CHARACTERS} characters")
    try:
        parsed = _parser.parse(pattern, 0)
    except (re.error, RecursionError, OverflowError) as error:
        raise GrammarError(f"a pattern of the JSON schema cannot be read: {error}") from error
    if parsed.state.flags & ~re.UNICODE:
        raise GrammarError("a pattern of the JSON schema sets flags")
    return _searched(list(parsed))


def _searched(items: list[Any], before: str = "char*", after: str = "char*") -> str:
    """Anchors bind their own alternative only; an end without one is open."""
    if items and items[0] in ((ops.AT, ops.AT_BEGINNING), (ops.AT, ops.AT_BEGINNING_STRING)):
        items, before = items[1:], ""
    if items and items[-1] in ((ops.AT, ops.AT_END), (ops.AT, ops.AT_END_STRING)):
        items, after = items[:-1], ""
    if len(items) == 1 and items[0][0] is ops.BRANCH:
        return " | ".join(_searched(list(branch), before, after) or '""' for branch in items[0][1][1])
    return " ".join(filter(None, (before, _sequence(items, 0), after)))


def _sequence(items: Sequence[Any], depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise GrammarError(f"a pattern of the JSON schema nests more than {_MAX_DEPTH} deep")
    return " ".join(_item(operation, argument, depth) for operation, argument in items)


def _item(operation: Any, argument: Any, depth: int) -> str:
    if operation is ops.BRANCH:
        return "(" + " | ".join(_sequence(branch, depth + 1) for branch in argument[1]) + ")"
    if operation is ops.SUBPATTERN and not argument[1] and not argument[2]:
        return f"({_sequence(argument[3], depth + 1)})"
    if operation in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        least, most, body = argument
        if least > _MAX_REPETITIONS or (most is not ops.MAXREPEAT and most > _MAX_REPETITIONS):
            raise GrammarError(f"a pattern of the JSON schema repeats more than {_MAX_REPETITIONS} times")
        return f"({_sequence(body, depth + 1)}){{{least},{'' if most is ops.MAXREPEAT else most}}}"
    ranges = _ranges(operation, argument)
    if ranges is None:
        raise GrammarError(f"a pattern of the JSON schema uses {str(operation).lower()}, which cannot be enforced")
    return _character(ranges)


def _ranges(operation: Any, argument: Any) -> _Ranges | None:
    """The characters of a node that matches one; None for another node."""
    if operation is ops.LITERAL:
        return [(argument, argument)]
    if operation is ops.NOT_LITERAL:
        return _without([(0, _LAST)], [(argument, argument)])
    if operation is ops.ANY:
        return _without([(0, _LAST)], _LINE_ENDS)
    if operation is ops.RANGE:
        return [argument]
    if operation is ops.CATEGORY:
        if argument in _NEGATED:
            return _without([(0, _LAST)], _CATEGORIES[_NEGATED[argument]])
        return _CATEGORIES.get(argument)
    if operation is not ops.IN:
        return None
    inverted = argument[0][0] is ops.NEGATE
    found = [part for kind, value in argument[inverted:] for part in _ranges(kind, value) or ()]
    return _without([(0, _LAST)], found) if inverted else found


def _without(ranges: _Ranges, excluded: _Ranges) -> _Ranges:
    """What is left of ``ranges``, in order and apart."""
    left = []
    holes = merged_ranges(excluded)
    for begin, end in merged_ranges(ranges):
        index = bisect_left(holes, begin, key=lambda hole: hole[1])
        while index < len(holes) and holes[index][0] <= end:
            low, high = holes[index]
            if begin < low:
                left.append((begin, low - 1))
            begin, index = high + 1, index + 1
        if begin <= end:
            left.append((begin, end))
    return left


def _character(ranges: _Ranges) -> str:
    raw = "".join(
        _code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in _without(ranges, _NEVER_RAW)
    )
    choices = [f"[{raw}]"] if raw else []
    choices += [f'"{text}"' for code, text in _ESCAPED.items() if any(low <= code <= high for low, high in ranges)]
    if not choices:
        raise GrammarError("a pattern of the JSON schema asks for a character that JSON writes as \\u only")
    return choices[0] if len(choices) == 1 else "(" + " | ".join(choices) + ")"


def _code(character: int) -> str:
    plain = chr(character)
    return plain if plain.isascii() and plain.isalnum() else f"\\U{character:08X}"
