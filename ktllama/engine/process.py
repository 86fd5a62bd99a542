"""The engine process: `python -m ktllama.engine.process SOCKET_FD PARENT_PID`, started by ktllama.engine.supervisor.

Three threads. The receiver takes frames off the socket and answers pings. The reader tokenizes and checks requests,
which takes seconds for a text of megabytes, and answers what needs no batch. The main thread steps the engine, and
sleeps when there is nothing to do. The process ends when it has drained, when its parent is gone, and when its memory
can no longer be trusted; whoever started it decides about another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import logging
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ktllama.engine import integrity, wire
from ktllama.engine.core import Engine, EngineBrokenError
from ktllama.engine.embedding import Embedding
from ktllama.engine.executor import Executor, ExecutorFactory, LoadError
from ktllama.engine.generation import Generation
from ktllama.engine.intake import Intake
from ktllama.engine.messages import (
    Cancel,
    Detokenize,
    Drain,
    Embed,
    Event,
    Failed,
    Generate,
    Load,
    LoadFailed,
    Loading,
    Ping,
    Pong,
    Ready,
    Report,
    Request,
    Tokenize,
)
from ktllama.errors import KtllamaError

_log = logging.getLogger("ktllama.engine")
_RECEIVED_AT_ONCE = 1 << 18
_STATS_SECONDS = 1.0
_PROGRESS_STEP = 0.01
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

#: What the reader hands to the step loop.
Work = Generation | Embedding | Failed | Cancel | Drain | Report
Inbox = queue.SimpleQueue[Work]  # its put may be called from a signal handler


class Outbox:
    """The way back, for both threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, events: Sequence[Event]) -> None:
        """Write a frame; nothing for no events."""
        if events:
            with self._lock:
                self._connection.sendall(wire.frame(events))


class Stepping:
    """When the step that runs now began: written by the main thread, read by the receiver."""

    def __init__(self) -> None:
        self.since: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has taken so far; 0 between steps."""
        since = self.since
        return 0.0 if since is None else time.monotonic() - since


class Reader:
    """The threads that receive and read requests. Before there is an `intake`, all are told that the model loads."""

    def __init__(self, frames: Iterator[list[Request]], inbox: Inbox, outbox: Outbox, stepping: Stepping) -> None:
        self._frames = frames
        self._inbox = inbox
        self._outbox = outbox
        self._stepping = stepping
        self._received: queue.SimpleQueue[Request] = queue.SimpleQueue()
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

    def _receive(self) -> None:
        for requests in self._frames:
            for request in requests:
                if isinstance(request, Ping):
                    self._outbox.send([Pong(step_seconds=self._stepping.seconds)])
                else:
                    self._received.put(request)

    def _read(self) -> None:
        while True:
            self._take(self._received.get())

    def _take(self, request: Request) -> None:
        if isinstance(request, Cancel | Drain | Report):
            self._inbox.put(request)
            return
        assert not isinstance(request, Load | Ping), "an engine process loads once, and pings are answered before"
        if self.intake is None:
            self._outbox.send([_failed(request, "loading", "the model is being loaded")])
            return
        try:
            self._read_request(self.intake, request)
        except OSError:
            raise
        except Exception as error:  # one request that cannot be read must not end the others
            _log.exception("request %s cannot be read: %s", request.request_id, error)
            self._outbox.send([_failed(request, "engine_error", f"the request cannot be read: {error}")])

    def _read_request(self, intake: Intake, request: Generate | Embed | Tokenize | Detokenize) -> None:
        if isinstance(request, Generate):
            self._inbox.put(intake.generation(request))
        elif isinstance(request, Embed):
            self._inbox.put(intake.embedding(request))
        elif isinstance(request, Tokenize):
            self._outbox.send([intake.tokenize(request)])
        else:
            self._outbox.send([intake.detokenize(request)])


class StepLoop:
    """The main thread's work: requests in, steps, events out."""

    def __init__(self, engine: Engine, inbox: Inbox, outbox: Outbox, stepping: Stepping) -> None:
        self._engine = engine
        self._inbox = inbox
        self._outbox = outbox
        self._stepping = stepping
        self._stats_at = 0.0

    def run(self) -> None:
        """Until drained. Raises EngineBrokenError and IntegrityError when there is no going on."""
        engine = self._engine
        try:
            while True:
                if self._take_all():  # the next step may be a long one, and who is accepted is to know it
                    self._outbox.send(engine.take_events(at_once=True))
                if engine.is_busy:
                    self._stepping.since = time.monotonic()
                    engine.step()
                    self._stepping.since = None
                self._send()
                if engine.is_busy:
                    engine.tidy()
                elif engine.draining:
                    return
        finally:
            self._outbox.send(engine.take_events(at_once=True))

    def _waiting(self) -> Iterator[Work]:
        """What has come in; sleeps for it if there is nothing else to do."""
        if not self._engine.is_busy:
            tidied = False
            while self._inbox.empty() and self._engine.tidy():
                tidied = True
            if tidied:
                self._outbox.send([self._engine.stats()])  # for some time nothing else would say that cells are free
            if self._inbox.empty():
                integrity.check(self._engine)
                yield self._inbox.get()
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _take_all(self) -> bool:
        """Take what has come in; whether there was anything."""
        took = False
        for work in self._waiting():
            self._take(work)
            took = True
        return took

    def _take(self, work: Work) -> None:
        engine = self._engine
        if isinstance(work, Generation):
            engine.submit(work)
        elif isinstance(work, Cancel):
            engine.cancel(work.request_id)
        elif isinstance(work, Embedding):
            engine.embed(work)
        elif isinstance(work, Failed):
            self._outbox.send([work])
        elif isinstance(work, Report):
            self._outbox.send([engine.stats(work.request_id)])
        else:
            engine.draining = True

    def _send(self) -> None:
        events = self._engine.take_events()
        now = time.monotonic()
        if now - self._stats_at >= _STATS_SECONDS or not self._engine.is_busy:
            self._stats_at = now
            events.append(self._engine.stats())
        self._outbox.send(events)


