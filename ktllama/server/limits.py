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

    `body_seconds` is for the whole body. A refused client that still sends is listened to for `linger_seconds`, so that
    it sees the answer instead of a reset connection.
    """

    body_bytes: int = 32 << 20
    header_bytes: int = 32 << 10
    connections: int = 4096
    header_seconds: float = 15.0
    body_seconds: float = 60.0
    linger_seconds: float = 2.0


class BodyLimit:
    """ASGI middleware: reads a request's body before the application sees it, within the limits.

    Too large is 413, by the declared length at once, otherwise as soon as it is; too slow is 408.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the body, or refuse."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        if (declared := _declared_bytes(scope)) is not None and declared > self.limits.body_bytes:
            await self._refuse_large(scope, receive, send)
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
            await self._refuse_large(scope, receive, send)
            return
        await self.app(scope, _replayed(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        n_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            part = message.get("body", b"")
            n_bytes += len(part)
            if n_bytes > self.limits.body_bytes:
                raise _TooLargeError
            if part:
                parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _refuse_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes_of(scope).error_code = "body_too_large"
        message = f"the body is larger than {format_bytes(self.limits.body_bytes)}"
        await refuse(send, ApiError(413, message), CLOSE, finish=False)
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
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
