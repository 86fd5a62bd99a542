"""A piece of an answer: thinking or content, never both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["reasoning", "content"]

#: Whitespace that stands around tags. Only ASCII: an ideographic space that indents a paragraph is text.
BLANKS = " \t\r\n"


class Delta(NamedTuple):
    """Text that was added to one side of the answer; never empty."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A whole answer. None where no text of that side ever came."""

    reasoning: str | None
    content: str | None


def fold(deltas: Iterable[Delta]) -> Folded:
    """The answer that a stream of deltas amounts to."""
    sides: dict[Kind, list[str]] = {"reasoning": [], "content": []}
    for delta in deltas:
        sides[delta.kind].append(delta.text)
    return Folded(reasoning="".join(sides["reasoning"]) or None, content="".join(sides["content"]) or None)


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same deltas with neighbours of one kind joined and empty ones gone."""
    joined: list[Delta] = []
    for delta in deltas:
        if not delta.text:
            continue
        if joined and joined[-1].kind == delta.kind:
            joined[-1] = Delta(delta.kind, joined[-1].text + delta.text)
        else:
            joined.append(delta)
    return joined