def _frames(connection: socket.socket) -> Iterator[list[Request]]:
    splitter = wire.FrameSplitter()
    while data := connection.recv(_RECEIVED_AT_ONCE):
        for body in splitter.feed(data):
            yield wire.requests(body)


def _failed(request: Generate | Embed | Tokenize | Detokenize, code: str, message: str) -> Failed:
    return Failed(request_id=request.request_id, code=code, message=message)


def factory(executor: str) -> ExecutorFactory:
    """The function that "module:function" or "path/to/file.py:function" names. Raises LoadError."""
    place, _, name = executor.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found: ExecutorFactory = getattr(module, name)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise LoadError(f"the executor {executor!r} cannot be found: {error}") from error
    return found


def _load(load: Load, outbox: Outbox) -> Executor | None:
    """The executor; None if the parent was told why there is none."""
    try:
        return factory(load.executor)(load.options, _progress(outbox))
    except (LoadError, KtllamaError) as error:
        message = str(error)
    except Exception as error:  # whatever it is, loading again would end in it again
        _log.exception("loading failed")
        message = f"{type(error).__name__}: {error}"
    outbox.send([LoadFailed(message=message)])
    return None


def _progress(outbox: Outbox) -> Callable[[float], None]:
    sent = -1.0

    def progress(fraction: float) -> None:
        nonlocal sent
        if fraction - sent >= _PROGRESS_STEP or fraction >= 1.0 > sent:
            sent = fraction
            outbox.send([Loading(fraction=fraction)])

    return progress


def _settle(parent: int) -> None:
    """Make this a process that lives and dies with its parent, and writes nothing where it could be mistaken."""
    os.dup2(2, 1)  # what a C library prints is log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # a core is the model
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it was gone before the kernel was told
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LevelledLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class LevelledLines(logging.Formatter):
    """Every line with its level in front, those of a traceback too: whoever reads them goes by lines."""

    def format(self, record: logging.LogRecord) -> str:
        """`LEVEL logger: line`, as many times as there are lines."""
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"{record.levelname} {record.name}: {line}" for line in lines)


def main(arguments: list[str]) -> int:
    """Run to the end; the exit status."""
    descriptor, parent = map(int, arguments)
    _settle(parent)
    connection = socket.socket(fileno=descriptor)
    outbox = Outbox(connection)
    inbox: Inbox = queue.SimpleQueue()
    frames = _frames(connection)
    first = next(frames, [])
    if len(first) != 1 or not isinstance(first[0], Load):
        return 1  # the parent died, or is none of ours
    signal.signal(signal.SIGTERM, lambda *_: inbox.put(Drain()))
    stepping = Stepping()
    reader = Reader(frames, inbox, outbox, stepping)
    reader.start()
    outbox.send([Loading(fraction=0.0)])
    executor = _load(first[0], outbox)
    if executor is None:
        return 2
    reader.intake = Intake(executor)
    engine = Engine(executor, queue_limit=first[0].queue_limit, text_interval=first[0].text_interval)
    gc.collect()
    gc.freeze()  # what loading made stays; later collections need not look at it
    outbox.send([Ready(model=executor.model)])
    try:
        StepLoop(engine, inbox, outbox, stepping).run()
    except (EngineBrokenError, integrity.IntegrityError) as error:
        _log.error("error: %s", error)
        return 1
    executor.shut()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the receiver is in recv
