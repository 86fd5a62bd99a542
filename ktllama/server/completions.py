"""POST /v1/completions: raw text in, raw text out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ktllama.engine.errors import EngineRequestError
from ktllama.engine.messages import Generate, Segment, TokenLogprob, Usage
from ktllama.server import usage
from ktllama.server.bodies import check_lengths, read_body
from ktllama.server.chat_answer import Head
from ktllama.server.deltas import ChoiceDelta, ChoiceEnded, ChoiceReader, TextAdded
from ktllama.server.description import body_of
from ktllama.server.errors import from_refused
from ktllama.server.event_stream import DONE
from ktllama.server.logprobs import legacy_logprobs
from ktllama.server.model_names import check_model
from ktllama.server.notes import RequestNotes, notes_of
from ktllama.server.profile_sampling import defaults
from ktllama.server.protocol.completion import CompletionRequest, each_prompt
from ktllama.server.responding import respond
from ktllama.server.running import Choice, Running
from ktllama.server.state import ServerState, server_state

router = APIRouter()

_json = msgspec.json.encode
#: OpenAI's, for this endpoint.
DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlan:
    """A request, understood. `echoes` holds a choice's prompt where the answer begins with it, else an empty text."""

    head: Head
    choices: tuple[Choice, ...]
    echoes: tuple[str, ...]
    n: int
    logprobs: bool
    include_usage: bool


@router.post(
    "/v1/completions", **body_of("answers", "Continue a text", "CompletionRequest", "TextCompletion", streams=True)
)
@router.post("/completions", include_in_schema=False)
@router.post("/beta/completions", include_in_schema=False)
async def completions(request: Request) -> Response:
    """Continue a text, or several, without chat template, whole or as an event stream."""
    state = server_state(request)
    limits = state.settings.limits
    body, left_out = await read_body(request, CompletionRequest, limits, lenient=state.settings.lenient)
    prompts = each_prompt(body.prompt)
    n = body.n or 1
    check_lengths({"n": (n * len(prompts), limits.choices_of_prompts)})
    check_model(state, body.model)
    plan = await _planned(state, body, prompts)
    notes = notes_of(request.scope)
    notes.model, notes.stream, notes.choices = plan.head.model, bool(body.stream), len(plan.choices)
    running = Running(state, plan.choices, prompt_field="prompt")
    return await respond(
        request,
        running,
        writer=_TextWriter(plan, notes) if body.stream else None,
        whole=lambda: _whole(plan, running, notes),
        left_out=left_out,
    )


