"""The log: one line an event, ``key=value`` or JSON, and one line a request, in which no prompt is.

Fields travel with a record as ``extra={"fields": {...}}``. A value that came from outside is quoted, so it can neither
begin a line nor move a cursor.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ktllama.server.errors import ApiError
from ktllama.server.notes import RequestNotes, keep_send, notes_of
from ktllama.server.refusal import refuse

_requests = logging.getLogger("ktllama.request")

#: Ids that a client may choose for its request, so that its log and ours meet.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII without space, quote and =
_LONGEST_BODY = 1 << 16
#: What a request is logged with whose client left before there was an answer; nginx's number for it.
CLIENT_LEFT = 499


def configure(level: str, form: Literal["json", "text"], stream: TextIO) -> None:
    """Send the log of ktllama and of uvicorn's errors to ``stream``; called once, by the command."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name in ("ktllama", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    if level != "debug":  # uvicorn and asyncio say little that we do not say ourselves
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        logging.getLogger("asyncio").setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …, …}``; a traceback is one field."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": _stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """``time level logger: message key=value …``; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback's."""
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        message = _harmless(record.getMessage())
        line = f"{_stamp(record.created)} {record.levelname.lower():7} {record.name}: {message}{fields}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info).splitlines()
            line = "\n".join([line, *(f"    {_harmless(part)}" for part in traceback)])
        return line


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = dict(getattr(record, "fields", {}))
    if (pid := getattr(record, "engine_pid", None)) is not None:
        found["engine_pid"] = pid
    return found


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _harmless(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


class RequestCounter(Protocol):
    """Who counts finished requests."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request ended with `status` after `seconds`; `path` is a route's, or ``other``."""


class RequestLog:
    """ASGI middleware, the outermost: names each request, logs one line when it has ended, and counts it.

    The name is the client's ``x-request-id`` if that is a plain word, and comes back under the same header. With
    ``log_prompts`` the line holds the body as well, up to 64 KiB of it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        counter: RequestCounter | None = None,
        log_prompts: bool = False,
    ) -> None:
        self.app = app
        self.counter = counter
        self.log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and write down what came of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        watched = _Watched(_request_id(scope), send)
        keep_send(scope, send)
        scope["state"] = {**scope.get("state", {}), "request_id": watched.request_id}
        body = bytearray()
        try:
            await self.app(scope, _kept(receive, body) if self.log_prompts else receive, watched.send)
        except Exception:
            _requests.exception("the application failed", extra={"fields": {"id": watched.request_id}})
            if watched.status is None:
                await refuse(watched.send, ApiError(500, "the server made a mistake; its log has the details"))
        finally:
            self._write_down(scope, watched, body)

    def _write_down(self, scope: Scope, watched: _Watched, body: bytearray) -> None:
        seconds = time.monotonic() - watched.began
        notes = notes_of(scope)
        status = notes.status or watched.status or CLIENT_LEFT
        path = scope["path"]
        if self.counter is not None:
            # the route that answered, which FastAPI puts there; not the path, of which clients can make any number
            self.counter.answered(getattr(scope.get("route"), "path", "other"), status, seconds)
        fields: dict[str, Any] = {"id": watched.request_id, "method": scope["method"], "path": path, "status": status}
        fields["seconds"] = round(seconds, 6)
        if watched.first is not None:
            fields["first_seconds"] = round(watched.first - watched.began, 6)
        fields |= noted(notes)
        if body:
            fields["body"] = bytes(body).decode(errors="replace")
        level = logging.WARNING if status >= 500 else logging.INFO
        if path == "/health" or (path == "/metrics" and status < 400):
            level = logging.DEBUG  # asked every few seconds by machines
        _requests.log(level, "request", extra={"fields": fields})


class _Watched:
    """A request's way back: its id goes along, its status is kept."""

    __slots__ = ("_send", "began", "first", "request_id", "status")

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.began = time.monotonic()
        self.first: float | None = None
        self.status: int | None = None
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        elif self.first is None and message.get("body"):
            self.first = time.monotonic()
        await self._send(message)


def noted(notes: RequestNotes) -> dict[str, Any]:
    """What the endpoint noted, without what is empty."""
    found: dict[str, Any] = {}
    for name in ("model", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"):
        if value := getattr(notes, name):
            found[name] = value
    if notes.choices > 1:
        found["choices"] = notes.choices
    if notes.stream:
        found["stream"] = "yes"
    if notes.finish_reasons:
        found["finish"] = ",".join(notes.finish_reasons)
    if notes.error_code:
        found["error"] = notes.error_code
    if notes.client_left and notes.status is None:
        found["client"] = "left"
    return found


def _request_id(scope: MutableMapping[str, Any]) -> str:
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode())
    return f"req-{secrets.token_hex(12)}"


def _kept(receive: Receive, body: bytearray) -> Callable[[], Any]:
    async def keeping() -> Message:
        message = await receive()
        if message["type"] == "http.request" and len(body) < _LONGEST_BODY:
            body.extend(message.get("body", b"")[: _LONGEST_BODY - len(body)])
        return message

    return keeping
