"""Between the socket and the reader of an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from ktllama.engine.messages import Accepted, Emitted, Failed, Finished, Kind

Answer = Accepted | Emitted | Finished | Failed


class AnswerStream:
    """The events of some generations as they come; one Finished or Failed of each, and that is its last.

    An async iterator that stops behind the last of these. To be closed by whoever does not read so far: that cancels
    what runs. A reader that falls behind gets the text that it has missed in fewer, larger pieces.
    """

    def __init__(self, n_generations: int, give_up: Callable[[AnswerStream], None]) -> None:
        """`give_up` is called when the stream is closed before its end."""
        self._n_left = n_generations
        self._give_up = give_up
        self._events: deque[Answer | list[Emitted]] = deque()
        self._unread: dict[str, list[Emitted]] = {}  # text in `events`, by generation
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Answer) -> None:
        """Add an event; text joins text of its generation that nobody has come for yet."""
        if isinstance(event, Emitted):
            unread = self._unread.get(event.request_id)
            if unread is not None:
                unread.append(event)
                return
            unread = self._unread[event.request_id] = [event]
            self._events.append(unread)
        else:
            self._unread.pop(event.request_id, None)  # what comes behind it stays behind it
            self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Answer | None:
        """The next event, waited for; None behind the last."""
        if not self._n_left:
            return None
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._events.popleft()
        if isinstance(event, list):
            self._unread.pop(event[0].request_id, None)
            return event[0] if len(event) == 1 else _joined(event)
        if isinstance(event, Finished | Failed):
            self._n_left -= 1
        return event

    def __aiter__(self) -> AnswerStream:
        """Itself."""
        return self

    async def __anext__(self) -> Answer:
        """The next event."""
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    def close(self) -> None:
        """Give up what has not ended; nothing more will be read. Safe to call twice."""
        if self._n_left:
            self._n_left = 0
            self._give_up(self)

    @property
    def unread_ends(self) -> list[Finished]:
        """The ends that have come and that nobody has come for."""
        return [event for event in self._events if isinstance(event, Finished)]


def _joined(parts: Sequence[Emitted]) -> Emitted:
    """One event of several of a generation."""
    deltas: list[tuple[Kind, list[str]]] = []
    for part in parts:
        for kind, text in part.deltas:
            if not deltas or deltas[-1][0] != kind:
                deltas.append((kind, []))
            deltas[-1][1].append(text)
    return Emitted(
        request_id=parts[0].request_id,
        deltas=tuple((kind, "".join(texts)) for kind, texts in deltas),
        tokens=sum(part.tokens for part in parts),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
        logprob_kinds=tuple(kind for part in parts for kind in part.logprob_kinds),
    )
