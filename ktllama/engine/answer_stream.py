"""Between the socket and the reader of one answer."""

from __future__ import annotations

import asyncio
from collections import deque

from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, Kind

Answer = Accepted | Emitted | Finished | Failed


class AnswerStream:
    """Events of one request between the socket and their reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Answer | _Gathered] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Answer) -> None:
        """Add an event; text that nobody has come for yet is joined."""
        last = self._events[-1] if self._events else None
        if isinstance(event, Emitted) and isinstance(last, _Gathered):
            last.add(event)
        elif isinstance(event, Emitted) and isinstance(last, Emitted):
            self._events[-1] = _Gathered(last, event)
        else:
            self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Answer:
        """The next event; waits for it."""
        while not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        event = self._events.popleft()
        return event.joined() if isinstance(event, _Gathered) else event

    @property
    def unread_end(self) -> Finished | None:
        """The end of the answer, where it has come and nobody has come for it."""
        last = self._events[-1] if self._events else None
        return last if isinstance(last, Finished) else None


class _Gathered:
    """Emitted events that their reader has not come to yet."""

    def __init__(self, *parts: Emitted) -> None:
        self._parts = list(parts)

    def add(self, part: Emitted) -> None:
        self._parts.append(part)

    def joined(self) -> Emitted:
        deltas: list[tuple[Kind, list[str]]] = []
        for part in self._parts:
            for kind, text in part.deltas:
                if not deltas or deltas[-1][0] != kind:
                    deltas.append((kind, []))
                deltas[-1][1].append(text)
        return Emitted(
            request_id=self._parts[0].request_id,
            deltas=tuple((kind, "".join(texts)) for kind, texts in deltas),
            tokens=sum(part.tokens for part in self._parts),
            logprobs=tuple(logprob for part in self._parts for logprob in part.logprobs),
            logprob_kinds=tuple(kind for part in self._parts for kind in part.logprob_kinds),
        )
