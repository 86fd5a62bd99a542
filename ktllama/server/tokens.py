"""POST /tokenize, /detokenize and /apply-template: what the model sees."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ktllama.engine.errors import EngineRequestError
from ktllama.engine.messages import Segment, Tokenized
from ktllama.server.bodies import check_lengths, read_body
from ktllama.server.description import body_of
from ktllama.server.errors import from_refused
from ktllama.server.model_names import check_model
from ktllama.server.prompting import drop_unhonoured, reasoning_budget, rendered, thinks
from ktllama.server.protocol.chat import ChatRequest
from ktllama.server.protocol.tokens import DetokenizeRequest, TokenizeRequest
from ktllama.server.responding import ignored_header
from ktllama.server.state import server_state

router = APIRouter()
_AT_ONCE = 4096


@router.post("/tokenize", **body_of("tokens", "Text to token ids", "TokenizeRequest", "Tokens"))
async def tokenize(request: Request) -> Response:
    """Text to token ids."""
    state = server_state(request)
    limits = state.settings.limits
    body, left_out = await read_body(request, TokenizeRequest, limits, lenient=state.settings.lenient)
    check_lengths({"content": (len(body.content.encode(errors="replace")), limits.text_bytes)})
    segment = Segment(body.content, special=body.parse_special is not False)
    try:
        made = await state.client.tokenize(
            (segment,) if body.content else (),
            add_bos=bool(body.add_special),
            with_pieces=bool(body.with_pieces),
        )
    except EngineRequestError as error:
        raise from_refused(error) from error
    tokens = await with_pieces(made) if body.with_pieces else made.tokens
    return _answer({"tokens": tokens}, left_out)


async def with_pieces(made: Tokenized) -> msgspec.Raw:
    """Each token with its text, as JSON. Others have a turn in between: a million tokens take seconds."""
    parts = []
    for start in range(0, len(made.tokens), _AT_ONCE):
        span = slice(start, start + _AT_ONCE)
        each = zip(made.tokens[span], made.pieces[span], strict=True)
        parts.append(msgspec.json.encode([{"id": id, "piece": _piece(piece)} for id, piece in each])[1:-1])
        await asyncio.sleep(0)
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize", **body_of("tokens", "Token ids to text", "DetokenizeRequest", "Text"))
async def detokenize(request: Request) -> Response:
    """Token ids to text; bytes that are no UTF-8 become U+FFFD."""
    state = server_state(request)
    body, left_out = await read_body(request, DetokenizeRequest, state.settings.limits, lenient=state.settings.lenient)
    try:
        text = await state.client.detokenize(body.tokens)
    except EngineRequestError as error:
        raise from_refused(error) from error
    return _answer({"content": text.decode(errors="replace")}, left_out)


@router.post(
    "/apply-template", **body_of("tokens", "The prompt that a chat request becomes", "ChatRequest", "RenderedPrompt")
)
async def apply_template(request: Request) -> Response:
    """The prompt that a chat request becomes, as the model would get it; nothing is generated.

    The body is the chat request's own. What does not change the prompt is checked, and changes nothing here.
    """
    state = server_state(request)
    limits = state.settings.limits
    body, left_out = await read_body(request, ChatRequest, limits, lenient=state.settings.lenient)
    check_model(state, body.model)
    left_out += drop_unhonoured(state, body)
    prompt = rendered(state, body, think=thinks(body, reasoning_budget(state, body)))
    made = {"prompt": prompt.text, "thinking": prompt.thinking, "begins_inside": prompt.start_in_reasoning}
    return _answer(made, left_out)


def _answer(made: dict[str, Any], left_out: list[str]) -> Response:
    return Response(msgspec.json.encode(made), headers=ignored_header(left_out), media_type="application/json")
