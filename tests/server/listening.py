"""A real server on a free port, in a thread of its own; and a client that speaks bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ktllama.server.connections import limited
from ktllama.server.limits import Limits


@contextmanager
def listening(app: ASGIApp, limits: Limits) -> Iterator[int]:
    """The port of a server that runs as long as the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=limited(limits), ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A connection that gives up after a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def sized_answer(connection: socket.socket) -> bytes:
    """An answer whose length is declared, however many pieces it comes in."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(1 << 16)
        assert part, "closed within a head"
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    n_bytes = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < n_bytes:
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def status_and_error(raw: bytes) -> tuple[int, dict[str, Any]]:
    """Of an answer in the error envelope."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def chunked_answer(connection: socket.socket) -> bytes:
    """What comes until the last chunk of a chunked answer."""
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        part = connection.recv(1 << 16)
        assert part, "closed within an answer"
        received += part
    return received
