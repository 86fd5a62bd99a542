"""A load client of one process: streams chat completions over plain sockets and notes when tokens came.

HTTP is spoken by hand, so that little of the cores goes to the client, and so that a connection that a server drops is
seen and counted instead of being tried again behind one's back. No request is waited for longer than its time limit.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_REQUEST_SECONDS = 120.0


class DroppedError(Exception):
    """The server closed the connection before the answer's end, or the answer took too long."""


class RefusedError(Exception):
    """The server answered with another status than 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer. ``text_times`` says when each piece of text came, in seconds since ``started_at``.

    ``tokens`` are as the server counts them; pieces may hold several.
    """

    started_at: float
    text_times: tuple[float, ...]
    tokens: int

    @property
    def first_token(self) -> float:
        """Seconds to the first text."""
        return self.text_times[0]

    @property
    def first_token_at(self) -> float:
        """When the first text came, on the clock of ``started_at``."""
        return self.started_at + self.text_times[0]

    @property
    def end_at(self) -> float:
        """When the last text came."""
        return self.started_at + self.text_times[-1]

    def tokens_between(self, start: float, end: float) -> float:
        """The tokens that came after ``start``, up to ``end``; a piece counts as its share of the answer's tokens."""
        low = bisect.bisect_right(self.text_times, start - self.started_at)
        high = bisect.bisect_right(self.text_times, end - self.started_at)
        return (high - low) * self.tokens / len(self.text_times)


class Connection:
    """One keep-alive connection, reconnected only by :meth:`open`."""

    def __init__(self, port: int, request_seconds: float = _REQUEST_SECONDS) -> None:
        self._port = port
        self._request_seconds = request_seconds
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect, if not connected."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)

    async def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None

    async def stream(self, body: Mapping[str, Any]) -> Answer:
        """Post a chat completion and read its events.

        Raises:
            DroppedError, RefusedError: where there is no whole answer; the connection is closed then.
        """
        try:
            async with asyncio.timeout(self._request_seconds):
                return await self._stream(json.dumps({**body, "stream": True}).encode())
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            await self.close()
            raise DroppedError(str(error) or type(error).__name__) from error
        except RefusedError:
            await self.close()
            raise

    async def _stream(self, body: bytes) -> Answer:
        await self.open()
        assert self._reader is not None
        assert self._writer is not None
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        started = time.perf_counter()
        self._writer.write(head.encode() + body)
        status, chunked, closing = await self._headers()
        if status != 200:
            raise RefusedError(f"status {status}: {(await self._chunk(chunked))[:300]!r}")
        events = _Events(started)
        while data := await self._chunk(chunked):
            events.feed(data)
        if not events.done:
            raise DroppedError("the stream ended without [DONE]")
        if closing or not chunked:
            await self.close()  # as the server announced
        return events.answer()

    async def _headers(self) -> tuple[int, bool, bool]:
        """The status, whether the body comes in chunks, and whether the server will hang up after it."""
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        return int(lines[0].split()[1]), b"transfer-encoding: chunked" in lines, b"connection: close" in lines

    async def _chunk(self, chunked: bool) -> bytes:
        """The next piece of the body; empty at its end."""
        assert self._reader is not None
        if not chunked:
            return await self._reader.read(1 << 16)
        size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
        return (await self._reader.readexactly(size + 2))[:-2]


class _Events:
    """Server-sent events: when texts came, how many tokens there were."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._rest = b""
        self._times: list[float] = []
        self._counted = 0
        self.done = False

    def feed(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._event(event[6:])

    def answer(self) -> Answer:
        return Answer(started_at=self._started, text_times=tuple(self._times), tokens=self._counted or len(self._times))

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            if not self._times:  # tokens without text, such as tags: the end is all that can be seen
                self._times.append(time.perf_counter() - self._started)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise RefusedError(json.dumps(chunk["error"])[:300])
        if chunk.get("usage"):
            self._counted = chunk["usage"]["completion_tokens"]
        delta = chunk["choices"][0].get("delta", {}) if chunk.get("choices") else {}
        if delta.get("content") or delta.get("reasoning_content"):
            self._times.append(time.perf_counter() - self._started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a number of requests that began together."""

    answers: tuple[Answer, ...]
    failures: tuple[str, ...]

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens a second while everybody is decoding: from the last first token to the first end.

        None where there is no such time, or too short a one: less than a quarter of an answer.
        """
        if not self.answers:
            return None
        start = max(each.first_token_at for each in self.answers)
        end = min(each.end_at for each in self.answers)
        tokens = sum(each.tokens_between(start, end) for each in self.answers)
        enough = sum(each.tokens for each in self.answers) / 4
        return tokens / (end - start) if end > start and tokens >= enough else None

    @property
    def tokens_per_second(self) -> float | None:
        """All tokens of all answers over all the time from the first request to the last text."""
        if not self.answers:
            return None
        start = min(each.started_at for each in self.answers)
        return sum(each.tokens for each in self.answers) / (max(each.end_at for each in self.answers) - start)


async def at_once(port: int, bodies: Sequence[Mapping[str, Any]], *, turns: int = 1, request_seconds: float) -> Load:
    """Every body from a client of its own, all at once; ``turns`` requests one after another on its connection."""
    failures: list[str] = []
    answers: list[Answer] = []

    async def client(body: Mapping[str, Any]) -> None:
        connection = Connection(port, request_seconds)
        for _ in range(turns):
            try:
                answers.append(await connection.stream(body))
            except (DroppedError, RefusedError) as error:
                failures.append(f"{type(error).__name__}: {error}")
        await connection.close()

    await asyncio.gather(*(client(body) for body in bodies))
    return Load(answers=tuple(answers), failures=tuple(failures))
