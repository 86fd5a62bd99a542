"""How model families write tool calls: the markers, and calls, results and descriptions as text.

DeepSeek's are those of the chat templates that it published with R1 and V3.1; the other is that of Hermes and Qwen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ToolFormatName = Literal["deepseek-r1", "deepseek-v3.1", "hermes"]

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
OUTPUTS_BEGIN, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"
RESPONSE_BEGIN, RESPONSE_END = "<tool_response>", "</tool_response>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A format. ``openers`` begin a call, and close unclosed thinking; ``markers`` are all its fixed strings."""

    name: ToolFormatName
    openers: tuple[str, ...]
    markers: frozenset[str]

    def call(self, name: str, arguments: str) -> str:
        """One call; ``arguments`` is JSON text."""
        if self.name == "deepseek-r1":
            return f"{CALL_BEGIN}function{SEPARATOR}{name}\n```json\n{arguments}\n```{CALL_END}"
        if self.name == "deepseek-v3.1":
            return f"{CALL_BEGIN}{name}{SEPARATOR}{arguments}{CALL_END}"
        return f'{HERMES_BEGIN}\n{{"name": {to_json(name)}, "arguments": {arguments}}}\n{HERMES_END}'

    def calls(self, calls: Sequence[tuple[str, str]]) -> str:
        """All calls of a turn, each a name and JSON text."""
        texts = [self.call(name, arguments) for name, arguments in calls]
        if self.name == "hermes":
            return "\n".join(texts)
        return CALLS_BEGIN + ("\n" if self.name == "deepseek-r1" else "").join(texts) + CALLS_END

    def outputs(self, outputs: Sequence[str]) -> str:
        """The results of one turn's calls, in their order."""
        if self.name == "hermes":
            return "\n".join(f"{RESPONSE_BEGIN}\n{text}\n{RESPONSE_END}" for text in outputs)
        texts = [f"{OUTPUT_BEGIN}{text}{OUTPUT_END}" for text in outputs]
        if self.name == "deepseek-v3.1":
            return "".join(texts)
        return OUTPUTS_BEGIN + "\n".join(texts) + OUTPUTS_END

    def described(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What a model is told of ``tools`` where its template has no words for them."""
        functions = [tool["function"] for tool in tools]
        example = self.calls([("NAME", '{"ARGUMENT": "VALUE"}')])
        return (
            "You can call functions. The functions, as JSON, one a line:\n"
            + "\n".join(to_json(function) for function in functions)
            + "\n\nTo call one, end your answer with exactly this, the arguments as a valid JSON object:\n"
            + example
        )


def to_json(value: object) -> str:
    """JSON as transformers' templates write it."""
    return json.dumps(value, ensure_ascii=False)


_DEEPSEEK_MARKERS = frozenset({CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR}) | frozenset(
    {OUTPUTS_BEGIN, OUTPUTS_END, OUTPUT_BEGIN, OUTPUT_END}
)
FORMATS: dict[ToolFormatName, ToolFormat] = {
    "deepseek-r1": ToolFormat(name="deepseek-r1", openers=(CALLS_BEGIN, CALL_BEGIN), markers=_DEEPSEEK_MARKERS),
    "deepseek-v3.1": ToolFormat(name="deepseek-v3.1", openers=(CALLS_BEGIN, CALL_BEGIN), markers=_DEEPSEEK_MARKERS),
    "hermes": ToolFormat(
        name="hermes",
        openers=(HERMES_BEGIN,),
        markers=frozenset({HERMES_BEGIN, HERMES_END, RESPONSE_BEGIN, RESPONSE_END}),
    ),
}
