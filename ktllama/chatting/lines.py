"""What the user types: one line, or several between triple quotes or joined by backslashes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

_FENCE = '"""'

ReadLine = Callable[[str], str]


def reader(stream: TextIO, commands: Sequence[str]) -> ReadLine:
    """A function that shows a prompt and reads a line, without its end; it raises EOFError when there are no more.

    On a terminal with editing, history and completion of commands, by readline; elsewhere without a prompt.
    """
    if stream is sys.stdin and stream.isatty() and sys.stdout.isatty():
        _prepare_readline(commands)
        return input

    def read(prompt: str) -> str:  # noqa: ARG001
        line = stream.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    return read


def _prepare_readline(commands: Sequence[str]) -> None:
    try:
        import readline
    except ImportError:
        return  # a Python without it: input() reads plain lines

    def complete(text: str, number: int) -> str | None:
        fitting = [command for command in commands if command.startswith(text)] if text.startswith("/") else []
        return fitting[number] if number < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(1000)


def entries(read: ReadLine) -> Iterator[str]:
    """What the user said, entry by entry, until the end of input.

    A line that begins with triple quotes goes on to the line that ends with them; one that ends with a backslash goes
    on to the next. Yields the empty string where Ctrl-C dropped an entry, so that the caller may say so.
    """
    while True:
        try:
            yield _entry(read)
        except KeyboardInterrupt:
            yield ""
        except EOFError:
            return


def _entry(read: ReadLine) -> str:
    line = read(">>> ")
    if line.lstrip().startswith(_FENCE):
        return _fenced(line.lstrip().removeprefix(_FENCE), read)
    parts = []
    while line.endswith("\\"):
        parts.append(line.removesuffix("\\"))
        line = read("... ")
    return "\n".join([*parts, line]).strip()


def _fenced(line: str, read: ReadLine) -> str:
    parts = []
    while not line.rstrip().endswith(_FENCE):
        parts.append(line)
        try:
            line = read("... ")
        except EOFError:
            line = _FENCE  # an open quotation ends with the input
    return "\n".join([*parts, line.rstrip().removesuffix(_FENCE)]).strip("\n")
