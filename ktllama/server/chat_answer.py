"""A chat answer on the wire: chunks for a stream, and the whole, which is the fold of the same deltas.

A chunk a token is the hot path of this process, and the compute wants the cores: what stays the same in all chunks
of a choice is encoded once, the text by msgspec, and the pieces are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ktllama.engine.messages import TokenLogprob, Usage
from ktllama.server import usage
from ktllama.server.deltas import ArgumentsAdded, CallBegan, ChoiceDelta, ChoiceEnded, TextAdded
from ktllama.server.logprobs import chat_logprobs

_json = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all chunks of an answer, and the whole, begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def members(self, kind: str) -> dict[str, Any]:
        """As JSON members; `kind` is OpenAI's `object`."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class ChatChunks:
    """Encodes deltas as `chat.completion.chunk` events.

    `shows_reasoning`: every delta has both `content` and `reasoning_content`, one of them null, as DeepSeek sends
    them; their documented loop reads both of every chunk. `include_usage` puts `usage: null` into every chunk.
    """

    def __init__(self, head: Head, *, n_choices: int, shows_reasoning: bool, include_usage: bool) -> None:
        self._head = head
        self._members = _json(head.members("chat.completion.chunk"))[:-1] + b',"choices":['
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        event = b"data: " + self._members
        self._before = [event + b'{"index":%d,"delta":' % index for index in range(n_choices)]
        no_reasoning, no_content = (b',"reasoning_content":null', b'"content":null,') if shows_reasoning else (b"", b"")
        self._no_reasoning = no_reasoning
        self._after_content = no_reasoning + b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._after_reasoning = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        self._content = [before + b'{"content":' for before in self._before]
        self._reasoning = [before + b"{" + no_content + b'"reasoning_content":' for before in self._before]

    def opening(self) -> bytes:
        """The first chunk of every choice, with its role."""
        return b"".join(before + b'{"role":"assistant","content":""' + self._after_content for before in self._before)

    def encoded(self, deltas: Iterable[ChoiceDelta]) -> bytes:
        """The events that these deltas are."""
        return b"".join([self._chunk(delta) for delta in deltas])

    def _chunk(self, delta: ChoiceDelta) -> bytes:
        if isinstance(delta, TextAdded):
            if delta.logprobs:
                return self._with_logprobs(delta)
            if delta.kind == "content":
                return self._content[delta.index] + _json(delta.text) + self._after_content
            return self._reasoning[delta.index] + _json(delta.text) + self._after_reasoning
        if isinstance(delta, ArgumentsAdded):
            call: dict[str, Any] = {"index": delta.call, "function": {"arguments": delta.text}}
            return self._called(delta.index, call)
        if isinstance(delta, CallBegan):
            function = {"name": delta.name, "arguments": ""}
            call = {"index": delta.call, "id": delta.id, "type": "function", "function": function}
            return self._called(delta.index, call)
        return self._end(delta)

    def _called(self, index: int, call: dict[str, Any]) -> bytes:
        delta = b'{"content":null' + self._no_reasoning + b',"tool_calls":[' + _json(call) + b"]}"
        return self._before[index] + delta + b',"logprobs":null,"finish_reason":null}]' + self._tail

    def _with_logprobs(self, delta: TextAdded) -> bytes:
        if delta.kind == "content":
            text = b'{"content":' + _json(delta.text) + self._no_reasoning + b"}"
            logprobs = {"content": chat_logprobs(delta.logprobs)}
        else:
            text = b'{"content":null,"reasoning_content":' + _json(delta.text) + b"}"
            logprobs = {"content": [], "reasoning_content": chat_logprobs(delta.logprobs)}
        made = _json(logprobs)
        return self._before[delta.index] + text + b',"logprobs":' + made + b',"finish_reason":null}]' + self._tail

    def _end(self, delta: ChoiceEnded) -> bytes:
        remarks = b"" if delta.remarks is None else b',"ktllama":' + _json(delta.remarks)
        reason = _json(delta.finish_reason)
        text = b'{"content":""' + self._no_reasoning + b'},"logprobs":null,"finish_reason":'
        return self._before[delta.index] + text + reason + remarks + b"}]" + self._tail

    def usage(self, total: Usage) -> bytes:
        """The last chunk, where usage was asked for: no choices."""
        return b"data: " + self._members + b'],"usage":' + _json(usage.as_json(total)) + b"}\n\n"


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class ChoiceFold:
    """Collects the deltas of one choice."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self.logprobs: dict[str, list[TokenLogprob]] = {"reasoning": [], "content": []}
        self.calls: list[_Call] = []
        self.ended: ChoiceEnded | None = None

    def add(self, delta: ChoiceDelta) -> None:
        """Take one delta of this choice."""
        if isinstance(delta, TextAdded):
            self.texts[delta.kind].append(delta.text)
            self.logprobs[delta.kind] += delta.logprobs
        elif isinstance(delta, CallBegan):
            self.calls.append(_Call(delta.id, delta.name))
        elif isinstance(delta, ArgumentsAdded):
            self.calls[delta.call].arguments.append(delta.text)
        else:
            self.ended = delta

    @property
    def text(self) -> str:
        """The content."""
        return "".join(self.texts["content"])

    def message(self, *, shows_reasoning: bool) -> dict[str, Any]:
        """The `message` of a choice."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or (None if self._says_more() else "")}
        if shows_reasoning:
            message["reasoning_content"] = "".join(self.texts["reasoning"]) or None
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in self.calls
            ]
        return message

    def _says_more(self) -> bool:
        return bool(self.calls or any(self.texts["reasoning"]))


def folded(deltas: Sequence[ChoiceDelta], n_choices: int) -> list[ChoiceFold]:
    """The choices that a stream of deltas amounts to."""
    folds = [ChoiceFold() for _ in range(n_choices)]
    for delta in deltas:
        folds[delta.index].add(delta)
    return folds


def whole(head: Head, folds: Sequence[ChoiceFold], *, shows_reasoning: bool, logprobs: bool, total: Usage) -> bytes:
    """A `chat.completion`."""
    choices = [
        _whole_choice(index, choice, shows_reasoning=shows_reasoning, logprobs=logprobs)
        for index, choice in enumerate(folds)
    ]
    return _json({**head.members("chat.completion"), "choices": choices, "usage": usage.as_json(total)})


def _whole_choice(index: int, choice: ChoiceFold, *, shows_reasoning: bool, logprobs: bool) -> dict[str, Any]:
    assert choice.ended is not None, "a fold of an unfinished stream"
    found = None
    if logprobs:
        found = {
            "content": chat_logprobs(choice.logprobs["content"]),
            **({"reasoning_content": chat_logprobs(choice.logprobs["reasoning"])} if shows_reasoning else {}),
        }
    made = {
        "index": index,
        "message": choice.message(shows_reasoning=shows_reasoning),
        "logprobs": found,
        "finish_reason": choice.ended.finish_reason,
    }
    return made if choice.ended.remarks is None else {**made, "ktllama": choice.ended.remarks}
