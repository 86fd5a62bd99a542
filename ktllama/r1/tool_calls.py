"""Tool calls in a model's answer, found while it streams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ktllama.r1.call_readers import CallReader, DeepSeekReader, HermesReader
from ktllama.r1.call_tail import CallTail
from ktllama.r1.delta import BLANKS
from ktllama.r1.markers import earliest, held_back
from ktllama.r1.tool_formats import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    HERMES_BEGIN,
    HERMES_END,
    ToolFormatName,
)


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text of the answer that is no tool call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    """A call began; ``index`` counts from 0 within the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsText:
    """More of a call's arguments: at any time the beginning of a JSON object, and all of it once it is closed."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallClosed:
    """A call is complete: its arguments are a JSON object. A call that is never closed was cut off or is broken."""

    index: int


ToolEvent = ContentText | CallOpened | ArgumentsText | CallClosed


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedCall:
    """A whole call. ``complete`` is False where its arguments are only the beginning of a JSON object."""

    id: str
    name: str
    arguments: str
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedTools:
    """A whole answer; ``content`` is None where there is none."""

    content: str | None
    calls: tuple[FoldedCall, ...]


def fold_tools(events: Iterable[ToolEvent]) -> FoldedTools:
    """The answer that a stream of events amounts to."""
    content: list[str] = []
    opened: list[CallOpened] = []
    arguments: dict[int, list[str]] = {}
    closed: set[int] = set()
    for event in events:
        match event:
            case ContentText(text):
                content.append(text)
            case CallOpened():
                opened.append(event)
            case ArgumentsText(index, text):
                arguments.setdefault(index, []).append(text)
            case CallClosed(index):
                closed.add(index)
    calls = (
        FoldedCall(id=call.id, name=call.name, arguments="".join(arguments[call.index]), complete=call.index in closed)
        for call in opened
    )
    return FoldedTools(content="".join(content) or None, calls=tuple(calls))


class ToolCallParser:
    """Finds tool calls of one format in content text; the chunks it comes in make no difference.

    A call is opened when its name is known and its arguments begin as a JSON object; from there on every text given
    is the beginning of one. What looks like a call and is none comes back as content, whole; where that shows only
    after the call was opened, the call is never closed, and the rest is content. Blanks around calls are dropped.
    Calls are numbered from ``first_index``, their ids are ``id_prefix`` and the number.
    """

    def __init__(self, tool_format: ToolFormatName, *, id_prefix: str = "call_", first_index: int = 0) -> None:
        hermes = tool_format == "hermes"
        self._reader_class: type[DeepSeekReader] | type[HermesReader] = HermesReader if hermes else DeepSeekReader
        self._begin, self._end = (HERMES_BEGIN, HERMES_END) if hermes else (CALL_BEGIN, CALL_END)
        self._block = () if hermes else (CALLS_BEGIN, CALLS_END)
        self._fence = "" if hermes else "```"
        self._markers = (self._begin, self._end, *self._block)
        self._id_prefix = id_prefix
        self._index = first_index - 1
        self._held = ""  # of content: what may become a marker
        self._pending = ""  # of content: blanks and the block's opener, dropped if a call follows
        self._among_calls = False  # a call came, and the block was not closed yet
        self._only_blanks = False  # since the last call
        self._reader: CallReader | None = None
        self._raw = ""  # of a call that is not opened yet
        self._opened = False
        self._tail: CallTail | None = None  # behind a call's JSON

    def feed(self, text: str) -> list[ToolEvent]:
        """What ``text`` adds."""
        events: list[ToolEvent] = []
        text, self._held = self._held + text, ""
        while text:
            if self._reader is not None:
                text = self._in_call(self._reader, text, events)
            elif self._tail is not None:
                rest = self._tail.feed(text)
                self._tail = self._tail if rest is None else None
                text = rest or ""
            else:
                text = self._in_content(text, events)
        return _joined(events)

    @property
    def within_call(self) -> bool:
        """Whether the text so far ends among calls, or in what begins to look like one (by more than a character)."""
        in_block = bool(self._block) and (self._among_calls or CALLS_BEGIN in self._pending)
        return self._reader is not None or self._tail is not None or in_block or len(self._held) > 1

    def finish(self) -> list[ToolEvent]:
        """What was held back. A call that was opened and is not complete stays as it is.

        Behind a call, what looks like the beginning of another one or of an end is dropped: the text was cut there.
        """
        events: list[ToolEvent] = []
        rest = "" if self._among_calls and self._only_blanks else self._held
        if self._reader is not None and not self._opened:
            self._reader = None
            rest = "" if self._among_calls and self._only_blanks else self._raw
            self._among_calls = False
        self._held = self._raw = ""
        if self._reader is None and self._tail is None:
            self._content(rest, events)
            if not self._only_blanks:
                events.append(ContentText(self._pending))
        return _joined(events)

    def _in_content(self, text: str, events: list[ToolEvent]) -> str:
        match = earliest(text, self._markers)
        if match is None:
            safe = len(text) - held_back(text, self._markers)
            self._content(text[:safe], events)
            self._held = text[safe:]
            return ""
        self._content(text[: match.start], events)
        if match.marker == self._begin:
            self._reader, self._raw, self._opened = self._reader_class(), match.marker, False
        elif self._block and match.marker == self._block[0]:
            self._pending += match.marker
            self._only_blanks = False
        elif self._among_calls:  # an end that was left over
            self._among_calls = match.marker == self._end
            self._pending = ""
        else:
            self._content(match.marker, events)
        return text[match.start + len(match.marker) :]

    def _content(self, text: str, events: list[ToolEvent]) -> None:
        shown = text.rstrip(BLANKS)
        if shown:
            events.append(ContentText(self._pending + shown))
            self._pending = ""
            self._only_blanks = False
        self._pending += text[len(shown) :]

    def _in_call(self, reader: CallReader, text: str, events: list[ToolEvent]) -> str:
        for at, character in enumerate(text):
            step = reader.feed(character)
            if not step.ok:
                return self._given_up(text[at:], events)
            if not self._opened:
                self._raw += character
            if step.name is not None:
                self._open(step.name, events)
            if step.arguments:
                events.append(ArgumentsText(self._index, step.arguments))
            if reader.complete:
                events.append(CallClosed(self._index))
                self._reader, self._tail = None, CallTail(self._fence, self._end)
                return text[at + 1 :]
        return ""

    def _open(self, name: str, events: list[ToolEvent]) -> None:
        self._index += 1
        self._opened, self._among_calls, self._only_blanks = True, True, True
        self._pending = self._raw = ""
        events.append(CallOpened(self._index, f"{self._id_prefix}{self._index}", name))

    def _given_up(self, rest: str, events: list[ToolEvent]) -> str:
        """No call, or a broken one. The opener is content, and what follows it is looked at again."""
        self._reader = None
        if self._opened:
            return rest
        raw, self._raw = self._raw, ""
        self._content(self._begin, events)
        return raw[len(self._begin) :] + rest


def _joined(events: list[ToolEvent]) -> list[ToolEvent]:
    """Neighbouring texts of one kind as one, and empty ones gone."""
    found: list[ToolEvent] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, ContentText) and not event.text:
            continue
        if isinstance(event, ContentText) and isinstance(last, ContentText):
            found[-1] = ContentText(last.text + event.text)
        elif isinstance(event, ArgumentsText) and isinstance(last, ArgumentsText) and last.index == event.index:
            found[-1] = ArgumentsText(event.index, last.text + event.text)
        else:
            found.append(event)
    return found
