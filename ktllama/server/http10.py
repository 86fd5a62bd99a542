"""Answers to clients of HTTP/1.0, which know no chunks: where the length is not known, the answer ends with the
connection. uvicorn 0.54 (protocols/http/httptools_impl.py) sends them chunks."""

from __future__ import annotations

from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """`app`, whose answer on `cycle` is sent as it is. The cycle closes the connection behind it, as for all of 1.0."""
    ends_with_connection = False

    async def unchunked(scope: Scope, receive: Receive, send: Send) -> None:
        async def plainly(message: Message) -> None:
            nonlocal ends_with_connection
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                ends_with_connection = b"content-length" not in names
                if ends_with_connection:
                    cycle.chunked_encoding = False
            elif ends_with_connection:  # to the cycle, each piece is all that is to come
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, cast(Send, plainly))

    return unchunked
