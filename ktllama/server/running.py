"""The generations of one request: sent together, read as one stream of deltas, all given up together."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ktllama.engine.answer_stream import Answer, AnswerStream
from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, Generate
from ktllama.server.deltas import ChoiceDelta, ChoiceReader
from ktllama.server.errors import ApiError, from_failed
from ktllama.server.state import ServerState

_log = logging.getLogger("ktllama.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of an answer: what the engine is asked, and how its events are read."""

    generate: Generate
    reader: ChoiceReader


class Running:
    """The choices of one request, on their way. `open` it, then read what is `gained` to the end or `close` it."""

    def __init__(self, state: ServerState, choices: Sequence[Choice], *, prompt_field: str) -> None:
        """`prompt_field` is where the request has its prompt."""
        self._client = state.client
        self._observer = state.observer
        self._prompt_field = prompt_field
        self._choices = {choice.generate.request_id: choice for choice in choices}
        self._open = set(self._choices)  # ids that have not ended
        self._stream: AnswerStream | None = None
        self._early: deque[Answer] = deque()  # what came before all choices were accepted

    async def open(self) -> None:
        """Wait until every choice is in the engine's queue. Raises ApiError if one is refused; then none runs."""
        for request_id in self._choices:
            self._observer.began(request_id)
        n_waiting = len(self._choices)
        try:
            stream = self._stream = self._client.generate(*(choice.generate for choice in self._choices.values()))
            while n_waiting:
                event = await stream.next()
                assert event is not None, "a stream ended before its generations"
                if isinstance(event, Accepted):
                    self._observer.saw(event)
                    n_waiting -= 1
                elif isinstance(event, Failed):
                    raise self._failure(event)
                else:
                    self._early.append(event)
        except BaseException:
            self.close()
            raise

    async def gained(self) -> list[ChoiceDelta] | None:
        """What a choice gains next, waited for; None when all have ended. Raises ApiError when one of them fails."""
        assert self._stream is not None, "not open"
        event = self._early.popleft() if self._early else await self._stream.next()
        if isinstance(event, Emitted):
            self._observer.saw(event)
            return self._choices[event.request_id].reader.emitted(event)
        if event is None:
            return None
        if isinstance(event, Failed):
            raise self._failure(event)
        assert isinstance(event, Finished)
        self._open.discard(event.request_id)
        self._observer.saw(event)
        if event.reason == "cancelled":
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        return self._choices[event.request_id].reader.finished(event)

    def close(self) -> None:
        """Give up what still runs; the engine drops it within a step. Safe to call twice."""
        if self._stream is not None:
            self._stream.close()
        while self._open:
            self._observer.left(self._open.pop())

    def _failure(self, event: Failed) -> ApiError:
        self._open.discard(event.request_id)
        self._observer.saw(event)
        error = from_failed(event, prompt_field=self._prompt_field)
        if error.status == 500:  # the engine lives on, and nothing else would say why this one went wrong
            fields = {"request": event.request_id, "code": event.code, "reason": event.message}
            _log.error("a generation failed", extra={"fields": fields})
        return error
