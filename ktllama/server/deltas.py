"""What one choice of an answer gains, event by event: the typed deltas that a stream sends and a fold collects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ktllama.engine.messages import Emitted, Finished, Kind, TokenLogprob, Usage
from ktllama.r1.tool_calls import ArgumentsText, CallOpened, ContentText, ToolCallParser, ToolEvent

FinishReason = Literal["stop", "length", "tool_calls"]


class TextAdded(msgspec.Struct, frozen=True, gc=False):
    """More thinking or content. `logprobs` are the tokens of that kind that came with it; the text may be empty."""

    index: int
    kind: Kind
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class CallBegan(msgspec.Struct, frozen=True, gc=False):
    """A tool call, known by name; `call` counts from 0 within the choice."""

    index: int
    call: int
    id: str
    name: str


class ArgumentsAdded(msgspec.Struct, frozen=True, gc=False):
    """More of a call's arguments."""

    index: int
    call: int
    text: str


class ChoiceEnded(msgspec.Struct, frozen=True):
    """The end of a choice. `remarks` is what OpenAI's shape has no place for; None where nothing is to be said."""

    index: int
    finish_reason: FinishReason
    usage: Usage
    remarks: dict[str, bool | str] | None = None


ChoiceDelta = TextAdded | CallBegan | ArgumentsAdded | ChoiceEnded


class ChoiceReader:
    """One choice: the engine's events in, deltas out. Feed it every Emitted, then the Finished.

    `raw`: all text is content, so all tokens are too. `tools` finds tool calls in the content; None leaves them text.
    `one_call` drops all calls after the first.
    """

    def __init__(
        self, index: int, *, raw: bool = False, tools: ToolCallParser | None = None, one_call: bool = False
    ) -> None:
        self.index = index
        self._raw = raw
        self._tools = tools
        self._one_call = one_call
        self._calls_complete = 0

    def emitted(self, event: Emitted) -> list[ChoiceDelta]:
        """The deltas of one event."""
        index = self.index
        if self._tools is None and not event.logprobs:
            return [TextAdded(index, kind, text) for kind, text in event.deltas]
        found: list[ChoiceDelta] = []
        for kind, text in event.deltas:
            if self._tools is None or kind == "reasoning":
                found.append(TextAdded(index, kind, text))
            else:
                found += self._tool_deltas(self._tools.feed(text))
        if not event.logprobs:
            return found
        content: Kind = "content"
        return _with_logprobs(
            index, found, event, [content] * len(event.logprobs) if self._raw else event.logprob_kinds
        )

    def finished(self, event: Finished) -> list[ChoiceDelta]:
        """What was held back, and the end."""
        found: list[ChoiceDelta] = []
        if self._tools is not None:
            found += self._tool_deltas(self._tools.finish())
        reason: FinishReason = "length" if event.reason == "length" else "stop"
        if reason == "stop" and self._calls_complete:
            reason = "tool_calls"
        return [*found, ChoiceEnded(self.index, reason, event.usage, _remarks(event))]

    def _tool_deltas(self, events: Sequence[ToolEvent]) -> list[ChoiceDelta]:
        found: list[ChoiceDelta] = []
        for event in events:
            if self._one_call and not isinstance(event, ContentText) and event.index > 0:
                continue
            if isinstance(event, ContentText):
                found.append(TextAdded(self.index, "content", event.text))
            elif isinstance(event, CallOpened):
                found.append(CallBegan(self.index, event.index, event.id, event.name))
            elif isinstance(event, ArgumentsText):
                found.append(ArgumentsAdded(self.index, event.index, event.text))
            else:
                self._calls_complete += 1
        return found


def _with_logprobs(
    index: int, found: list[ChoiceDelta], event: Emitted, token_kinds: Sequence[Kind]
) -> list[ChoiceDelta]:
    """`found`, with the tokens of each kind at the first text of that kind, or at an empty one of their own."""
    kinds: tuple[Kind, ...] = ("reasoning", "content")
    waiting = {
        kind: tuple(token for token, its_kind in zip(event.logprobs, token_kinds, strict=True) if its_kind == kind)
        for kind in kinds
    }
    made: list[ChoiceDelta] = []
    for delta in found:
        if isinstance(delta, TextAdded) and waiting[delta.kind]:
            delta = TextAdded(index, delta.kind, delta.text, waiting[delta.kind])
            waiting[delta.kind] = ()
        made.append(delta)
    return made + [TextAdded(index, kind, "", tokens) for kind, tokens in waiting.items() if tokens]


def _remarks(event: Finished) -> dict[str, bool | str] | None:
    remarks: dict[str, bool | str] = {}
    if event.repetition:
        remarks["repetition"] = True
    if event.thinking_forced_closed:
        remarks["thinking_forced_closed"] = True
    if event.stop is not None:
        remarks["stop"] = event.stop
    return remarks or None
