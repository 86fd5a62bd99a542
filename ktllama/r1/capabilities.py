"""What a chat template can render, found by rendering conversations whose words are then looked for.

Templates swallow what they do not know: a template without tools drops them silently, and DeepSeek's own of January
2025 leaves the calls of a single tool unclosed. So nothing is believed that is not seen in the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ktllama.r1.errors import TemplateError
from ktllama.r1.tool_formats import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, OUTPUTS_BEGIN, OUTPUTS_END


class Renderer(Protocol):
    """`ChatTemplate.render`."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The template's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStyle:
    """How a template wants calls: their arguments as a mapping or as JSON text, and the content beside them."""

    arguments: Literal["object", "text"]
    empty_content: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """``calls`` is None where calls and their results must be put into words by others."""

    system: bool
    tools: bool
    calls: CallStyle | None


_SYSTEM, _TOOL, _KEY, _VALUE = "fallow-system", "fallow_tool", "fallow_key", "fallow-value"
_RESULTS = ("fallow-result-1", "fallow-result-2", "fallow-result-3")
_USER = {"role": "user", "content": "fallow-user"}
_STYLES = tuple(
    CallStyle(arguments=arguments, empty_content=content) for arguments in ("object", "text") for content in (None, "")
)
_PAIRS = ((CALLS_BEGIN, CALLS_END), (CALL_BEGIN, CALL_END), (OUTPUTS_BEGIN, OUTPUTS_END))


def probe(render: Renderer) -> Capabilities:
    """Try the template out."""
    tool = {"type": "function", "function": {"name": _TOOL, "description": "", "parameters": {}}}
    return Capabilities(
        system=_SYSTEM in _tried(render, [{"role": "system", "content": _SYSTEM}, _USER]),
        tools=_TOOL in _tried(render, [_USER], [tool]),
        calls=next((style for style in _STYLES if _renders_calls(_tried(render, _conversation(style), [tool]))), None),
    )


def _tried(render: Renderer, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
    try:
        return render(messages, tools=tools)
    except TemplateError:
        return ""


def _conversation(style: CallStyle) -> list[dict[str, Any]]:
    """A call, and after its result two more at once."""
    return [_USER, _calls(style, 1), _result(0), _calls(style, 2), _result(1), _result(2)]


def _calls(style: CallStyle, n_calls: int) -> dict[str, Any]:
    arguments: Any = {_KEY: _VALUE}
    if style.arguments == "text":
        arguments = json.dumps(arguments)
    call = {"id": "fallow123", "type": "function", "function": {"name": _TOOL, "arguments": arguments}}
    return {"role": "assistant", "content": style.empty_content, "tool_calls": [call] * n_calls}


def _result(index: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "fallow123", "name": _TOOL, "content": _RESULTS[index]}


def _renders_calls(text: str) -> bool:
    """Three calls with their arguments, three results, and markers that come in pairs."""
    arguments = text.count(f'"{_KEY}": "{_VALUE}"') + text.count(f'"{_KEY}":"{_VALUE}"')
    return (
        arguments == 3
        and all(text.count(result) == 1 for result in _RESULTS)
        and all(text.count(begin) == text.count(end) for begin, end in _PAIRS)
        and (OUTPUTS_BEGIN not in text or text.count(OUTPUTS_BEGIN) == 2)
        and (CALLS_BEGIN not in text or text.count(CALLS_BEGIN) == 2)
        and "None" not in text
    )
