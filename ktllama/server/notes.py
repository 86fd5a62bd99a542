"""What an endpoint learns about its request, for the one line of the log."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Send

_KEY = "ktllama.notes"
_SEND_KEY = "ktllama.send"


@dataclass(slots=True, kw_only=True)
class RequestNotes:
    """Counts and outcomes, never texts. The logging middleware puts one into the scope; endpoints fill it in."""

    model: str | None = None
    stream: bool = False
    choices: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    error_code: str | None = None
    status: int | None = None  # of an answer that was given without the application
    client_left: bool = False


def notes_of(scope: MutableMapping[str, Any]) -> RequestNotes:
    """The notes of this request, made at the first call."""
    found = scope.get(_KEY)
    if not isinstance(found, RequestNotes):
        found = scope[_KEY] = RequestNotes()
    return found


def keep_send(scope: MutableMapping[str, Any], send: Send) -> None:
    """Keep the outermost layer's way out for `short_send`."""
    scope[_SEND_KEY] = send


def short_send(scope: MutableMapping[str, Any], send: Send) -> Send:
    """The way out past the layers between: once an answer has begun, they let its pieces through as they are.

    A streamed token would be handed on by half a dozen coroutines otherwise.
    """
    found: Send = scope.get(_SEND_KEY, send)
    return found
