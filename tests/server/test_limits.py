"""What hostile and slow clients get: an answer, soon, and no memory."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading

import pytest
from starlette.types import Message, Receive, Scope, Send

from ktllama.server.limits import BodyLimit, Limits
from tests.server.asgi import Answer, call, says_ok, scope_of
from tests.server.listening import chunked_answer, connected, everything, listening, sized_answer, status_and_error

SMALL = Limits(body_bytes=1000, header_bytes=2000, connections=4, header_seconds=0.2, body_seconds=0.2, linger_seconds=0.5)  # fmt: skip
PATIENT = Limits(body_bytes=1000, header_bytes=2000, connections=64, linger_seconds=5)


def post(*headers: tuple[str, str]) -> Scope:
    return scope_of("/v1/chat/completions", "POST", headers)


def test_a_body_up_to_the_limit_arrives_whole() -> None:
    chunks = [b"a" * 400, b"b" * 599, b"c"]
    answer = asyncio.run(call(BodyLimit(says_ok, SMALL), post(("transfer-encoding", "chunked")), chunks))
    assert (answer.status, answer.body) == (200, b"".join(chunks))


def test_a_byte_more_is_413_and_the_application_never_sees_it() -> None:
    called = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal called
        called = True

    answer = asyncio.run(call(BodyLimit(app, SMALL), post(("transfer-encoding", "chunked")), [b"a" * 1001]))
    assert (answer.status, answer.code, answer.headers["connection"]) == (413, "body_too_large", "close")
    assert not called


def test_a_declared_length_is_refused_before_a_byte_is_asked_for() -> None:
    app = BodyLimit(says_ok, SMALL)
    scope = post(("content-length", "1001"), ("expect", "100-continue"))
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("it would tell the client to continue")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413


def test_bodies_that_are_too_large_together_are_503_until_one_is_whole() -> None:
    limits = Limits(body_bytes=1000, all_bodies_bytes=1500)
    app = BodyLimit(says_ok, limits)

    async def asked() -> list[Answer]:
        half_sent, go_on = asyncio.Event(), asyncio.Event()

        pieces: list[Message] = [{"type": "http.request", "body": b"a" * 900, "more_body": True}]

        async def halting() -> Message:
            if pieces:
                return pieces.pop()
            half_sent.set()
            await go_on.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def ignore(message: Message) -> None:
            pass

        held = asyncio.create_task(app(post(("content-length", "900")), halting, ignore))
        await half_sent.wait()
        refused = await call(app, post(("content-length", "700")), [b"b" * 700])
        small = await call(app, post(("content-length", "500")), [b"c" * 500])
        go_on.set()
        await held
        return [refused, small, await call(app, post(("content-length", "700")), [b"d" * 700])]

    refused, small, late = asyncio.run(asked())
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "too_many_bodies", "1")
    assert (small.status, late.status) == (200, 200)
    assert app.incoming_bytes == 0


def test_a_client_that_leaves_within_its_body_is_noted() -> None:
    scope = post(("content-length", "10"))

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError("nobody is there")

    asyncio.run(BodyLimit(says_ok, SMALL)(scope, receive, send))
    assert scope["ktllama.notes"].client_left


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes_are_refused_without_being_kept(chunked: bool) -> None:
    with listening(BodyLimit(says_ok, PATIENT), PATIENT) as port, connected(port) as connection:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 104857600"
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n")
        megabyte = b"x" * (1 << 20)
        piece = b"100000\r\n" + megabyte + b"\r\n" if chunked else megabyte
        sender = threading.Thread(target=_send_all, args=(connection, piece, 100))
        sender.start()
        status, error = status_and_error(sized_answer(connection))
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (status, error["code"]) == (413, "body_too_large")
    assert grown < 30 * 1024  # KiB; this process also holds the client


def _send_all(connection: socket.socket, piece: bytes, times: int) -> None:
    with contextlib.suppress(OSError):
        for _ in range(times):
            connection.sendall(piece)


@pytest.mark.parametrize(
    "bomb",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000,
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X-A: abcdefgh\r\n" * 180 + b"\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 2_000_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 2_000_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 100_000,
    ],
    ids=["line", "lines", "target", "just-too-many", "trailer", "chunk-extension", "name"],
)
def test_endless_heads_are_cut(bomb: bytes) -> None:
    with listening(BodyLimit(says_ok, PATIENT), PATIENT) as port, connected(port) as connection:
        sender = threading.Thread(target=_send_all, args=(connection, bomb, 1))
        sender.start()
        raw = b""
        with contextlib.suppress(ConnectionResetError):
            raw = everything(connection)
        sender.join()
    if raw:  # a connection that is still sending may lose it
        status, error = status_and_error(raw)
        assert (status, error["code"]) == (431, "headers_too_large")


def test_headers_within_the_limit_pass_with_a_body_larger_than_it() -> None:
    limits = Limits(body_bytes=100_000, header_bytes=2000)
    with listening(BodyLimit(says_ok, limits), limits) as port, connected(port) as connection:
        for _ in range(2):  # twice on one connection: the counts begin anew
            body = b"y" * 60_000
            head = b"POST / HTTP/1.1\r\nX: " + b"a" * 1900 + b"\r\nContent-Length: 60000\r\n\r\n"
            connection.sendall(head + body)
            received = chunked_answer(connection)
            assert received.startswith(b"HTTP/1.1 200 OK")
            assert received.count(b"y") == 60_000


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"\r\n"], ids=["nothing", "half", "empty-line"])
def test_slow_headers_are_ended(sent: bytes) -> None:
    with listening(BodyLimit(says_ok, SMALL), SMALL) as port, connected(port) as connection:
        connection.sendall(sent)
        status, error = status_and_error(everything(connection))
    assert (status, error["code"]) == (408, "header_timeout")


def test_a_slow_body_is_ended() -> None:
    with listening(BodyLimit(says_ok, SMALL), SMALL) as port, connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nab")
        status, error = status_and_error(everything(connection))
    assert (status, error["code"]) == (408, "body_timeout")


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
             b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
             b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
             b"GET /\xff\xfe HTTP/1.1\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_400_in_the_envelope(junk: bytes) -> None:
    with listening(BodyLimit(says_ok, PATIENT), PATIENT) as port, connected(port) as connection:
        connection.sendall(junk)
        connection.shutdown(socket.SHUT_WR)
        status, error = status_and_error(everything(connection))
    assert (status, error["code"]) == (400, "malformed_http")


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "body", [b"zz\r\nab\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"2\r\nab\r\n-1\r\n", b"ffffffffffffffffff\r\n", b"\r\n\r\n"]
)
def test_a_malformed_chunk_is_400_and_the_application_is_let_go(body: bytes) -> None:
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await BodyLimit(says_ok, PATIENT)(scope, receive, send)
        notes.append((scope["ktllama.notes"].status, scope["ktllama.notes"].error_code))
        ended.set()

    notes: list[tuple[int, str]] = []
    with listening(app, PATIENT) as port, connected(port) as connection:
        connection.sendall(CHUNKED + body[:3])
        connection.sendall(body[3:])
        status, error = status_and_error(everything(connection))
        assert ended.wait(60)
    assert (status, error["code"]) == (400, "malformed_http")
    assert notes == [(400, "malformed_http")]


def test_garbage_behind_a_request_leaves_it_its_answer() -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok"
    with listening(says_ok, PATIENT) as port, connected(port) as connection:
        connection.sendall(request + b"that was not all\r\n\r\n")  # at once, so that it is there before the answer
        received = everything(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert body == b"2\r\nok\r\n0\r\n\r\n"  # and then the connection ends


@pytest.mark.parametrize("second", [b"localhost", b"evil.example"])
def test_two_host_headers_are_400(second: bytes) -> None:
    with listening(says_ok, PATIENT) as port, connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nhOsT: " + second + b"\r\n\r\n")
        status, error = status_and_error(everything(connection))
    assert (status, error["message"]) == (400, "the request has more than one Host header")


def test_a_connection_too_many_is_answered_and_the_others_live_on() -> None:
    with listening(says_ok, PATIENT_FEW) as port, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(port)) for _ in range(3)]
        for connection in held:  # each is taken before the next one is counted
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert chunked_answer(connection).startswith(b"HTTP/1.1 200")
        late = stack.enter_context(connected(port))
        status, error = status_and_error(everything(late))
        held[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert chunked_answer(held[0]).startswith(b"HTTP/1.1 200")
    assert (status, error["code"]) == (503, "too_many_connections")


PATIENT_FEW = Limits(connections=3)
