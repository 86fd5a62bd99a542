"""What holds an answer to a shape: a grammar, a JSON schema, or the format of tool calls. All begin after thinking."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ktllama.r1.profile import Profile
from ktllama.r1.tool_calls import ToolCallParser
from ktllama.r1.tool_formats import FORMATS, ToolFormatName
from ktllama.server.errors import ApiError
from ktllama.server.protocol.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat
from ktllama.server.protocol.messages import NamedToolChoice
from ktllama.server.tool_grammar import tool_grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """At most one of `grammar` and `json_schema`. `tool_format` is set where calls are to be looked for."""

    grammar: str = ""
    json_schema: str = ""
    tool_format: ToolFormatName | None = None

    @property
    def tool_openings(self) -> tuple[str, ...]:
        """What ends unclosed thinking: the texts that begin a call.

        None beside a grammar: it begins after the thinking and wants to see the call from its beginning.
        """
        return () if self.tool_format is None or self.grammar else FORMATS[self.tool_format].openers


def constraint(profile: Profile, body: ChatRequest) -> Constraint:
    """The shape that `body` asks for. Raises ApiError for a schema without grammar, and a prefix that begins a call."""
    if body.tools and body.tool_choice != "none":
        _check_prefix(profile, body)
        return _tools(profile, body)
    wanted = body.response_format
    if isinstance(wanted, JsonObjectFormat):
        return Constraint(json_schema='{"type":"object"}')
    if isinstance(wanted, JsonSchemaFormat):
        return Constraint(json_schema=json.dumps(wanted.json_schema.schema_))
    return Constraint(grammar=body.grammar or "")


def _check_prefix(profile: Profile, body: ChatRequest) -> None:
    """The answer holds what is new; of a call that the prefix began, that would be no call."""
    message = body.messages[-1]
    for field, text in (("content", message.text()), ("reasoning_content", message.reasoning_content or "")):
        parser = ToolCallParser(profile.tool_format)
        parser.feed(text if message.prefix else "")
        if parser.within_call:
            path = f"messages[{len(body.messages) - 1}].{field}"
            words = "a prefix must not end within a tool call; tool_choice makes the model call one"
            raise ApiError(400, f"{path}: {words}", param=path, code="invalid_messages")


def _tools(profile: Profile, body: ChatRequest) -> Constraint:
    assert body.tools
    choice = body.tool_choice
    places = {tool.function.name: place for place, tool in enumerate(body.tools)}
    named = choice.function.name if isinstance(choice, NamedToolChoice) else None
    required = named is not None or choice == "required"
    strict = any(tool.function.strict for tool in body.tools)
    grammar = ""
    if required or strict:
        offered = body.tools if named is None else [body.tools[places[named]]]
        grammar = tool_grammar(
            FORMATS[profile.tool_format],
            [(places[tool.function.name], tool.function) for tool in offered],
            required=required,
            parallel=body.parallel_tool_calls is not False and named is None,
        )
    return Constraint(grammar=grammar, tool_format=profile.tool_format)
