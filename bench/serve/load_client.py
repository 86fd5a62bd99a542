"""A load client of one process: streams chat completions over plain sockets and notes when tokens came.

HTTP is spoken by hand, so that little of the cores goes to the client, and so that a connection that a server drops is
seen and counted instead of being tried again behind one's back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class DroppedError(Exception):
    """The server closed the connection before the answer's end."""


class RefusedError(Exception):
    """The server answered with another status than 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer; times are seconds since the request was sent. ``tokens`` as the server counts them."""

    started_at: float
    first_token: float
    end: float
    tokens: int

    @property
    def first_token_at(self) -> float:
        """When the first token came, on the clock of ``started_at``."""
        return self.started_at + self.first_token

    @property
    def end_at(self) -> float:
        """When the answer ended."""
        return self.started_at + self.end


class Connection:
    """One keep-alive connection, reconnected only by :meth:`open`."""

    def __init__(self, port: int) -> None:
        self._port = port
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
    """Server-sent events: when the first text came, how many tokens there were."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._rest = b""
        self._first = 0.0
        self._last = 0.0
        self._texts = 0
        self._counted = 0
        self.done = False

    def feed(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._event(event[6:])

    def answer(self) -> Answer:
        return Answer(
            started_at=self._started,
            first_token=self._first,
            end=self._last,
            tokens=self._counted or self._texts,
        )

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            if not self._texts:  # tokens without text, such as tags: the end is all that can be seen
                self._first = self._last = time.perf_counter() - self._started
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise RefusedError(json.dumps(chunk["error"])[:300])
        if chunk.get("usage"):
            self._counted = chunk["usage"]["completion_tokens"]
        delta = chunk["choices"][0].get("delta", {}) if chunk.get("choices") else {}
        if delta.get("content") or delta.get("reasoning_content"):
            self._last = time.perf_counter() - self._started
            self._first = self._first or self._last
            self._texts += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a number of requests."""

    answers: tuple[Answer, ...]
    failures: tuple[str, ...]

    @property
    def decode_tokens_per_second(self) -> float:
        """All clients' tokens after their first ones, from the first token anywhere to the last."""
        if not self.answers:
            return 0.0
        seconds = max(each.end_at for each in self.answers) - min(each.first_token_at for each in self.answers)
        return sum(each.tokens - 1 for each in self.answers) / seconds if seconds else 0.0


async def at_once(port: int, bodies: Sequence[Mapping[str, Any]], *, turns: int = 1) -> Load:
    """Every body from a client of its own, all at once; ``turns`` requests one after another on its connection."""
    failures: list[str] = []
    answers: list[Answer] = []

    async def client(body: Mapping[str, Any]) -> None:
        connection = Connection(port)
        for _ in range(turns):
            try:
                answers.append(await connection.stream(body))
            except (DroppedError, RefusedError) as error:
                failures.append(f"{type(error).__name__}: {error}")
        await connection.close()

    await asyncio.gather(*(client(body) for body in bodies))
    return Load(answers=tuple(answers), failures=tuple(failures))
