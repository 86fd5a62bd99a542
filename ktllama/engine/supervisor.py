"""One life of the engine process: spawned with a socket, watched until it ends, its last words kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import ktllama
from ktllama.engine import wire
from ktllama.engine.launch import Launch
from ktllama.engine.messages import Event, Request

_log = logging.getLogger("ktllama.engine")
_LAST_LINES = 60
_LINE_BYTES = 4096
_POLL_SECONDS = 0.005
_LAST_WORDS_SECONDS = 0.2
_LEVELS = {"INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}
_LARGE_PAGES = "glibc.malloc.hugetlb=1"
_TELLING = ("GGML_ASSERT", "GGML_ABORT", "CUDA error", "Error", "error:", "failed")


class EngineProcess:
    """A running `ktllama.engine.process`. Make one with `spawn`; `ended` is done when it is gone and all is read.

    The process is waited for by polling, and only once its socket has closed: asyncio's own child watcher loses the
    exit status of a child that is sent a signal while it dies (it is then reaped twice).
    """

    def __init__(self, process: subprocess.Popen[bytes], transport: asyncio.WriteTransport) -> None:
        self._process = process
        self._transport = transport
        self.pid = process.pid
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.ended: asyncio.Task[int] | None = None

    @classmethod
    async def spawn(cls, launch: Launch, on_events: Callable[[list[Event]], None]) -> EngineProcess:
        """Start the process and read what it says. `on_events` gets the messages of each frame. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ktllama.engine.process", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_environment(launch),
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            ours.setblocking(False)
            transport, connection = await loop.create_connection(lambda: _Connection(on_events), sock=ours)
            self = cls(process, transport)
            log_transport, log = await loop.connect_read_pipe(lambda: _Log(self._keep), process.stderr)
        except BaseException:  # cancelled in between
            ours.close()
            process.kill()
            process.wait()
            raise
        self.ended = loop.create_task(self._watch(connection, log_transport, log), name="ktllama-engine-watch")
        return self

    async def _watch(self, connection: _Connection, log_transport: asyncio.ReadTransport, log: _Log) -> int:
        """Wait for the end, whichever side of it shows first, and leave nothing behind."""
        try:
            await connection.closed.wait()
            self.kill()  # a process that has closed its socket, or says nonsense, is of no use
            while (status := self._process.poll()) is None:
                await asyncio.sleep(_POLL_SECONDS)
            with contextlib.suppress(TimeoutError):  # a grandchild may hold the pipe open
                await asyncio.wait_for(log.closed.wait(), timeout=_LAST_WORDS_SECONDS)
        finally:
            log_transport.close()
            self.kill()
            self._transport.abort()
        if connection.error is not None:
            self.last_lines.append(f"error: {connection.error}")
        return status

    def _keep(self, line: bytes) -> None:
        """Pass a line of the process on to the log, and remember it."""
        text = line.decode(errors="replace").rstrip()
        if text:
            self.last_lines.append(text)
            level = _LEVELS.get(text.partition(" ")[0], logging.DEBUG)  # ours say theirs, a library's are detail
            _log.log(level, "%s", text, extra={"engine_pid": self.pid})

    def send(self, messages: list[Request]) -> None:
        """Put messages on the socket; dropped if the process is gone, which its end tells."""
        if not self._transport.is_closing():
            self._transport.write(wire.frame(messages))

    def kill(self) -> None:
        """End the process now; nothing if it has ended."""
        self._process.kill()

    def reason(self, status: int) -> str:
        """Why the process ended, in one line: its exit and the line of its log that says most."""
        if status < 0:
            try:
                ended = f"ended by {signal.Signals(-status).name}"
            except ValueError:
                ended = f"ended by signal {-status}"
        else:
            ended = f"exited with status {status}"
        said = next((line for line in reversed(self.last_lines) if any(word in line for word in _TELLING)), None)
        said = said or (self.last_lines[-1] if self.last_lines and status not in (0, -signal.SIGKILL) else None)
        return f"the engine {ended}" + (f": {said.strip()}" if said else "")


class _Log(asyncio.Protocol):
    """The process's stderr, line by line; a line longer than `_LINE_BYTES` comes in pieces of that length."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._keep = keep
        self._held = b""
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, held = (self._held + data).split(b"\n")
        for line in lines:
            for start in range(0, len(line), _LINE_BYTES):
                self._keep(line[start : start + _LINE_BYTES])
        while len(held) > _LINE_BYTES:
            self._keep(held[:_LINE_BYTES])
            held = held[_LINE_BYTES:]
        self._held = held

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._keep(self._held)
        self.closed.set()


class _Connection(asyncio.Protocol):
    """The API process's end of the socket."""

    def __init__(self, on_events: Callable[[list[Event]], None]) -> None:
        self._on_events = on_events
        self._splitter = wire.FrameSplitter()
        self._transport: asyncio.BaseTransport | None = None
        self.closed = asyncio.Event()
        self.error: wire.FrameError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._on_events(wire.events(body))
        except wire.FrameError as error:
            self.error = error
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self.closed.set()


def _environment(launch: Launch) -> dict[str, str]:
    """This process's environment with the launch's, in which the child finds the same `ktllama`."""
    package_root = str(Path(ktllama.__file__).resolve().parent.parent)
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    tunables = _tunables(os.environ.get("GLIBC_TUNABLES", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GLIBC_TUNABLES": tunables, **launch.env}


def _tunables(given: str) -> str:
    """glibc's settings of the process, with large pages for large allocations unless `given` says something of them.

    llama.cpp's weights and KV cache are such allocations, and each token reads all of them: with pages of 4 KiB the
    processor walks its page tables for it. glibc 2.35 and later know the setting, others ignore it; the kernel heeds it
    where transparent huge pages are `madvise` (the usual) or `always`.
    """
    if _LARGE_PAGES.partition("=")[0] in given:
        return given
    return ":".join(filter(None, (given, _LARGE_PAGES)))
