"""Errors as OpenAI's clients know them: a status and `{"error": {message, type, param, code}}`, made in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ktllama.engine.errors import EngineRequestError
from ktllama.engine.messages import FAILURES, Failed
from ktllama.errors import KtllamaError
from ktllama.server.notes import notes_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request


# OpenAI's `type` by status; anything else from 400 on is the caller's, from 500 on ours.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
# The codes of errors that carry none of their own.
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    500: "internal_error",
}
# What the engine calls by its own name: the field of a request that it came from.
_FIELDS = {"json_schema": "response_format.json_schema.schema"}
# Codes that say it better to callers than the engine's own.
_FAILURE_CODES = {"loading": "model_loading"}
RETRY_SECONDS = 2


class ApiError(KtllamaError):
    """A request that is answered with an error. `param` is the field's path, `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.param = param
        self.code = code or _CODES.get(status)
        self.retry_after = retry_after
        super().__init__(status, message)

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        """The envelope, as JSON."""
        kind = _TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def headers(self) -> dict[str, str]:
        """`Retry-After` where the caller should come back."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}

    def response(self) -> Response:
        """The answer that says so."""
        return Response(self.body(), self.status, self.headers(), media_type="application/json")


def from_failed(failed: Failed, *, prompt_field: str | None = None) -> ApiError:
    """What the engine's refusal or death is to the caller, whose prompt is in `prompt_field` of the request."""
    status = FAILURES.get(failed.code, 500)
    given = failed.fields.get("retry_after")
    retry_after = float(given) if isinstance(given, int | float) else (RETRY_SECONDS if status in (429, 503) else None)
    field = failed.fields.get("field")
    message = failed.message
    if failed.code == "context_length_exceeded":
        message, field = _context_length(failed) or message, prompt_field
    return ApiError(
        status,
        message,
        param=_FIELDS.get(field, field) if isinstance(field, str) else None,
        code=_FAILURE_CODES.get(failed.code, failed.code),
        retry_after=retry_after,
    )


def from_refused(error: EngineRequestError, *, prompt_field: str | None = None) -> ApiError:
    """The same, of a call that is answered at once."""
    failed = Failed(request_id="", code=error.code, message=error.message, fields=error.fields)
    return from_failed(failed, prompt_field=prompt_field)


def _context_length(failed: Failed) -> str | None:
    n_ctx, prompt = (failed.fields.get(name) for name in ("n_ctx", "prompt_tokens"))
    if n_ctx is None or prompt is None:
        return None
    at_least = "at least " if "at_least" in failed.fields else ""
    return (
        f"this model's context is {n_ctx} tokens, but the prompt has {at_least}{prompt} tokens; "
        "shorten it or start the server with a larger --ctx"
    )


def install(app: FastAPI) -> None:
    """Every error that leaves `app` is in the envelope, those of the framework included."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        notes_of(request.scope).error_code = error.code
        return error.response()

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        made = ApiError(error.status_code, _framework_message(request, error))
        notes_of(request.scope).error_code = made.code
        response = made.response()
        response.headers.update(error.headers or {})
        return response

    async def ours(request: Request, _: Exception) -> Response:
        notes_of(request.scope).error_code = "internal_error"
        return ApiError(500, "the server made a mistake; its log has the details").response()

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, ours)


def _framework_message(request: Request, error: HTTPException) -> str:
    path = request.url.path
    if error.status_code == 404:
        return f"there is no endpoint {request.method} {path}; /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{path} takes {allowed}, not {request.method}"
    return str(error.detail)
