"""How an answer looks: on a terminal with its thinking dimmed and folded away, elsewhere as plain text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ktllama.chatting.speaker import Ended, Said
from ktllama.units import counted

if TYPE_CHECKING:
    from rich.console import Console

#: Rows of thinking that are in sight while it goes on.
_THINKING_ROWS = 8
#: Characters that would move the cursor or change the terminal; a model may say them, and so may a server.
_CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_CONTROL |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")


class Display(Protocol):
    """Shows one answer after another. ``folds`` says whether thinking is put away when the answer begins."""

    folds: bool

    def begin(self) -> None:
        """A question was sent."""

    def hear(self, said: Said) -> None:
        """A piece of the answer."""

    def end(self, ended: Ended | None) -> None:
        """The answer's end; None where it was stopped."""

    def break_off(self) -> None:
        """There will be no more of the answer; what is told next says why."""

    def tell(self, text: str) -> None:
        """Something that is not part of an answer."""


def harmless(text: str) -> str:
    """``text`` without characters that a terminal obeys."""
    return text.translate(_CONTROL)


class PlainDisplay:
    """For a pipe or a file: the answers to ``out``, all else to ``err``; thinking only where it is not folded away."""

    def __init__(self, out: TextIO, err: TextIO, *, folds: bool) -> None:
        self.folds = folds
        self._out = out
        self._err = err
        self._last = ""

    def begin(self) -> None:
        """Nothing to show."""
        self._last = ""

    def hear(self, said: Said) -> None:
        """Write it, with an empty line between thinking and answer."""
        if said.kind == "reasoning" and self.folds:
            return
        if self._last == "reasoning" and said.kind == "content":
            self._out.write("\n\n")
        self._last = said.kind
        self._out.write(said.text)
        self._out.flush()

    def end(self, ended: Ended | None) -> None:
        """End the line; say where it is not the whole."""
        self.break_off()
        if ended is None or ended.reason != "stop":
            self.tell(f"[{_why(ended)}]")

    def break_off(self) -> None:
        """End the line."""
        self._out.write("\n")
        self._out.flush()

    def tell(self, text: str) -> None:
        """On the other stream."""
        self._err.write(f"{text}\n")
        self._err.flush()


class TerminalDisplay:
    """Thinking is dimmed; while it goes on its last rows are in sight, then one line stands for it."""

    def __init__(self, console: Console, *, folds: bool) -> None:
        self.folds = folds
        self._console = console
        self._began = 0.0
        self._thinking: list[str] = []
        self._thinking_since = 0.0
        self._live: Any = None
        self._column_open = False

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._thinking.clear()
        self._column_open = False

    def hear(self, said: Said) -> None:
        """Show it."""
        if said.kind == "reasoning":
            self._think(said)
            return
        if self._thinking:
            self._fold()
        self._write(said.text)

    def end(self, ended: Ended | None) -> None:
        """Put thinking away and say what it took, in one dim line."""
        self.break_off()
        self._console.print(self._summary(ended), style="dim")

    def break_off(self) -> None:
        """Put thinking away and end the line."""
        if self._thinking:
            self._fold()
        if self._column_open:
            self._console.print()

    def tell(self, text: str) -> None:
        """A line of its own."""
        self._console.print(harmless(text), soft_wrap=True)

    def _think(self, said: Said) -> None:
        if not self._thinking:
            self._thinking_since = time.monotonic()
        self._thinking.append(harmless(said.text))
        if not self.folds:
            self._write(said.text, style="dim")
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        self._live.update(self._last_rows())

    def _last_rows(self) -> Any:
        from rich.text import Text

        width = self._console.width
        recent = "".join(self._thinking[-width * _THINKING_ROWS :])[-width * _THINKING_ROWS :].lstrip("\n")
        rows = Text(recent, style="dim italic").wrap(self._console, width)
        return Text("\n", style="dim italic").join(rows[-_THINKING_ROWS:])

    def _fold(self) -> None:
        """Thinking is over: take it away if it folds, and leave one line."""
        self._stop_live()
        seconds = time.monotonic() - self._thinking_since
        if self._column_open:
            self._console.print("\n")
        self._console.print(f"thought for {seconds:.1f} s", style="dim italic")
        self._thinking.clear()
        self._column_open = False

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _write(self, text: str, style: str = "") -> None:
        self._console.print(harmless(text), end="", style=style, soft_wrap=True)
        self._console.file.flush()
        self._column_open = True

    def _summary(self, ended: Ended | None) -> str:
        seconds = time.monotonic() - self._began
        if ended is None or ended.completion_tokens is None:
            return f"{_why(ended)}, {seconds:.1f} s"
        rate = ended.completion_tokens / seconds if seconds > 0 else 0.0
        why = "" if ended.reason == "stop" else f"{_why(ended)}; "
        thinking = f", {ended.reasoning_tokens} of them thinking" if ended.reasoning_tokens else ""
        return f"{why}{counted(ended.completion_tokens, 'token')}{thinking}, {seconds:.1f} s, {rate:.1f} tokens/s"


def _why(ended: Ended | None) -> str:
    if ended is None:
        return "stopped"
    return {"stop": "done", "length": "cut off at the limit of tokens", "repetition": "ended: it repeated itself"}.get(
        ended.reason, ended.reason
    )
