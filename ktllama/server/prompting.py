"""From the messages of a request to the prompt that the engine continues, and how its thinking goes."""

from __future__ import annotations

from typing import Any

from ktllama.engine.messages import Segment, Thinking
from ktllama.r1.errors import MessagesError, TemplateError, TemplateRefusalError
from ktllama.r1.prompt import Prompt, render
from ktllama.r1.template import RESERVED
from ktllama.ruleset.wording import did_you_mean, shown
from ktllama.server.errors import ApiError
from ktllama.server.protocol.chat import ChatRequest, PromptFields
from ktllama.server.protocol.messages import Message, Tool, ToolCall
from ktllama.server.state import ServerState

#: Tokens of thinking by `reasoning_effort`; None is no limit but max_tokens.
EFFORT_BUDGETS: dict[str, int | None] = {"none": 0, "low": 1024, "medium": 8192, "high": None}


def rendered(state: ServerState, body: PromptFields, *, think: bool | None = None) -> Prompt:
    """The prompt that `body` makes, by the model's own template. `think` turns the thinking on or off where it can be.

    Raises ApiError 400 for messages that make none, and for a template that cannot be used.
    """
    choice = getattr(body, "tool_choice", None)
    tools = [] if choice == "none" else [_tool(tool) for tool in body.tools or ()]
    policy = state.settings.system_prompt
    try:
        return render(
            [_as_mapping(message) for message in body.messages],
            template=state.template,
            profile=state.profile,
            control=state.control,
            tools=tools,
            system=None if policy == "auto" else policy,
            think=think,
            template_kwargs=body.chat_template_kwargs,
        )
    except MessagesError as error:
        raise ApiError(400, str(error), param=error.at, code="invalid_messages") from error
    except TemplateRefusalError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_messages") from error
    except TemplateError as error:
        raise ApiError(400, str(error), param="messages", code="template_error") from error


def drop_unhonoured(state: ServerState, body: ChatRequest) -> list[str]:
    """The paths of what a lenient server left out of `body` because this model cannot honour it.

    That is thinking of a model that does not think, and variables that its chat template does not read. Raises ApiError
    400, which names the first, where the server is not lenient.
    """
    faults: dict[str, str] = {}
    if body.thinking is not None and body.thinking.type == "enabled" and state.profile.think_tags is None:
        faults["thinking"] = "this model does not think"
    given = body.chat_template_kwargs or {}
    known = state.template.switches | RESERVED if given else frozenset()
    for key in [key for key in given if key not in known]:
        near = did_you_mean(key, sorted(state.template.switches))
        faults[f"chat_template_kwargs.{shown(key, 60)}"] = f"the model's chat template reads no such variable{near}"
    if faults and not state.settings.lenient:
        path, words = next(iter(faults.items()))
        raise ApiError(400, f"{path}: {words}", param=path, code="unsupported_value")
    body.thinking = None if "thinking" in faults else body.thinking
    body.chat_template_kwargs = {key: value for key, value in given.items() if key in known}
    return list(faults)


def _tool(tool: Tool) -> dict[str, Any]:
    """The tool as templates know it. `strict` is for the grammar."""
    return tool.model_dump(exclude_unset=True, exclude={"function": {"strict"}})


def _as_mapping(message: Message) -> dict[str, Any]:
    """The message as templates know them; `developer` is OpenAI's newer word for `system`."""
    made: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    made["content"] = message.text() if message.content is not None else None
    for field in ("name", "tool_call_id", "reasoning_content", "prefix"):
        if (value := getattr(message, field)) is not None:
            made[field] = value
    if message.tool_calls:
        made["tool_calls"] = [_call(call) for call in message.tool_calls]
    return made


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"type": call.type, "function": function} | ({} if call.id is None else {"id": call.id})


def segments(prompt: Prompt) -> tuple[Segment, ...]:
    """The prompt's pieces for the engine.

    Where two of r1's segments meet, a control string that a user wrote is cut behind a character of it. That
    character is marked as no part of a control token, so that joining the pieces again makes none either.
    """
    pieces: list[Segment] = []
    *cut, last = prompt.segments
    for text in cut:
        pieces += [Segment(text[:-1], special=True), Segment(text[-1], special=False)]
    pieces.append(Segment(last, special=True))
    return tuple(piece for piece in pieces if piece.text)


def reasoning_budget(state: ServerState, body: ChatRequest) -> int | None:
    """Tokens that the thinking may take: the request's word, then the server's."""
    if body.reasoning_budget is not None:
        return None if body.reasoning_budget == -1 else body.reasoning_budget
    if body.thinking is not None and body.thinking.type == "disabled":
        return 0
    if body.reasoning_effort is not None:
        return EFFORT_BUDGETS[body.reasoning_effort]
    return state.settings.reasoning_budget


def thinks(body: ChatRequest, budget: int | None) -> bool | None:
    """Whether the request asks for thinking, or for none; None where it says nothing of it."""
    if budget == 0:
        return False
    return True if body.thinking is not None or body.reasoning_effort is not None else None


def thinking(
    state: ServerState, prompt: Prompt, body: ChatRequest, budget: int | None, tool_openings: tuple[str, ...]
) -> Thinking:
    """How the engine is to follow this answer's thinking."""
    tags = state.profile.think_tags
    if tags is None or prompt.thinking == "closed":
        return Thinking(keep_blanks=prompt.keep_blanks, prompt_side=prompt.prompt_side)
    message = body.reasoning_budget_message
    if message is None:
        message = state.settings.reasoning_budget_message
    if any(tag in message for tag in tags):
        what = f"must not hold {tags[0]} or {tags[1]}, which end the thinking themselves"
        raise ApiError(400, f"reasoning_budget_message {what}", param="reasoning_budget_message")
    return Thinking(
        start=tags[0],
        end=tags[1],
        begins_inside=prompt.start_in_reasoning,
        budget=budget,
        closing=f"{message and chr(10) + message}\n{tags[1]}\n\n",
        tool_openings=tool_openings,
        keep_blanks=prompt.keep_blanks,
        prompt_side=prompt.prompt_side,
    )
