"""The messages of a conversation, and the tools that they may call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

from ktllama.server.protocol.base import Body, branch, branch_name, items, refused, text_or_list

_NOT_TEXT = ("image_url", "image", "input_image", "input_audio", "audio_url", "video_url", "file", "input_file")


def _text_alone(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _NOT_TEXT:
        raise PydanticCustomError(
            "unsupported_content", "a part of type '{kind}': this model reads text only", {"kind": kind}
        )
    return part


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, branch("text")]
    | Annotated[list[Annotated[TextPart, BeforeValidator(_text_alone)]], items(), branch("list")],
    Discriminator(text_or_list),
]


class CalledFunction(Body):
    """What a tool call calls; `arguments` is JSON as the model wrote it."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str
    parsed_arguments: Any = Field(default=None, description="Accepted; changes nothing.")


class ToolCall(Body):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(default=None, description="Accepted; the order of the list counts.")


# Beside role and content, what a message of each role may say.
_FIELDS = {
    "system": {"name"},
    "developer": {"name"},
    "user": {"name"},
    "assistant": {"name", "tool_calls", "reasoning_content", "prefix", "parsed"},
    "tool": {"name", "tool_call_id"},
}


class Message(Body):
    """One turn. `reasoning_content` of earlier turns is accepted and dropped, as DeepSeek's API has it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(default=None, max_length=256, description="Given to the chat template.")
    tool_calls: Annotated[list[ToolCall], items()] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    prefix: bool | None = Field(
        default=None, description="On a last message of the assistant: the answer goes on from here (DeepSeek's beta)."
    )
    refusal: Annotated[Any, refused("a refusal has no place in this model's prompt")] = None
    annotations: list[Any] | None = Field(default=None, description="Accepted; changes nothing.")
    parsed: Any = Field(default=None, description="Accepted; changes nothing: OpenAI's client adds it.")
    audio: Annotated[Any, refused("this model reads text only")] = None
    function_call: Annotated[Any, refused("function_call was replaced by tool_calls")] = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        allowed = _FIELDS[self.role]
        for field in ("tool_calls", "tool_call_id", "reasoning_content", "prefix", "parsed"):
            if getattr(self, field) is not None and field not in allowed:
                raise PydanticCustomError(
                    "wrong_role", "a message of role '{role}' has no {field}", {"role": self.role, "field": field}
                )
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("missing", "Field required", {"field": "tool_call_id"})
        if self.content is None and not (self.role == "assistant" and self._says_something()):
            raise PydanticCustomError("missing", "Field required", {"field": "content"})
        return self

    def _says_something(self) -> bool:
        return bool(self.tool_calls) or self.reasoning_content is not None

    def text(self) -> str:
        """The content as one text, its parts joined as they are."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class FunctionTool(Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description="The arguments are held to the schema by grammar.")


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    """The name alone."""

    name: str = Field(min_length=1, max_length=64)


class NamedToolChoice(Body):
    """Call this one."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], branch("word")] | Annotated[NamedToolChoice, branch("named")],
    Discriminator(lambda value: branch_name("named" if isinstance(value, dict | NamedToolChoice) else "word")),
]


def _different_names(tools: list[Tool]) -> list[Tool]:
    seen: set[str] = set()
    for tool in tools:
        if tool.function.name in seen:
            raise PydanticCustomError("duplicate_tool", "two tools are called '{name}'", {"name": tool.function.name})
        seen.add(tool.function.name)
    return tools


Tools = Annotated[list[Tool], items(), AfterValidator(_different_names)]
