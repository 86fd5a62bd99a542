"""How much a request may bring and how long it may take to bring it, apart from what its JSON says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ktllama.server.errors import ApiError
from ktllama.server.notes import notes_of
from ktllama.server.refusal import CLOSE, refuse
from ktllama.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may take. `header_bytes` counts the request line too, `header_seconds` until its end.

    `body_seconds` is for the whole body. A client that takes nothing of its answer for `write_seconds` is cut. One that
    is refused and still sends is listened to for `linger_seconds`, so that it sees the answer instead of a reset
    connection.
    """

    body_bytes: int = 32 << 20
    #: Of all bodies that are coming in at the same time.
    all_bodies_bytes: int = 512 << 20
    header_bytes: int = 32 << 10
    connections: int = 4096
    header_seconds: float = 15.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    linger_seconds: float = 2.0


class BodyLimit:
    """ASGI middleware: reads a request's body before the application sees it, within the limits.

    Too large is 413, by the declared length at once, otherwise as soon as it is; too slow is 408. Where all that come
    in at the same time are too large together, the next piece makes its own request 503.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.incoming_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the body, or refuse."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        if (declared := _declared_bytes(scope)) is not None and declared > self.limits.body_bytes:
            await self._refuse_unread(self._too_large(), scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read(receive)
        except TimeoutError:
            notes_of(scope).error_code = "body_timeout"
            seconds = f"{self.limits.body_seconds:g}"
            await refuse(send, ApiError(408, f"the body took more than {seconds} s", code="body_timeout"), CLOSE)
            return
        except _GoneError:
            notes_of(scope).client_left = True
            return
        except _TooLargeError:
            await self._refuse_unread(self._too_large(), scope, receive, send)
            return
        except _TooMuchAtOnceError:
            error = ApiError(503, "too many bodies are coming in", code="too_many_bodies", retry_after=1)
            await self._refuse_unread(error, scope, receive, send)
            return
        await self.app(scope, _replayed(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        n_bytes = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                part = message.get("body", b"")
                n_bytes += len(part)
                self.incoming_bytes += len(part)
                if n_bytes > self.limits.body_bytes:
                    raise _TooLargeError
                if self.incoming_bytes > self.limits.all_bodies_bytes:
                    raise _TooMuchAtOnceError
                if part:
                    parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self.incoming_bytes -= n_bytes

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {format_bytes(self.limits.body_bytes)}")

    async def _refuse_unread(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        notes_of(scope).error_code = error.code
        await refuse(send, error, CLOSE, finish=False)
        if not _waits_for_permission(scope):
            await self._throw_away(receive)
        await send({"type": "http.response.body", "body": b""})

    async def _throw_away(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self.limits.linger_seconds):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass
        except TimeoutError:
            pass  # it goes on sending; the connection is closed on it


class _TooLargeError(Exception):
    """More bytes came than may."""


class _TooMuchAtOnceError(Exception):
    """More bytes are coming in than may, on all connections together."""


class _GoneError(Exception):
    """The client left before its body was whole."""


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _declared_bytes(scope: Scope) -> int | None:
    """``Content-Length``; the HTTP parser has refused what is no number, but may not be the one in front."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) <= 20 else None


def _waits_for_permission(scope: Scope) -> bool:
    """Whether the client sends no body before it is told to continue."""
    return Headers(scope=scope).get("expect", "").lower() == "100-continue"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that gives ``body`` whole, then what comes after it: the client's departure."""
    waiting = [body]  # given away with the message, or it would be held as long as the answer takes

    async def replay() -> Message:
        if not waiting:
            return await receive()
        return {"type": "http.request", "body": waiting.pop(), "more_body": False}

    return replay
