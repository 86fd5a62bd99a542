"""Thinking and answer, told apart while they stream.

Two stages. `_Thought` is the state machine: it hears text, opening tags, closing tags and tool openers, and says
what each character is. The parsers in front of it differ only in how they recognise a tag: `ThinkingParser` in text,
with a hold-back for what may become one; `ThinkingTokenParser` by token ids where the vocabulary has them.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from ktllama.r1.delta import BLANKS, Delta, Kind, merged
from ktllama.r1.markers import earliest, held_back

THINK_TAGS = ("<think>", "</think>")
NO_IDS: Mapping[int, str] = MappingProxyType({})

State = Literal["undecided", "reasoning", "content"]
Unclosed = Literal["reasoning", "content"]


class Piece(NamedTuple):
    """A stretch of the raw text in its order: ``kind`` is what it is, ``dropped`` for tags and blanks around them."""

    kind: Literal["reasoning", "content", "dropped"]
    text: str


class _Thought:
    """The state machine behind both parsers.

    `undecided`: nothing but blanks so far; an opening tag begins the thinking, a closing tag ends it empty, and
    any other text is the answer. `reasoning`: until the first close. `content`: everything is text, tags too.
    """

    def __init__(self, state: State, *, keep_blanks: bool, unclosed: Unclosed) -> None:
        self.state = state
        self._fresh = not keep_blanks  # blanks that come now stand next to a tag
        self._undecided_blanks = ""
        self._waiting: list[Piece] = []  # blanks and tags inside the thinking, until what follows is known
        # Without any tag the caller may want the text as content; then nothing may be shown before the end.
        self._withheld: list[Piece] | None = [] if unclosed == "content" and state == "reasoning" else None

    @property
    def settled(self) -> bool:
        """Whether the next character's kind is known, and nothing waits for it."""
        return not (self._fresh or self._waiting or self._withheld is not None or self.state == "undecided")

    def text(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self.state == "undecided":
            self._undecided_blanks += text
            if not self._undecided_blanks.strip(BLANKS):
                return []
            text, self._undecided_blanks = self._undecided_blanks, ""
            self.state, self._fresh = "content", False
        if self.state == "reasoning":
            return self._reasoning(text)
        return self._content(text)

    def _content(self, text: str) -> list[Piece]:
        if not self._fresh:
            return [Piece("content", text)]
        shown = text.lstrip(BLANKS)
        self._fresh = not shown
        return [Piece("dropped", text[: len(text) - len(shown)]), Piece("content", shown)]

    def _reasoning(self, text: str) -> list[Piece]:
        found: list[Piece] = []
        if self._fresh:
            shown = text.lstrip(BLANKS)
            found.append(Piece("dropped", text[: len(text) - len(shown)]))
            self._fresh = not shown
            text = shown
        shown = text.rstrip(BLANKS)
        if shown:
            found += self._waiting
            found.append(Piece("reasoning", shown))
            self._waiting = []
        if len(shown) < len(text):
            self._waiting.append(Piece("reasoning", text[len(shown) :]))
        return self._passed(found)

    def _passed(self, found: list[Piece]) -> list[Piece]:
        if self._withheld is None:
            return found
        self._withheld += found
        return []

    def _released(self) -> list[Piece]:
        withheld, self._withheld = self._withheld or [], None
        return withheld

    def opening(self, tag: str) -> list[Piece]:
        if self.state == "content":
            return self._content(tag)
        found = [*self._released(), Piece("dropped", self._undecided_blanks)]
        self._undecided_blanks = ""
        if self.state == "reasoning" and not self._fresh:
            self._waiting.append(Piece("dropped", tag))
            return found
        self.state, self._fresh = "reasoning", True
        return [*found, Piece("dropped", tag)]

    def closing(self, tag: str) -> list[Piece]:
        if self.state == "content":
            return self._content(tag)
        return [*self._closed(), Piece("dropped", tag)]

    def tool_opening(self, marker: str) -> list[Piece]:
        """A tool call begins. Inside the thinking it ends the thinking."""
        found = [] if self.state == "content" else self._closed()
        return [*found, *self._content(marker)]

    def _closed(self) -> list[Piece]:
        found = [*self._released(), Piece("dropped", self._undecided_blanks)]
        found += [Piece("dropped", text) for _, text in self._waiting]
        self._undecided_blanks, self._waiting = "", []
        self.state, self._fresh = "content", True
        return found

    def finish(self, cut_off: bool) -> list[Piece]:
        """The blanks that were held back; no tag came, so they are text of the side they stand on."""
        found = self._passed(self._waiting)
        withheld = self._released()
        if withheld and not cut_off:
            withheld = [Piece("content" if kind == "reasoning" else kind, text) for kind, text in withheld]
        blanks, self._undecided_blanks, self._waiting = self._undecided_blanks, "", []
        return [*found, *withheld, Piece("content", blanks)]


class TagScanner:
    """Finds tags in text that comes in any chunks. The pieces' texts join to the text fed, in its order."""

    def __init__(
        self,
        state: State,
        *,
        keep_blanks: bool = False,
        unclosed: Unclosed = "reasoning",
        think_tags: tuple[str, str] = THINK_TAGS,
        tool_openers: tuple[str, ...] = (),
        tags_in_text: bool = True,
    ) -> None:
        self._thought = _Thought(state, keep_blanks=keep_blanks, unclosed=unclosed)
        self._opening, self._closing = think_tags
        self._markers = (*(think_tags if tags_in_text else ()), *tool_openers)
        self._first_characters = frozenset(marker[0] for marker in self._markers)
        self._held = ""

    @property
    def state(self) -> State:
        """What the next character would be."""
        return self._thought.state

    @property
    def holds(self) -> bool:
        """Whether the last characters may yet become a tag."""
        return bool(self._held)

    def plain(self, text: str) -> Kind | None:
        """The kind of a text that shows as it is and leaves all as it was; None where `feed` has to look at it.

        Most tokens are such texts, and `feed` costs several times as much.
        """
        thought = self._thought
        if self._held or not text or not thought.settled:
            return None
        if thought.state == "content":
            return "content"
        if text[-1] in BLANKS or not self._first_characters.isdisjoint(text):
            return None
        return "reasoning"

    def feed(self, text: str) -> list[Piece]:
        """What ``text`` settles."""
        thought = self._thought
        text, self._held = self._held + text, ""
        found: list[Piece] = []
        while text and not self._is_content():
            match = earliest(text, self._markers)
            before = text[: match.start] if match else text[: len(text) - held_back(text, self._markers)]
            found += thought.text(before)
            text = text[len(before) :]
            if self._is_content():
                break
            if match is None:
                self._held = text
                return found
            found += self._marker(match.marker)
            text = text[len(match.marker) :]
        return found + thought.text(text)

    def _is_content(self) -> bool:
        return self.state == "content"

    def _marker(self, marker: str) -> list[Piece]:
        if marker == self._opening:
            return self._thought.opening(marker)
        if marker == self._closing:
            return self._thought.closing(marker)
        return self._thought.tool_opening(marker)

    def open(self) -> list[Piece]:
        """The opening tag came as a token of its own."""
        return self._flushed() + self._thought.opening(self._opening)

    def close(self) -> list[Piece]:
        """The closing tag came as a token of its own."""
        return self._flushed() + self._thought.closing(self._closing)

    def tool_open(self, marker: str) -> list[Piece]:
        """A tool call's opener came as a token of its own."""
        return self._flushed() + self._thought.tool_opening(marker)

    def _flushed(self) -> list[Piece]:
        held, self._held = self._held, ""
        return self._thought.text(held)

    def finish(self, cut_off: bool) -> list[Piece]:
        """What was held back, as the text that it turned out to be."""
        return self._flushed() + self._thought.finish(cut_off)


def deltas_of(pieces: list[Piece]) -> list[Delta]:
    """The pieces that show, neighbours of one kind joined."""
    return merged(Delta(kind, text) for kind, text in pieces if kind != "dropped")


def _start(start_in_reasoning: bool, closed: bool) -> State:
    if start_in_reasoning:
        return "reasoning"
    return "content" if closed else "undecided"


class ThinkingParser:
    """Splits a model's text into thinking and answer; the chunks it comes in make no difference.

    ``start_in_reasoning``: the prompt ended in ``<think>\\n``. Otherwise the thinking begins where the text begins
    with ``<think>``, unless it is ``closed``: none can come, as the prompt closed it or the model does not think.
    ``keep_blanks``: leading whitespace counts, as the text goes on one of the prompt or follows no tag.
    Up to the first close, opening tags are dropped wherever they stand; after it, tags are content.
    ``unclosed`` says what text is that began inside the thinking, had no tag and ended by itself: with ``content``
    nothing of it is given before a tag or the end.
    ``tool_openers`` are texts that begin a tool call; one inside the thinking ends it, and is content itself.
    """

    def __init__(
        self,
        start_in_reasoning: bool,
        *,
        closed: bool = False,
        keep_blanks: bool = False,
        unclosed: Unclosed = "reasoning",
        think_tags: tuple[str, str] = THINK_TAGS,
        tool_openers: tuple[str, ...] = (),
    ) -> None:
        self._scanner = TagScanner(
            _start(start_in_reasoning, closed),
            keep_blanks=keep_blanks,
            unclosed=unclosed,
            think_tags=think_tags,
            tool_openers=tool_openers,
        )

    @property
    def state(self) -> State:
        """What the next character would be."""
        return self._scanner.state

    def feed(self, text: str) -> list[Delta]:
        """What ``text`` adds to either side. What may become a tag is held back."""
        return deltas_of(self._scanner.feed(text))

    def finish(self, cut_off: bool) -> list[Delta]:
        """What was held back. ``cut_off``: the text was ended by a limit, not by the model."""
        return deltas_of(self._scanner.finish(cut_off))


class ThinkingTokenParser:
    """The twin of `ThinkingParser` for token ids and their bytes.

    With ``think_ids``, the ids of the opening and closing tag, those decide and the same text made of other tokens
    is text; without, tags are found in the text. ``tool_opener_ids``, id to text, does the same for tool calls. Bytes
    that are a part of a character wait for the rest; what never becomes a character is U+FFFD, except at the end and
    before a tag, where it is cut away.
    """

    def __init__(
        self,
        start_in_reasoning: bool,
        *,
        think_ids: tuple[int, int] | None = None,
        closed: bool = False,
        keep_blanks: bool = False,
        unclosed: Unclosed = "reasoning",
        think_tags: tuple[str, str] = THINK_TAGS,
        tool_openers: tuple[str, ...] = (),
        tool_opener_ids: Mapping[int, str] = NO_IDS,
    ) -> None:
        self._opening_id = think_ids[0] if think_ids else None
        self._closing_id = think_ids[1] if think_ids else None
        tags = dict(zip(think_ids, think_tags, strict=True)) if think_ids else {}
        self._marking = {**tool_opener_ids, **tags}  # the text of each token that is a mark
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._incomplete = False  # the decoder holds a part of a character
        self.n_characters = 0  # of the text so far
        self.scanner = TagScanner(
            _start(start_in_reasoning, closed),
            keep_blanks=keep_blanks,
            unclosed=unclosed,
            think_tags=think_tags,
            tool_openers=() if tool_opener_ids else tool_openers,
            tags_in_text=think_ids is None,
        )

    @property
    def state(self) -> State:
        """What the next token would be."""
        return self.scanner.state

    def feed(self, token: int, piece: bytes) -> list[Delta]:
        """What a token adds; ``piece`` is its bytes."""
        return deltas_of(self.pieces(token, piece))

    def plain(self, token: int, piece: bytes) -> Delta | None:
        """The delta of a token that is text and nothing else; None where `feed` has to look at it."""
        if self._incomplete or token in self._marking:
            return None
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            return None
        kind = self.scanner.plain(text)
        return None if kind is None else Delta(kind, text)

    def count(self, text: str) -> None:
        """The text of a token that `plain` has settled, which `pieces` will not see."""
        self.n_characters += len(text)

    def pieces(self, token: int, piece: bytes) -> list[Piece]:
        """The same as `feed`, with what does not show."""
        marker = self._marking.get(token)
        if marker is None:
            text = self._decoder.decode(piece)
            self._incomplete = bool(self._decoder.getstate()[0])
            self.n_characters += len(text)
            return self.scanner.feed(text)
        self.drop_incomplete()
        self.n_characters += len(marker)
        if token == self._opening_id:
            return self.scanner.open()
        if token == self._closing_id:
            return self.scanner.close()
        return self.scanner.tool_open(marker)

    def drop_incomplete(self) -> None:
        """Forget the bytes of a character that will not be completed."""
        self._decoder.reset()
        self._incomplete = False

    def finish(self, cut_off: bool) -> list[Delta]:
        """What was held back. ``cut_off``: the answer was ended by a limit, not by the model."""
        self.drop_incomplete()
        return deltas_of(self.scanner.finish(cut_off))
