"""Server-sent events as plain ASGI: one send a piece, comments through silences, an error event at the end."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ktllama.server.deltas import ChoiceDelta
from ktllama.server.errors import ApiError
from ktllama.server.notes import notes_of, short_send
from ktllama.server.presence import gone
from ktllama.server.running import Running

_log = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Writes one answer as events; each piece is whole events, and may be empty."""

    def opening(self) -> bytes:
        """What comes before any delta."""

    def encoded(self, deltas: list[ChoiceDelta]) -> bytes:
        """The events of some deltas."""

    def closing(self) -> bytes:
        """What comes behind the last."""


class EventStream(Response):
    """Sends what `writer` makes of what `running` gains, which is open and is closed at the end whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, running: Running, writer: Writer, *, keep_alive_seconds: float, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        # X-Accel-Buffering: nginx would hold events back
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self._running = running
        self._writer = writer
        self._keep_alive_seconds = keep_alive_seconds
        self._silent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream to the end, or to the client's."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            pumping = asyncio.create_task(self._pump(scope, send))
            ticking = asyncio.create_task(self._tick(send))
            watching = asyncio.create_task(gone(receive))
            tasks = [pumping, ticking, watching]
            await asyncio.wait((pumping, watching), return_when=asyncio.FIRST_COMPLETED)
            ticking.cancel()
            if pumping.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                notes_of(scope).client_left = True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._running.close()

    async def _pump(self, scope: Scope, send: Send) -> None:
        try:
            running, writer = self._running, self._writer
            piece = writer.opening()
            while True:
                if piece:
                    self._silent = False
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    send = short_send(scope, send)
                if (deltas := await running.gained()) is None:
                    break
                piece = writer.encoded(deltas)
            await send({"type": "http.response.body", "body": writer.closing(), "more_body": True})
        except ApiError as error:
            await self._send_error(scope, send, error)
        except OSError:
            notes_of(scope).client_left = True
        except Exception:
            # the status line is long gone: all that can be said is an event
            _log.exception("a stream failed")
            await self._send_error(scope, send, ApiError(500, "the server made a mistake; its log has the details"))

    @staticmethod
    async def _send_error(scope: Scope, send: Send, error: ApiError) -> None:
        notes_of(scope).error_code = error.code
        await send({"type": "http.response.body", "body": b"data: " + error.body() + b"\n\n", "more_body": True})

    async def _tick(self, send: Send) -> None:
        """A comment whenever nothing was sent for as long as `keep_alive_seconds`, so that proxies do not give up."""
        while True:
            self._silent = True
            await asyncio.sleep(self._keep_alive_seconds)
            if self._silent:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
