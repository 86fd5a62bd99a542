"""GBNF for tool calls: one is required, or, where one comes, its arguments obey its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ktllama.engine.executor import GrammarError
from ktllama.r1.tool_formats import ToolFormat
from ktllama.runtime.gbnf import MAX_TEXT_BYTES
from ktllama.runtime.json_schema import schema_to_gbnf
from ktllama.server.errors import ApiError
from ktllama.server.protocol.messages import FunctionTool


def tool_grammar(
    tool_format: ToolFormat, tools: Sequence[tuple[int, FunctionTool]], *, required: bool, parallel: bool
) -> str:
    """GBNF for an answer that calls `tools`, each with its place in the request, for messages.

    `required`: it is nothing but calls; otherwise text that may end in calls. Raises ApiError for a schema that
    cannot be put into a grammar.
    """
    opener = tool_format.openers[0]
    before, joint, end = _frame(tool_format)
    more = ("(" + literal(joint) + " call)*" if joint else "call*") if parallel else ""
    rules = [
        f"root ::= blank {literal(opener)} calls" if required else "root ::= text-0",
        " ".join(part for part in ("calls ::= first", more, literal(end) if end else "") if part),
        "first ::= " + " | ".join(f"first-{place}" for place, _ in tools),
        "call ::= " + " | ".join(f"call-{place}" for place, _ in tools),
        r"blank ::= [ \t\n]{0,4}",
    ]
    if not required:
        rules += _text_until(opener, "calls")
    made = _Rules(rules)
    for place, tool in tools:
        call, after = tool_format.call(tool.name, _HOLE).split(_HOLE)
        first = (before + call).removeprefix(opener)
        made.add(f"first-{place} ::= {literal(first)} arguments-{place} {literal(after)}")
        made.add(f"call-{place} ::= {literal(call)} arguments-{place} {literal(after)}")
        for rule in _argument_rules(place, tool):
            made.add(rule)
    return made.text()


class _Rules:
    """Rules, each once, and no more than a grammar may hold: what is too much is not converted before it is refused."""

    def __init__(self, rules: Iterable[str]) -> None:
        self._rules: dict[str, None] = {}
        self._n_bytes = 0
        for rule in rules:
            self.add(rule)

    def add(self, rule: str) -> None:
        """One more, or the same again. Raises ApiError where all are too long."""
        if rule in self._rules:
            return
        self._rules[rule] = None
        self._n_bytes += len(rule.encode(errors="replace")) + 1
        if self._n_bytes > MAX_TEXT_BYTES:
            message = f"tools: their names and schemas make a grammar of more than {MAX_TEXT_BYTES} bytes"
            raise ApiError(400, message, param="tools", code="invalid_json_schema")

    def text(self) -> str:
        """GBNF, a rule a line."""
        return "\n".join(self._rules) + "\n"


_HOLE = "\0"


def _frame(tool_format: ToolFormat) -> tuple[str, str, str]:
    """What stands before the first call, between two, and after the last."""
    call = tool_format.call("", _HOLE)
    before, joint, end = tool_format.calls([("", _HOLE)] * 2).split(call)
    return before, joint, end


def _argument_rules(place: int, tool: FunctionTool) -> list[str]:
    """The rules of a call's arguments: any JSON object, or with `strict` what the schema allows."""
    schema: dict[str, Any] = {"type": "object"}
    if tool.strict and tool.parameters is not None:
        schema = tool.parameters if "$ref" in tool.parameters else schema | tool.parameters
    try:
        grammar = schema_to_gbnf(json.dumps(schema))
    except GrammarError as error:
        at = f"tools[{place}].function.parameters"
        raise ApiError(400, f"{at}: {error}", param=at, code="invalid_json_schema") from error
    return _renamed(grammar, f"arguments-{place}")


# A GBNF string, a class of characters, or a name that the converter made; only the last is to be changed.
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\b(?:root|r[0-9]+)\b(?!-)')


def _renamed(grammar: str, name: str) -> list[str]:
    """The rules of a grammar of its own under `name`; what all such grammars share keeps its names."""

    def new(found: re.Match[str]) -> str:
        word = found[0]
        return word if word[0] in '"[' else name if word == "root" else f"{name}-{word}"

    return [_WORD.sub(new, rule) for rule in grammar.splitlines() if rule.strip()]


def literal(text: str) -> str:
    """A GBNF string."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    return {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, character)


def characters_but(excluded: Iterable[str]) -> str:
    """A GBNF class of one character that is none of `excluded`."""
    special = {"]": "\\]", "[": "\\[", "^": "\\x5E", "-": "\\x2D"}
    return "[^" + "".join(special.get(character) or _escaped(character) for character in sorted(excluded)) + "]"


def _text_until(marker: str, then: str) -> list[str]:
    """Rules of text without `marker`, which `then` follows if it comes: one state a character of it that was seen."""
    first = marker[0]
    assert first not in marker[1:], "a marker that overlaps itself needs longer memory"
    rules = []
    for seen, wanted in enumerate(marker):
        following = then if seen == len(marker) - 1 else f"text-{seen + 1}"
        again = "" if seen == 0 else f" | {literal(first)} text-1"
        others = characters_but({first, wanted})
        rules.append(f'text-{seen} ::= "" | {literal(wanted)} {following}{again} | {others} text-0')
    return rules
