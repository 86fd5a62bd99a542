"""The body of /v1/chat/completions, and of /apply-template, which shows the prompt that it makes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

from ktllama.server.protocol.base import TOKEN_LIMIT, Body, branch, branch_name, items, only
from ktllama.server.protocol.messages import Message, NamedToolChoice, ToolChoice, Tools
from ktllama.server.protocol.openai import OpenAIChatFields
from ktllama.server.protocol.sampling import SamplingFields


class StreamOptions(Body):
    """What an event stream carries beside the text."""

    include_usage: bool | None = Field(default=None, description="A last chunk with `usage` and no choices.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; changes nothing.")


class PlainFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema and its name."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="Accepted; the schema always holds.")


class JsonSchemaFormat(Body):
    """JSON that the schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _format_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return branch_name(kind) if isinstance(kind, str) and kind in ("text", "json_object", "json_schema") else None


ResponseFormat = Annotated[
    Annotated[PlainFormat, branch("text")]
    | Annotated[JsonObjectFormat, branch("json_object")]
    | Annotated[JsonSchemaFormat, branch("json_schema")],
    Discriminator(
        _format_tag,
        custom_error_type="response_format",
        custom_error_message="expected an object whose type is 'text', 'json_object' or 'json_schema'",
    ),
]


class ThinkingSwitch(Body):
    """DeepSeek's switch: "disabled" is a reasoning budget of 0."""

    type: Literal["enabled", "disabled"]


class PromptFields(Body):
    """What makes the prompt."""

    messages: list[Message] = items(min_length=1)
    tools: Tools | None = None
    add_generation_prompt: Annotated[
        Any, only(True, reason="the answer is always a turn of its own; /v1/completions goes on with raw text")
    ] = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's chat template."
    )

    @model_validator(mode="after")
    def _prefix_is_last(self) -> PromptFields:
        for place, message in enumerate(self.messages):
            if message.prefix and place != len(self.messages) - 1:
                raise PydanticCustomError(
                    "prefix_not_last", "prefix must be on the last message", {"field": f"messages[{place}].prefix"}
                )
        if self.add_generation_prompt and self.messages[-1].prefix:
            raise PydanticCustomError(
                "prefix_opens_turn",
                "cannot be true when the last message has prefix, which goes on with that message",
                {"field": "add_generation_prompt"},
            )
        return self


class ChatRequest(OpenAIChatFields, SamplingFields, PromptFields):
    """The body of /v1/chat/completions."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tool_choice: ToolChoice | None = Field(default=None, description="auto where there are tools.")
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call an answer.")
    response_format: ResponseFormat | None = Field(default=None, description="Holds after the thinking.")
    reasoning_format: Literal["none", "deepseek", "deepseek-legacy"] | None = Field(
        default=None,
        description="deepseek: the thinking in reasoning_content; deepseek-legacy: there and, tagged, in content; "
        "none: in content alone, as the model wrote it.",
    )
    reasoning_budget: int | None = Field(
        default=None, ge=-1, lt=TOKEN_LIMIT, description="Tokens of thinking; then it is closed. -1: no limit."
    )
    reasoning_budget_message: str | None = Field(
        default=None, max_length=2000, description="What is written where the budget closes the thinking."
    )
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = Field(
        default=None, description="A reasoning budget of 0, 1024, 8192, or none."
    )
    thinking: ThinkingSwitch | None = None
    unclosed_thinking: Literal["reasoning", "content"] | None = Field(
        default=None, description="What thinking is that ended without its closing tag; reasoning by default."
    )
    n: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=1, lt=TOKEN_LIMIT, description="The thinking included.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, lt=TOKEN_LIMIT, description="OpenAI's newer name of max_tokens."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        for fault, field, message in self._disagreements():
            if fault:
                raise PydanticCustomError("disagreement", message, {"field": field})
        return self

    def _disagreements(self) -> list[tuple[bool, str, str]]:
        both_limits = None not in (self.max_tokens, self.max_completion_tokens)
        constrained = self.response_format is not None and self.response_format.type != "text"
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedToolChoice) else None
        offered = {tool.function.name for tool in self.tools or ()}
        both_budgets = self.reasoning_budget is not None and self.reasoning_effort is not None
        switch = None if self.thinking is None else self.thinking.type
        budget, effort = self.reasoning_budget, self.reasoning_effort
        none_asked = budget == 0 or effort == "none"
        some_asked = (budget is not None and budget != 0) or (effort is not None and effort != "none")
        tools_used = bool(self.tools) and choice != "none"
        return [
            (self.stream_options is not None and not self.stream, "stream_options", "needs stream: true"),
            (
                both_limits and self.max_tokens != self.max_completion_tokens,
                "max_completion_tokens",
                "differs from max_tokens; send one of them",
            ),
            (bool(self.top_logprobs) and not self.logprobs, "top_logprobs", "needs logprobs: true"),
            (choice not in (None, "none", "auto") and not offered, "tool_choice", "needs tools"),
            (named is not None and named not in offered, "tool_choice.function.name", "is not among the tools"),
            (self.grammar is not None and constrained, "grammar", "cannot be combined with response_format"),
            (self.grammar is not None and tools_used, "grammar", "cannot be combined with tools"),
            (constrained and tools_used, "response_format", "cannot be combined with tools; set tool_choice: none"),
            (
                both_budgets,
                "reasoning_effort",
                "cannot be combined with reasoning_budget, which says the same in tokens",
            ),
            (
                switch == "disabled" and some_asked,
                "thinking",
                "is disabled, but reasoning_budget or reasoning_effort asks for some",
            ),
            (
                switch == "enabled" and none_asked,
                "thinking",
                "is enabled, but reasoning_budget or reasoning_effort asks for none",
            ),
        ]
