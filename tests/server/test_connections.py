"""HTTP as other programs speak it: asking for HTTP/2, of version 1.0, and without reading what they get."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from starlette.types import Message, Receive, Scope, Send

from ktllama.server.delivery import Delivery
from ktllama.server.limits import BodyLimit, Limits
from ktllama.server.upgrades import head_without_upgrade
from tests.server.listening import connected, everything, listening

LIMITS = Limits(body_bytes=10_000, header_bytes=2000, linger_seconds=5)
HASTY = Limits(write_seconds=0.2)


async def tells(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what came, as JSON of a declared length."""
    body = (await receive())["body"].decode()
    names = sorted(name.decode() for name, _ in scope["headers"])
    told = json.dumps({"method": scope["method"], "path": scope["path"], "headers": names, "body": body}).encode()
    headers = [(b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


async def streams(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in pieces, of a length that nobody knows before."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in (b"one ", b"", b"two "):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"three"})


def told(raw: bytes) -> list[dict[str, Any]]:
    """The answers of `tells`, one behind the other."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        n_bytes = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append(json.loads(rest[:n_bytes]))
        raw = rest[n_bytes:]
    return found


# ── another protocol ─────────────────────────────────────────────────────────────────────────────────────────────

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
ASKING = b"POST /a HTTP/1.1\r\nHost: a\r\n" + H2C + b"Content-Length: 5\r\n\r\nhello"
LAST = b"GET /z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POSTED = {"method": "POST", "path": "/a", "headers": ["content-length", "host"], "body": "hello"}
GOTTEN = {"method": "GET", "path": "/z", "headers": ["connection", "host"], "body": ""}


def test_a_request_that_asks_for_http2_is_answered_in_this_one_and_so_is_the_next() -> None:
    with listening(BodyLimit(tells, LIMITS), LIMITS) as port, connected(port) as connection:
        connection.sendall(ASKING + ASKING + LAST)
        assert told(everything(connection)) == [POSTED, POSTED, GOTTEN]


def test_it_may_come_in_any_two_pieces() -> None:
    with listening(BodyLimit(tells, LIMITS), LIMITS) as port:
        for cut in range(1, len(ASKING)):
            with connected(port) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(ASKING[:cut])
                connection.sendall(ASKING[cut:] + LAST)
                assert told(everything(connection)) == [POSTED, GOTTEN]


def test_chunks_behind_it_are_read_and_a_websocket_is_a_request() -> None:
    chunked = (
        b"POST /a HTTP/1.1\r\nHost: a\r\n" + H2C + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    )
    websocket = b"GET /z HTTP/1.1\r\nHost: a\r\n" + WEBSOCKET + b"\r\n"
    with listening(BodyLimit(tells, LIMITS), LIMITS) as port, connected(port) as connection:
        connection.sendall(chunked + websocket + LAST)
        answers = told(everything(connection))

    assert answers == [
        {**POSTED, "headers": ["host", "transfer-encoding"]},
        {**GOTTEN, "headers": ["connection", "host", "sec-websocket-version"]},
        GOTTEN,
    ]


@pytest.mark.parametrize(
    ("more", "status"), [(b"X: " + b"a" * 3000 + b"\r\n", 431), (b"Host: b\r\n", 400)], ids=["large", "hosts"]
)
def test_its_head_is_held_to_the_limits_of_heads(more: bytes, status: int) -> None:
    with listening(BodyLimit(tells, LIMITS), LIMITS) as port, connected(port) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n" + H2C + more + b"\r\n")
        assert int(everything(connection).split()[1]) == status


def test_nobody_is_told_to_install_something(caplog: pytest.LogCaptureFixture) -> None:
    with listening(BodyLimit(tells, LIMITS), LIMITS) as port, connected(port) as connection:
        connection.sendall(ASKING + LAST)
        everything(connection)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_head_less_its_upgrade() -> None:
    headers = [(b"host", b"a"), (b"connection", b"close,UPGRADE , x"), (b"upgrade", b"h2c"), (b"upgrades", b"y")]
    assert head_without_upgrade(b"GET", b"/?q", "1.1", headers) == (
        b"GET /?q HTTP/1.1\r\nhost: a\r\nconnection: close, x\r\nupgrades: y\r\n\r\n"
    )
    assert head_without_upgrade(b"GET", b"/", "1.1", [(b"connection", b"upgrade")]) == b"GET / HTTP/1.1\r\n\r\n"


# ── HTTP/1.0 ─────────────────────────────────────────────────────────────────────────────────────────────────────


def own_lines(head: bytes) -> list[bytes]:
    """All but what uvicorn puts into every answer."""
    return [line for line in head.split(b"\r\n") if not line.startswith((b"date:", b"server:"))]


def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    with listening(streams, LIMITS) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = everything(connection).partition(b"\r\n\r\n")

    assert own_lines(head) == [b"HTTP/1.1 200 OK", b"content-type: text/plain", b"connection: close"]
    assert body == b"one two three"


@pytest.mark.parametrize(("method", "body"), [(b"HEAD", b""), (b"GET", b"one two three")])
def test_a_length_that_is_known_is_kept_for_http_1_0(method: bytes, body: bytes) -> None:
    async def sized(scope: Scope, receive: Receive, send: Send) -> None:
        async def declared(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [(b"Content-Length", b"13")]}
            await send(message)

        await streams(scope, receive, declared)

    with listening(sized, LIMITS) as port, connected(port) as connection:
        connection.sendall(method + b" / HTTP/1.0\r\n\r\n")
        head, _, received = everything(connection).partition(b"\r\n\r\n")

    assert own_lines(head) == [b"HTTP/1.1 200 OK", b"content-length: 13", b"connection: close"]
    assert received == body


# ── clients that do not read ─────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_that_nobody_reads_is_given_up_while_it_is_made() -> None:
    gone = threading.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        assert leaving.result()["type"] == "http.disconnect"
        gone.set()

    with listening(endless, HASTY) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert gone.wait(60)


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_given_up_when_it_is_made(
    close: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(32 << 20).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * (32 << 20)})

    cut = threading.Event()
    caplog.set_level(logging.INFO, "ktllama.serve")

    def seen(record: logging.LogRecord) -> bool:
        cut.set()
        return True

    caplog.handler.addFilter(seen)
    with listening(large, HASTY) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n")
        assert cut.wait(60)
    assert caplog.messages == ["a connection is cut: its client took nothing for 0.2 s"]


class Line:
    """A transport, an event loop and a socket in one, by hand."""

    def __init__(self) -> None:
        self.waiting = 0
        self.aborted = False
        self.timers: list[Callable[[], None]] = []

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, name: str) -> Line:
        return self

    def fileno(self) -> int:
        raise OSError("no socket at all")

    def abort(self) -> None:
        self.aborted = True

    def call_later(self, seconds: float, then: Callable[[], None]) -> Line:
        self.timers.append(then)
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def pass_time(self) -> None:
        self.timers.pop()()


def delivery(line: Line) -> Delivery:
    return Delivery(cast(asyncio.Transport, line), cast(asyncio.AbstractEventLoop, line), 60.0)


def test_a_client_that_takes_a_byte_in_time_stays() -> None:
    line = Line()
    watched = delivery(line)
    line.waiting = 100_000
    watched.watch()
    for _ in range(50):
        line.waiting -= 1
        line.pass_time()
        watched.watch()  # it is watched already
        assert (len(line.timers), line.aborted) == (1, False)
    line.pass_time()
    assert (line.timers, line.aborted) == ([], True)


def test_nobody_is_watched_who_has_everything_or_is_gone() -> None:
    line = Line()
    watched = delivery(line)
    watched.watch()
    line.pass_time()
    assert (line.timers, line.aborted) == ([], False)
    line.waiting = 5
    watched.watch()
    watched.settle()
    assert len(line.timers) == 1
    line.waiting = 0
    watched.settle()
    assert line.timers == []
    watched.watch()
    watched.end()
    assert line.timers == []
