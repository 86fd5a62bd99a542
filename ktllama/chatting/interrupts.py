"""Ctrl-C that waits until the terminal is in order.

An interrupt may come between any two instructions, also in the middle of drawing; what is half drawn cannot be put
away. So while something is being drawn the interrupt is only noted, and raised when that is done.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Ctrl-C as KeyboardInterrupt, but not inside :meth:`held`."""

    def __init__(self) -> None:
        self._holding = False
        self._came = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take over SIGINT for a while; only the main thread may."""
        before = signal.signal(signal.SIGINT, self._came_now)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Draw in peace; an interrupt that comes meanwhile is raised at the end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _came_now(self, _number: int, _frame: FrameType | None) -> None:
        if not self._holding:
            raise KeyboardInterrupt
        self._came = True
