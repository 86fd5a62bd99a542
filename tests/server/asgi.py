"""Call an ASGI application by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    finished: bool = False

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


def scope_of(
    path: str = "/v1/models", method: str = "GET", headers: Iterable[tuple[str, str]] = (), **more: Any
) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        "state": {},
        **more,
    }


async def call(app: ASGIApp, scope: Scope, chunks: Iterable[bytes] = (b"",)) -> Answer:
    """The answer to a request whose body comes in ``chunks``; then the client waits."""
    pending = list(chunks)
    answer = Answer()

    async def receive() -> Message:
        if pending:
            body = pending.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(pending)}
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        assert not answer.finished
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            answer.finished = not message.get("more_body", False)

    await app(scope, receive, send)
    return answer


async def says_ok(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with what it was sent."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