async def _planned(state: ServerState, body: CompletionRequest, prompts: Sequence[str | tuple[int, ...]]) -> TextPlan:
    head = Head(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=state.model_name,
        system_fingerprint=state.fingerprint,
    )
    n = body.n or 1
    echoes = [await _text_of(state, prompt) if body.echo else "" for prompt in prompts]
    choices = []
    for place, prompt in enumerate(prompts):
        for index in range(n):
            number = place * n + index
            generate = _generate(state, body, prompt, f"{head.id}-{number}", index)
            choices.append(Choice(generate=generate, reader=ChoiceReader(number, raw=True)))
    return TextPlan(
        head=head,
        choices=tuple(choices),
        echoes=tuple(echo for echo in echoes for _ in range(n)),
        n=n,
        logprobs=body.logprobs is not None,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _generate(
    state: ServerState, body: CompletionRequest, prompt: str | tuple[int, ...], request_id: str, index: int
) -> Generate:
    asked = Generate(
        request_id=request_id,
        max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=body.sampling(defaults(state.profile), index),
        stop=body.stops(),
        grammar=body.grammar or "",
        logprobs=body.logprobs,
        ignore_eos=bool(body.ignore_eos),
        deterministic=bool(body.deterministic),
        raw=True,
        cache_prompt=body.cache_prompt is not False,
    )
    if isinstance(prompt, tuple):
        return msgspec.structs.replace(asked, tokens=prompt)
    model = state.model
    add_bos = model.add_bos and not (model.bos and prompt.startswith(model.bos))
    segments = (Segment(prompt, special=True),) if prompt else ()
    return msgspec.structs.replace(asked, prompt=segments, add_bos=add_bos)


async def _text_of(state: ServerState, prompt: str | tuple[int, ...]) -> str:
    if isinstance(prompt, str):
        return prompt
    try:
        return (await state.client.detokenize(prompt)).decode(errors="replace")
    except EngineRequestError as error:
        raise from_refused(error) from error


class _TextChunks:
    """Encodes deltas as `text_completion` events; see ChatChunks."""

    def __init__(self, plan: TextPlan) -> None:
        self._members = _json(plan.head.members("text_completion"))[:-1] + b',"choices":['
        self._event = b"data: " + self._members
        self._tail = b',"usage":null}\n\n' if plan.include_usage else b"}\n\n"
        self._before = [self._event + b'{"index":%d,"text":' % index for index in range(len(plan.choices))]
        self._after = b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._offsets = [len(echo) for echo in plan.echoes]

    def text(self, index: int, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """An event with text."""
        if not logprobs:
            return self._before[index] + _json(text) + self._after
        made = _json(legacy_logprobs(logprobs, self._offsets[index]))
        self._offsets[index] += sum(len(token.piece.decode(errors="replace")) for token in logprobs)
        end = b',"finish_reason":null}]' + self._tail
        return self._before[index] + _json(text) + b',"logprobs":' + made + end

    def encoded(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """The events that these deltas are."""
        return b"".join([self._chunk(delta) for delta in deltas])

    def _chunk(self, delta: ChoiceDelta) -> bytes:
        if isinstance(delta, TextAdded):
            return self.text(delta.index, delta.text, delta.logprobs)
        assert isinstance(delta, ChoiceEnded), "a raw answer has no tool calls"
        remarks = b"" if delta.remarks is None else b',"ktllama":' + _json(delta.remarks)
        reason = _json(delta.finish_reason)
        return (
            self._before[delta.index] + b'"","logprobs":null,"finish_reason":' + reason + remarks + b"}]" + self._tail
        )

    def usage(self, total: Usage) -> bytes:
        """The last chunk, where usage was asked for."""
        return self._event + b'],"usage":' + _json(usage.as_json(total)) + b"}\n\n"


class _TextWriter:
    """Writes an answer as `text_completion` events."""

    def __init__(self, plan: TextPlan, notes: RequestNotes) -> None:
        self._plan = plan
        self._chunks = _TextChunks(plan)
        self._notes = notes
        self._ended: dict[int, ChoiceEnded] = {}

    def opening(self) -> bytes:
        """The prompts, where they are echoed."""
        return b"".join(self._chunks.text(index, echo) for index, echo in enumerate(self._plan.echoes) if echo)

    def encoded(self, deltas: list[ChoiceDelta]) -> bytes:
        """The events of some deltas."""
        if deltas and isinstance(deltas[-1], ChoiceEnded):
            self._ended[deltas[-1].index] = deltas[-1]
        return self._chunks.encoded(deltas)

    def closing(self) -> bytes:
        """The usage, where it was asked for, and the end."""
        ended = self._ended
        total = _total(self._plan, ended)
        usage.note(self._notes, total, (ended[index].finish_reason for index in sorted(ended)))
        return (self._chunks.usage(total) if self._plan.include_usage else b"") + DONE


def _total(plan: TextPlan, ended: dict[int, ChoiceEnded]) -> Usage:
    each = [ended[index].usage for index in range(len(plan.choices))]
    return usage.added(usage.total(each[start : start + plan.n]) for start in range(0, len(each), plan.n))


async def _whole(plan: TextPlan, running: Running, notes: RequestNotes) -> bytes:
    folds = [_TextFold(echo) for echo in plan.echoes]
    while (deltas := await running.gained()) is not None:
        for delta in deltas:
            folds[delta.index].add(delta)
    ended = {index: fold.ended for index, fold in enumerate(folds) if fold.ended is not None}
    total = _total(plan, ended)
    usage.note(notes, total, (ended[index].finish_reason for index in sorted(ended)))
    choices = [fold.choice(index, with_logprobs=plan.logprobs) for index, fold in enumerate(folds)]
    return _json({**plan.head.members("text_completion"), "choices": choices, "usage": usage.as_json(total)})


class _TextFold:
    """Collects the deltas of one choice."""

    def __init__(self, echo: str) -> None:
        self._echo = echo
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.ended: ChoiceEnded | None = None

    def add(self, delta: ChoiceDelta) -> None:
        """Take one delta."""
        if isinstance(delta, TextAdded):
            self._texts.append(delta.text)
            self._logprobs += delta.logprobs
        elif isinstance(delta, ChoiceEnded):
            self.ended = delta

    def choice(self, index: int, *, with_logprobs: bool) -> dict[str, Any]:
        """The choice as JSON members."""
        assert self.ended is not None, "a fold of an unfinished stream"
        made: dict[str, Any] = {
            "index": index,
            "text": self._echo + "".join(self._texts),
            "logprobs": legacy_logprobs(self._logprobs, len(self._echo)) if with_logprobs else None,
            "finish_reason": self.ended.finish_reason,
        }
        return made if self.ended.remarks is None else {**made, "ktllama": self.ended.remarks}
