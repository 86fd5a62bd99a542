"""The threads that receive requests and read them: they are tokenized and checked here, beside the steps.

The receiver takes frames off the socket. It never waits for the reader, which may take seconds for one request: pings
are answered at once, and a Cancel takes back what has not been read yet, or goes straight to the step loop.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

from ktllama.engine import wire
from ktllama.engine.embedding import Embedding
from ktllama.engine.generation import Generation
from ktllama.engine.heartbeat import Occupied
from ktllama.engine.intake import Intake
from ktllama.engine.messages import (
    Cancel,
    Detokenize,
    Detokenized,
    Drain,
    Embed,
    Event,
    Failed,
    Generate,
    Load,
    Ping,
    Pong,
    Report,
    Request,
    Tokenize,
    Tokenized,
)

_log = logging.getLogger("ktllama.engine")

#: What the reader hands to the step loop.
Work = Generation | Embedding | Cancel | Drain | Report
Inbox = queue.SimpleQueue[Work]  # its put may be called from a signal handler

#: What has to be read.
Readable = Generate | Embed | Tokenize | Detokenize


class Outbox:
    """The way back, for all threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, events: Sequence[Event]) -> None:
        """Write a frame; nothing for no events."""
        if events:
            with self._lock:
                self._connection.sendall(wire.frame(events))


class Reader:
    """Both threads. Before there is an `intake`, all are told that the model loads.

    As many requests may wait to be read as may wait to run, and run; one more is refused.
    """

    def __init__(
        self, frames: Iterator[list[Request]], inbox: Inbox, outbox: Outbox, stepping: Occupied, *, queue_limit: int
    ) -> None:
        self._frames = frames
        self._inbox = inbox
        self._outbox = outbox
        self._stepping = stepping
        self._queue_limit = queue_limit
        self._reading = Occupied()
        self._received: queue.SimpleQueue[Readable | Drain] = queue.SimpleQueue()
        self._unread: dict[str, Readable] = {}  # received, not read to the end, and not cancelled
        self._lock = threading.Lock()  # of what is unread
        self.intake: Intake | None = None

    def start(self) -> None:
        """Begin to read."""
        for work, name in ((self._receive, "receiver"), (self._read, "reader")):
            threading.Thread(target=self._until_the_end, args=(work,), name=name, daemon=True).start()

    def _until_the_end(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            pass  # as good as the end of the stream
        except Exception:
            _log.exception("the engine's %s failed", threading.current_thread().name)
            os._exit(1)
        os._exit(0)  # the parent is gone; the main thread may be deep in a batch

    # ── the receiver ─────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self) -> None:
        for requests in self._frames:
            for request in requests:
                self._sort(request)

    def _sort(self, request: Request) -> None:
        assert not isinstance(request, Load), "an engine process loads once"
        if isinstance(request, Ping):
            pong = Pong(step_seconds=self._stepping.seconds, reading_seconds=self._reading.seconds)
            self._outbox.send([pong])
        elif isinstance(request, Cancel):
            with self._lock:
                if self._unread.pop(request.request_id, None) is None:
                    self._inbox.put(request)
        elif isinstance(request, Report):
            self._inbox.put(request)
        elif isinstance(request, Drain):
            self._received.put(request)  # what came before it is still taken
        elif self.intake is not None and len(self._unread) >= self._queue_limit + self.intake.n_parallel:
            self._outbox.send([_queue_full(request, len(self._unread))])
        else:
            with self._lock:
                self._unread[request.request_id] = request
            self._received.put(request)

    # ── the reader ───────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        while True:
            request = self._received.get()
            self._reading.begin()
            self._take(request)
            self._reading.end()

    def _take(self, request: Readable | Drain) -> None:
        if isinstance(request, Drain):
            self._inbox.put(request)
        elif self._unread.get(request.request_id) is request:
            self._hand_on(request, self._made_of(request))

    def _hand_on(self, request: Readable, made: Generation | Embedding | Tokenized | Detokenized | Failed) -> None:
        """Pass on what was read, unless it was cancelled meanwhile. A Cancel that comes from now on finds it there."""
        with self._lock:
            if self._unread.get(request.request_id) is not request:
                return
            del self._unread[request.request_id]
            if isinstance(made, Generation | Embedding):
                self._inbox.put(made)
                return
        self._outbox.send([made])

    def _made_of(self, request: Readable) -> Generation | Embedding | Tokenized | Detokenized | Failed:
        if self.intake is None:
            return _failed(request, "loading", "the model is being loaded")
        try:
            return _read(self.intake, request)
        except Exception as error:  # one request that cannot be read must not end the others
            _log.exception("request %s cannot be read: %s", request.request_id, error)
            return _failed(request, "engine_error", f"the request cannot be read: {error}")


def _read(intake: Intake, request: Readable) -> Generation | Embedding | Tokenized | Detokenized | Failed:
    if isinstance(request, Generate):
        return intake.generation(request)
    if isinstance(request, Embed):
        return intake.embedding(request)
    if isinstance(request, Tokenize):
        return intake.tokenize(request)
    return intake.detokenize(request)


def _queue_full(request: Readable, n_unread: int) -> Failed:
    message = f"{n_unread} requests are waiting to be read"
    fields: dict[str, int | float | str] = {"queued": n_unread, "retry_after": 1}
    return Failed(request_id=request.request_id, code="queue_full", message=message, fields=fields)


def _failed(request: Readable, code: str, message: str) -> Failed:
    return Failed(request_id=request.request_id, code=code, message=message)
