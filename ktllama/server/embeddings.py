"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ktllama.engine.errors import EngineRequestError
from ktllama.server.bodies import check_lengths, read_body
from ktllama.server.description import body_of
from ktllama.server.errors import ApiError, from_refused
from ktllama.server.model_names import check_model
from ktllama.server.notes import notes_of
from ktllama.server.presence import ClientGoneError, unless_gone
from ktllama.server.protocol.completion import each_prompt
from ktllama.server.protocol.embedding import EmbeddingRequest
from ktllama.server.responding import ignored_header
from ktllama.server.state import server_state

router = APIRouter()


@router.post("/v1/embeddings", **body_of("answers", "Texts to vectors", "EmbeddingRequest", "EmbeddingList"))
@router.post("/embeddings", include_in_schema=False)
async def embeddings(request: Request) -> Response:
    """Vectors of unit length, one an input, where the model can make them."""
    state = server_state(request)
    body, left_out = await read_body(request, EmbeddingRequest, state.settings.limits, lenient=state.settings.lenient)
    inputs = each_prompt(body.input)
    check_lengths({"input": (len(inputs), state.settings.limits.prompts)})
    if any(not given for given in inputs):
        raise ApiError(400, "input: must not be empty", param="input", code="invalid_value")
    check_model(state, body.model)
    if not state.model.can_embed:
        raise ApiError(400, f"the model {state.model_name} makes no embeddings", param="model", code="not_supported")
    try:
        made = await unless_gone(request.receive, state.client.embed(inputs))
    except EngineRequestError as error:
        raise from_refused(error, prompt_field="input") from error
    except ClientGoneError:
        notes_of(request.scope).client_left = True
        return Response(status_code=499)
    _check_dimensions(body.dimensions, made.vectors)
    notes = notes_of(request.scope)
    notes.model, notes.prompt_tokens = state.model_name, made.prompt_tokens
    as_text = body.encoding_format == "base64"
    answer = {
        "object": "list",
        "model": state.model_name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector}
            for index, vector in enumerate(made.vectors)
        ],
        "usage": {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens},
    }
    return Response(msgspec.json.encode(answer), headers=ignored_header(left_out), media_type="application/json")


def _check_dimensions(wanted: int | None, vectors: Sequence[Sequence[float]]) -> None:
    n_dimensions = len(vectors[0])
    if wanted is not None and wanted != n_dimensions:
        raise ApiError(
            400,
            f"dimensions: this model's vectors have {n_dimensions}; they cannot be made {wanted}",
            param="dimensions",
            code="unsupported_value",
        )


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
