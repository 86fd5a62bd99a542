"""uvicorn's HTTP/1.1 protocol with what it leaves out: limits on headers, on slow clients and on connections.

uvicorn 0.54 (protocols/http/httptools_impl.py) keeps whatever headers come, waits for them without end, refuses a
malformed request with plain text, in the middle of another answer if need be, takes several Host headers, loses the
body of a request that would rather speak HTTP/2, and waits without end for a client that does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ktllama.server.delivery import Delivery
from ktllama.server.errors import ApiError
from ktllama.server.http10 import without_chunks
from ktllama.server.limits import Limits
from ktllama.server.notes import notes_of
from ktllama.server.refusal import CLOSE, header_bytes
from ktllama.server.upgrades import head_without_upgrade

#: ``: `` and the end of the line.
_PUNCTUATION = 4


def limited(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class under ``limits``; uvicorn makes one object of it a connection."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A request that brings nothing new for `header_bytes` bytes is refused with 431.

    New is: the end of the headers, a piece of the body, the end of the message. So an endless header line, endless
    headers and endless trailers are all cut, whatever the parser has kept of them so far.
    """

    limits = Limits()

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self._stale_bytes = 0
        self._header_bytes = 0
        self._in_head = True
        self._refused = False
        self._head_deadline: asyncio.TimerHandle | None = None
        self._asks_for_upgrade = False
        self._delivery: Delivery  # from connection_made on

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, unless there are too many."""
        super().connection_made(transport)
        self._delivery = Delivery(transport, self.loop, self.limits.write_seconds)
        if len(self.connections) > self.limits.connections:
            self._refuse(ApiError(503, "too many connections", code="too_many_connections", retry_after=1))
            transport.close()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of it."""
        self._forget_deadline()
        self._delivery.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, within the limits."""
        if self._refused:
            return
        if self._in_head and self._head_deadline is None:
            self._await_head()
        self._stale_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        if self._stale_bytes > self.limits.header_bytes:
            self._refuse_head()

    def _parse(self, data: bytes) -> None:
        """Feed the parser; a head that asks for another protocol is fed to a new one, as if it had not."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as switch:
                if not self._asks_for_upgrade:  # refused, or CONNECT
                    return
                rest = rest[switch.args[0] :]
            self._asks_for_upgrade = False
            old = self.parser
            head = head_without_upgrade(old.get_method(), self.url, old.get_http_version(), self.headers)
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(head)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        self._delivery.watch()

    def resume_writing(self) -> None:
        """The client has read most of it."""
        super().resume_writing()
        self._delivery.end()

    def on_response_complete(self) -> None:
        """The end of an answer, the last of which may still be here."""
        super().on_response_complete()
        self._delivery.watch()

    def on_message_begin(self) -> None:
        """The first byte of a request line."""
        super().on_message_begin()
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        super().on_url(url)
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer; trailers are not looked at."""
        self._header_bytes += len(name) + len(value) + _PUNCTUATION
        if self._in_head and self._header_bytes <= self.limits.header_bytes:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request may begin."""
        if self._header_bytes > self.limits.header_bytes:
            self._refuse_head()
        elif self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._asks_for_upgrade = True
            return
        self._in_head = False
        self._stale_bytes = 0
        self._forget_deadline()
        if self._refused:
            return
        if sum(name == b"host" for name, _ in self.headers) > 1:  # RFC 9112, 3.2
            self._refuse(ApiError(400, "the request has more than one Host header", code="malformed_http"))
        else:
            self._delivery.settle()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._stale_bytes = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of the request; what comes now is another one's head."""
        if self._asks_for_upgrade:  # so it is for a parser that gives the rest away
            return
        self._stale_bytes = 0
        self._in_head = True
        if not self._refused:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in our envelope."""
        self._refuse(ApiError(400, msg, code="malformed_http"))

    def _await_head(self) -> None:
        self._head_deadline = self.loop.call_later(self.limits.header_seconds, self._head_is_late)

    def _forget_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_is_late(self) -> None:
        self._head_deadline = None
        if self._answering:
            self._await_head()  # a request behind another: its turn comes first
        else:
            seconds = f"{self.limits.header_seconds:g}"
            self._refuse(ApiError(408, f"the headers took more than {seconds} s", code="header_timeout"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse_head(self) -> None:
        message = f"request line and headers are larger than {self.limits.header_bytes} bytes"
        self._refuse(ApiError(431, message, code="headers_too_large"))

    def _refuse(self, error: ApiError) -> None:
        """Answer and hang up. Where another answer is on its way, hang up behind it: two cannot be told apart.

        A client that is still sending would lose the answer to a reset connection, so it is heard out for a while.
        """
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._forget_deadline()
        if self._answering and not self._takes_over(error):
            self.cycle.keep_alive = False
            return
        self.transport.write(_raw(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._delivery.watch()
        self._head_deadline = self.loop.call_later(self.limits.linger_seconds, self.transport.close)

    def _takes_over(self, error: ApiError) -> bool:
        """Whether `error` is the answer to the request whose body is coming in: then its application is let go."""
        cycle = self.cycle
        if self.pipeline or cycle.response_started or not cycle.more_body:
            return False
        notes = notes_of(cast(MutableMapping[str, Any], cycle.scope))
        notes.status, notes.error_code = error.status, error.code
        cycle.disconnected = True
        cycle.message_event.set()
        return True


def _raw(error: ApiError) -> bytes:
    """The whole answer as bytes."""
    head = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode())]
    head += [name + b": " + value for name, value in header_bytes(error, (CLOSE,))]
    return b"\r\n".join([*head, b"", error.body()])
