"""How an answer leaves: as an event stream or whole, with a header that names what a lenient server ignored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from starlette.responses import Response

from ktllama.server.event_stream import EventStream, Writer
from ktllama.server.notes import notes_of
from ktllama.server.presence import ClientGoneError, unless_gone
from ktllama.server.running import Running
from ktllama.server.state import server_state

_log = logging.getLogger(__name__)

#: What `lenient` left out of the request, as a header of the answer.
IGNORED_HEADER = "X-Ktllama-Ignored-Fields"
_NAMED_CHARACTERS = 1024


async def respond(
    request: Request,
    running: Running,
    *,
    writer: Writer | None,
    whole: Callable[[], Coroutine[Any, Any, bytes]],
    left_out: list[str],
) -> Response:
    """Open `running` and answer: as events by `writer` where the request streams, else with the `whole`.

    A client that goes away before its answer begins gets none (status 499 in the log).
    """
    headers = ignored_header(left_out)
    try:
        await unless_gone(request.receive, running.open())
        if writer is not None:
            keep_alive_seconds = server_state(request).settings.keep_alive_seconds
            return EventStream(running, writer, keep_alive_seconds=keep_alive_seconds, headers=headers)
        try:
            answer = await unless_gone(request.receive, whole())
        finally:
            running.close()
        return Response(answer, headers=headers, media_type="application/json")
    except ClientGoneError:
        notes_of(request.scope).client_left = True
        return Response(status_code=499)


def ignored_header(left_out: list[str]) -> dict[str, str]:
    """The header that names what a lenient server ignored; nothing where it ignored nothing."""
    if not left_out:
        return {}
    named = ", ".join(left_out)[:_NAMED_CHARACTERS]  # a body may hold a million
    _log.warning("ignored the fields %s of a request", named)
    return {IGNORED_HEADER: named.encode("ascii", "backslashreplace").decode()[:_NAMED_CHARACTERS]}
