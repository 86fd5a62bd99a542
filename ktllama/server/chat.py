"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ktllama.engine.messages import Generate
from ktllama.r1.tool_calls import ToolCallParser
from ktllama.server import usage
from ktllama.server.bodies import check_lengths, read_body
from ktllama.server.chat_answer import ChatChunks, Head, folded, whole
from ktllama.server.constraints import Constraint, constraint
from ktllama.server.deltas import ChoiceDelta, ChoiceEnded, ChoiceReader
from ktllama.server.description import body_of
from ktllama.server.event_stream import DONE
from ktllama.server.model_names import check_model
from ktllama.server.notes import RequestNotes, notes_of
from ktllama.server.profile_sampling import defaults
from ktllama.server.prompting import drop_unhonoured, reasoning_budget, rendered, segments, thinking, thinks
from ktllama.server.protocol.chat import ChatRequest
from ktllama.server.responding import respond
from ktllama.server.running import Choice, Running
from ktllama.server.state import ReasoningFormat, ServerState, server_state

router = APIRouter()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlan:
    """A request, understood: what the engine is asked, and how the answer is written."""

    head: Head
    choices: tuple[Choice, ...]
    shows_reasoning: bool
    logprobs: bool
    include_usage: bool


@router.post(
    "/v1/chat/completions", **body_of("answers", "Answer a conversation", "ChatRequest", "ChatCompletion", streams=True)
)
# DeepSeek's base addresses are https://api.deepseek.com and https://api.deepseek.com/beta
@router.post("/chat/completions", include_in_schema=False)
@router.post("/beta/chat/completions", include_in_schema=False)
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as an event stream."""
    state = server_state(request)
    limits = state.settings.limits
    body, left_out = await read_body(request, ChatRequest, limits, lenient=state.settings.lenient)
    check_lengths({"n": (body.n or 1, limits.choices)})
    check_model(state, body.model)
    left_out += drop_unhonoured(state, body)
    plan = planned(state, body)
    notes = notes_of(request.scope)
    notes.model, notes.stream, notes.choices = plan.head.model, bool(body.stream), len(plan.choices)
    running = Running(state, plan.choices, prompt_field="messages")
    return await respond(
        request,
        running,
        writer=_ChatWriter(plan, notes) if body.stream else None,
        whole=lambda: _whole(plan, running, notes),
        left_out=left_out,
    )


class _ChatWriter:
    """Writes an answer as `chat.completion.chunk` events."""

    def __init__(self, plan: ChatPlan, notes: RequestNotes) -> None:
        self._chunks = ChatChunks(
            plan.head,
            n_choices=len(plan.choices),
            shows_reasoning=plan.shows_reasoning,
            include_usage=plan.include_usage,
        )
        self._include_usage = plan.include_usage
        self._notes = notes
        self._ended: list[ChoiceEnded] = []

    def opening(self) -> bytes:
        """The role."""
        return self._chunks.opening()

    def encoded(self, deltas: list[ChoiceDelta]) -> bytes:
        """The events of some deltas."""
        if deltas and isinstance(deltas[-1], ChoiceEnded):
            self._ended.append(deltas[-1])
        return self._chunks.encoded(deltas)

    def closing(self) -> bytes:
        """The usage, where it was asked for, and the end."""
        total = usage.total(end.usage for end in self._ended)
        usage.note(self._notes, total, (end.finish_reason for end in self._ended))
        return (self._chunks.usage(total) if self._include_usage else b"") + DONE


async def _whole(plan: ChatPlan, running: Running, notes: RequestNotes) -> bytes:
    deltas: list[ChoiceDelta] = []
    while (gained := await running.gained()) is not None:
        deltas += gained
    folds = folded(deltas, len(plan.choices))
    ended = [choice.ended for choice in folds if choice.ended is not None]
    total = usage.total(end.usage for end in ended)
    usage.note(notes, total, (end.finish_reason for end in ended))
    return whole(plan.head, folds, shows_reasoning=plan.shows_reasoning, logprobs=plan.logprobs, total=total)


def planned(state: ServerState, body: ChatRequest) -> ChatPlan:
    """What the engine will be asked for `body`. Raises ApiError for what cannot be honoured."""
    head = Head(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=state.model_name,
        system_fingerprint=state.fingerprint,
    )
    reasoning_format = body.reasoning_format or state.settings.reasoning_format
    limit = constraint(state.profile, body)
    template = _generate(state, body, head.id, reasoning_format, limit)
    return ChatPlan(
        head=head,
        choices=tuple(_choice(state, body, template, index, limit) for index in range(body.n or 1)),
        shows_reasoning=reasoning_format != "none",
        logprobs=bool(body.logprobs),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _generate(
    state: ServerState, body: ChatRequest, request_id: str, reasoning_format: ReasoningFormat, limit: Constraint
) -> Generate:
    budget = reasoning_budget(state, body)
    prompt = rendered(state, body, think=thinks(body, budget))
    return Generate(
        request_id=request_id,
        prompt=segments(prompt),
        add_bos=not prompt.begins_with_bos and state.model.add_bos,
        max_tokens=body.max_tokens or body.max_completion_tokens or state.settings.default_max_tokens,
        thinking=thinking(state, prompt, body, budget, limit.tool_openings),
        stop=body.stops(),
        grammar=limit.grammar,
        json_schema=limit.json_schema,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ignore_eos=bool(body.ignore_eos),
        deterministic=bool(body.deterministic),
        raw=reasoning_format == "none",
        legacy=reasoning_format == "deepseek-legacy",
        cache_prompt=body.cache_prompt is not False,
        keep_partial_thinking_as_content=body.unclosed_thinking == "content",
        one_call=limit.tool_format if body.parallel_tool_calls is False else None,
    )


def _choice(
    state: ServerState,
    body: ChatRequest,
    template: Generate,
    index: int,
    limit: Constraint,
) -> Choice:
    request_id = f"{template.request_id}-{index}"
    generate = msgspec.structs.replace(
        template, request_id=request_id, sampling=body.sampling(defaults(state.profile), index)
    )
    tools = None
    if limit.tool_format is not None:
        tools = ToolCallParser(limit.tool_format, id_prefix=f"call_{uuid.uuid4().hex[:12]}_")
    return Choice(
        generate=generate,
        reader=ChoiceReader(index, raw=template.raw, tools=tools, one_call=body.parallel_tool_calls is False),
    )
