"""A conversation as requests bring it, brought into one form: roles, texts, calls, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ktllama.r1.delta import BLANKS
from ktllama.r1.errors import MessagesError
from ktllama.r1.surrogates import well_formed_json

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "prefix"})
MAX_MESSAGES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that the assistant made; ``arguments`` is a JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message. ``calls`` only of the assistant, ``call_id`` only of a tool; ``name`` is the tool's or person's."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The beginning of the answer, which the model goes on: thinking and content, either may be empty."""

    reasoning: str
    content: str


def turns_of(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], Prefix | None]:
    """The conversation, and the prefix where its last message is one. Raises MessagesError with the field's path."""
    if not messages:
        raise MessagesError("messages", "at least one message was expected")
    if len(messages) > MAX_MESSAGES:
        raise MessagesError("messages", f"{len(messages)} messages; at most {MAX_MESSAGES} were expected")
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    for index, message in enumerate(messages[:-1]):
        if message.get("prefix"):
            raise MessagesError(f"messages[{index}].prefix", "only the last message can be a prefix")
    last = messages[-1]
    if not last.get("prefix"):
        return turns, None
    at = f"messages[{len(messages) - 1}]"
    if turns[-1].role != "assistant" or turns[-1].calls:
        raise MessagesError(f"{at}.prefix", "only an assistant's message without tool calls can be a prefix")
    reasoning = _text(last.get("reasoning_content"), f"{at}.reasoning_content")
    return turns[:-1], Prefix(reasoning=reasoning, content=turns[-1].content)


def _turn(message: Mapping[str, Any], at: str) -> Turn:
    for key, value in message.items():
        if key not in _KEYS and value is not None:
            raise MessagesError(f"{at}.{key}", "this field is not supported")
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise MessagesError(f"{at}.role", f"expected one of {', '.join(_ROLES)}")
    calls = tuple(_call(call, f"{at}.tool_calls[{i}]") for i, call in enumerate(message.get("tool_calls") or ()))
    if calls and role != "assistant":
        raise MessagesError(f"{at}.tool_calls", "only the assistant calls tools")
    if message.get("content") is None and not calls and role != "assistant":
        raise MessagesError(f"{at}.content", "a text was expected")
    return Turn(
        role=role,
        content=_text(message.get("content"), f"{at}.content"),
        calls=calls,
        call_id=_text(message.get("tool_call_id"), f"{at}.tool_call_id") or None,
        name=_text(message.get("name"), f"{at}.name") or None,
    )


def _text(value: object, at: str) -> str:
    """A text, or the texts of a list of parts with a line break between them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)):
        raise MessagesError(at, "a text or a list of text parts was expected")
    return "\n".join(_part(part, f"{at}[{index}]") for index, part in enumerate(value))


def _part(part: object, at: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") not in ("text", "input_text"):
        kind = part.get("type") if isinstance(part, Mapping) else None
        raise MessagesError(at, f"only text parts are supported{'' if kind is None else f', not {kind!r}'}")
    if not isinstance(part.get("text"), str):
        raise MessagesError(f"{at}.text", "a text was expected")
    return str(part["text"])


def _call(call: object, at: str) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise MessagesError(at, "a call of a function was expected")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise MessagesError(f"{at}.function.name", "a name was expected")
    arguments = _arguments(function.get("arguments"), f"{at}.function.arguments")
    return Call(id=_text(call.get("id"), f"{at}.id"), name=name, arguments=arguments)


def _arguments(value: object, at: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = well_formed_json(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise MessagesError(at, "a JSON object, as text, was expected") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MessagesError(at, "a JSON object was expected")
    return value


def without_thinking(turn: Turn, tags: tuple[str, str]) -> Turn:
    """An earlier turn as the model sees it: of the assistant's text what stands behind the last closing tag.

    Thinking that was never closed (it was cut off) is nothing but thinking.
    """
    opening, closing = tags
    if turn.role != "assistant":
        return turn
    if closing in turn.content:
        return replace(turn, content=turn.content.split(closing)[-1].lstrip(BLANKS))
    return replace(turn, content="") if turn.content.lstrip(BLANKS).startswith(opening) else turn


def system_first(turns: Sequence[Turn]) -> list[Turn]:
    """All that the system says as one message in front."""
    system, others = _parted(turns)
    return [Turn(role="system", content=system), *others] if system else others


def _parted(turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system" and turn.content)
    return system, [turn for turn in turns if turn.role != "system"]


def system_merged(turns: Sequence[Turn]) -> list[Turn]:
    """The system prompt's text in front of the first user turn's."""
    system, others = _parted(turns)
    if not system:
        return others
    first = next((index for index, turn in enumerate(others) if turn.role == "user"), None)
    if first is None:
        return [Turn(role="user", content=system), *others]
    content = others[first].content
    others[first] = replace(others[first], content=f"{system}\n\n{content}" if content else system)
    return others


def joined(turns: Sequence[Turn]) -> list[Turn]:
    """Messages of one role in a row as one, except tools' and calls."""
    found: list[Turn] = []
    for turn in turns:
        last = found[-1] if found else None
        if (
            last
            and last.role == turn.role
            and turn.role in ("system", "user", "assistant")
            and not (last.calls or turn.calls)
        ):
            texts = [text for text in (last.content, turn.content) if text]
            found[-1] = replace(last, content="\n\n".join(texts))
        else:
            found.append(turn)
    return found


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as templates expect them. Raises MessagesError with the field's path."""
    for index, tool in enumerate(tools):
        function = tool.get("function") if tool.get("type", "function") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise MessagesError(f"tools[{index}]", "a function with a name was expected")
    return [{"type": "function", "function": {"description": "", **tool["function"]}} for tool in tools]
