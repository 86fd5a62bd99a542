"""The generations of one request: sent together, read as one stream of deltas, all given up together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, Generate
from ktllama.server.deltas import ChoiceDelta, ChoiceReader
from ktllama.server.errors import ApiError, from_failed
from ktllama.server.state import ServerState

_log = logging.getLogger("ktllama.serve")

Answer = Accepted | Emitted | Finished | Failed
Events = AsyncGenerator[Answer, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of an answer: what the engine is asked, and how its events are read."""

    generate: Generate
    reader: ChoiceReader


class Running:
    """The choices of one request, on their way. `open` it, then read `deltas` to the end or `close` it."""

    def __init__(self, state: ServerState, choices: Sequence[Choice]) -> None:
        self._choices = choices
        self._observer = state.observer
        self._events: list[Events] = [state.client.generate(choice.generate) for choice in choices]
        self._ended = [False] * len(choices)
        self.prompt_tokens: list[int] = []  # by choice, once it is open

    async def open(self) -> None:
        """Wait until every choice is in the engine's queue. Raises ApiError if one is refused; then none runs."""
        for choice in self._choices:
            self._observer.began(choice.generate.request_id)
        try:
            firsts = await _firsts(self._events)
            for place, first in enumerate(firsts):
                self._saw(place, first)
                assert isinstance(first, Accepted)
                self.prompt_tokens.append(first.prompt_tokens)
        except BaseException:
            await self.close()
            raise

    async def deltas(self) -> AsyncGenerator[list[ChoiceDelta], None]:
        """What the choices gain, in the order in which it comes. Raises ApiError when one of them fails.

        To be closed by whoever does not read it to the end.
        """
        try:
            if len(self._events) == 1:
                async for event in self._events[0]:
                    yield self._read(0, event)
            else:
                async with aclosing(_merged(self._events)) as merged:
                    async for place, event in merged:
                        yield self._read(place, event)
        finally:
            await self.close()

    async def close(self) -> None:
        """Give up what still runs; the engine drops it within a step."""
        for place, events in enumerate(self._events):
            await events.aclose()
            if not self._ended[place]:
                self._ended[place] = True
                self._observer.left(self._choices[place].generate.request_id)

    def _read(self, place: int, event: Answer) -> list[ChoiceDelta]:
        self._saw(place, event)
        reader = self._choices[place].reader
        if isinstance(event, Emitted):
            return reader.emitted(event)
        assert isinstance(event, Finished)
        if event.reason == "cancelled":
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5)
        return reader.finished(event)

    def _saw(self, place: int, event: Answer) -> None:
        if isinstance(event, Finished | Failed):
            self._ended[place] = True
        self._observer.saw(event)
        if isinstance(event, Failed):
            error = from_failed(event)
            if error.status == 500:  # the engine lives on, and nothing else would say why this one went wrong
                fields = {"request": event.request_id, "code": event.code, "reason": event.message}
                _log.error("a generation failed", extra={"fields": fields})
            raise error


async def _firsts(sources: Sequence[Events]) -> list[Answer]:
    asked = [asyncio.ensure_future(anext(source)) for source in sources]
    try:
        return await asyncio.gather(*asked)
    finally:
        # a generator cannot be closed while it is being read
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _merged(sources: Sequence[Events]) -> AsyncGenerator[tuple[int, Answer], None]:
    """The items of all sources as they come. One slot: a slow reader slows them, it does not fill memory."""
    queue: asyncio.Queue[tuple[int, Answer | BaseException | None]] = asyncio.Queue(maxsize=1)

    async def pour(place: int, source: Events) -> None:
        try:
            async for event in source:
                await queue.put((place, event))
        except Exception as error:
            await queue.put((place, error))
        await queue.put((place, None))

    pouring = [asyncio.create_task(pour(place, source)) for place, source in enumerate(sources)]
    try:
        remaining = len(sources)
        while remaining:
            place, item = await queue.get()
            if item is None:
                remaining -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield place, item
    finally:
        for task in pouring:
            task.cancel()
        await asyncio.gather(*pouring, return_exceptions=True)
