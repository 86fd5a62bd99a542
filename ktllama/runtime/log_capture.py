"""llama.cpp's log as lines with a level."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ktllama.runtime.library import Library

#: ``enum ggml_log_level``; NONE also marks text that did not come through the log, such as an abort's last words.
NONE, DEBUG, INFO, WARN, ERROR, CONTINUED = 0, 1, 2, 3, 4, 5

#: A line of ours that begins the log of each context in a session of dry runs.
CONTEXT_MARK = "ktllama: context"


class LogLine(NamedTuple):
    """One line without its line end; ``level`` is ggml's number."""

    level: int
    text: str


class LogCapture:
    """Sends every complete line of llama.cpp's and ggml's log to ``sink`` until :meth:`stop`.

    A process has one log callback: a later capture replaces an earlier one. Text arrives in pieces (a progress bar
    comes dot by dot), so a line is passed on when its end arrives.
    """

    def __init__(self, library: Library, sink: Callable[[LogLine], None]) -> None:
        self._library = library
        self._sink = sink
        self._level = INFO
        self._pending = ""
        library.set_log(self._receive)

    def stop(self) -> None:
        """Pass on what is left, and let llama.cpp log to nowhere unless a later capture has taken over."""
        if self._pending:
            self._sink(LogLine(self._level, self._pending))
            self._pending = ""
        if self._library.log_receiver == self._receive:
            self._library.set_log(None)

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        if level != CONTINUED:
            self._level = level
        self._pending += text.decode(errors="replace")
        if "\n" in self._pending:
            *lines, self._pending = self._pending.split("\n")
            for line in lines:
                self._sink(LogLine(self._level, line))
