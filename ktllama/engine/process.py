"""The engine process: `python -m ktllama.engine.process SOCKET_FD PARENT_PID`, started by ktllama.engine.supervisor.

Three threads: the two of ktllama.engine.reader, which receive requests and read them, and the main thread, which steps
the engine and sleeps when there is nothing to do. The process ends when it has drained, when its parent is gone, and
when its memory can no longer be trusted; whoever started it decides about another one.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ktllama.engine import integrity, wire
from ktllama.engine.core import Engine, EngineBrokenError
from ktllama.engine.embedding import Embedding
from ktllama.engine.executor import Executor, ExecutorFactory, LoadError
from ktllama.engine.generation import Generation
from ktllama.engine.heartbeat import Occupied
from ktllama.engine.intake import Intake
from ktllama.engine.messages import Cancel, Drain, Load, LoadFailed, Loading, Ready, Report, Request
from ktllama.engine.reader import Inbox, Outbox, Reader, Work
from ktllama.errors import KtllamaError

_log = logging.getLogger("ktllama.engine")
_RECEIVED_AT_ONCE = 1 << 18
_STATS_SECONDS = 1.0
_PROGRESS_STEP = 0.01
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StepLoop:
    """The main thread's work: requests in, steps, events out."""

    def __init__(self, engine: Engine, inbox: Inbox, outbox: Outbox, occupied: Occupied) -> None:
        self._engine = engine
        self._inbox = inbox
        self._outbox = outbox
        self._occupied = occupied
        self._stats_at = 0.0

    def run(self) -> None:
        """Until drained. Raises EngineBrokenError and IntegrityError when there is no going on."""
        engine = self._engine
        try:
            while True:
                self._occupied.begin()
                if self._take_all():  # the next step may be a long one, and who is accepted is to know it
                    self._outbox.send(engine.take_events(at_once=True))
                if engine.is_busy:
                    engine.step()
                self._send()
                if engine.is_busy:
                    self._occupied.begin()  # a copy counts by itself
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
                self._occupied.begin()
            if tidied:
                self._outbox.send([self._engine.stats()])  # for some time nothing else would say that cells are free
            if self._inbox.empty():
                integrity.check(self._engine)
                yield self._sleep()
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _sleep(self) -> Work:
        self._occupied.end()
        work = self._inbox.get()
        self._occupied.begin()
        return work

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
    stepping = Occupied()
    reader = Reader(frames, inbox, outbox, stepping, queue_limit=first[0].queue_limit)
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
