"""Clients that do not read: their answers wait in memory, and that has an end."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import termios

_log = logging.getLogger("ktllama.serve")


class Delivery:
    """Aborts a connection of which nothing was taken for a time, while there is something to take.

    What the system still holds counts as well as what this process holds, so a client that reads a little now and then
    stays, as far as that can be seen from here.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_bytes = 0

    def watch(self) -> None:
        """Something is left with the transport, perhaps, and nothing more is written for now."""
        if self._timer is None:
            self._begin()

    def settle(self) -> None:
        """More is to be written. What was watched is looked at no longer, where the client has all of it."""
        if self._transport.get_write_buffer_size() == 0:
            self.end()

    def end(self) -> None:
        """There is nothing to watch: the client reads, or the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._waiting_bytes = self._transport.get_write_buffer_size() + self._sent_bytes()
        self._timer = self._loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        held = self._transport.get_write_buffer_size()
        if held == 0:
            return
        if held + self._sent_bytes() != self._waiting_bytes:
            self._begin()
            return
        _log.info("a connection is cut: its client took nothing for %g s", self._seconds)
        self._transport.abort()

    def _sent_bytes(self) -> int:
        """What the system has and the client has not confirmed."""
        found = array.array("i", [0])
        connection = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # not every kind of socket can tell
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, found)
        return found[0]
