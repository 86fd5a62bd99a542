"""How the layers in front of the endpoints answer: an `ApiError` on its way out, without an application."""

from __future__ import annotations

from starlette.types import Send

from ktllama.server.errors import ApiError

CLOSE = ("connection", "close")


async def refuse(send: Send, error: ApiError, *headers: tuple[str, str], finish: bool = True) -> None:
    """Answer with `error`. Without ``finish`` the answer is whole, but the connection is not given back yet."""
    await send({"type": "http.response.start", "status": error.status, "headers": header_bytes(error, headers)})
    await send({"type": "http.response.body", "body": error.body(), "more_body": not finish})


def header_bytes(error: ApiError, headers: tuple[tuple[str, str], ...] = ()) -> list[tuple[bytes, bytes]]:
    """All headers of the answer."""
    own = {"content-type": "application/json", "content-length": str(len(error.body())), **error.headers()}
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (*own.items(), *headers)]
