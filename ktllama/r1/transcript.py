"""What one running sequence has said: its deltas, its counts, and whether it has stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ktllama.r1.delta import Delta, Kind, merged
from ktllama.r1.stop_strings import StopStrings
from ktllama.r1.thinking import NO_IDS, THINK_TAGS, Piece, ThinkingTokenParser, Unclosed
from ktllama.r1.tool_calls import CallClosed, ToolCallParser
from ktllama.r1.tool_formats import ToolFormatName

ReasoningFormat = Literal["deepseek", "none", "deepseek-legacy"]
Thinking = Literal["open", "possible", "closed"]


class Transcript:
    """Tokens of one sequence in, deltas out. Feed every token of the completion, forced ones too, in order.

    ``thinking``, ``keep_blanks`` and ``prompt_side`` are the Prompt's. ``think_ids`` are the ids of the opening and
    closing tag where the vocabulary has them; then they decide, and the same text made of other tokens is text.
    ``tool_openers`` (or ``tool_opener_ids``, id to text, where the vocabulary has them) close the thinking.
    ``end_ids`` end the answer and never show. ``stop`` strings fire in the content only, and never show.
    ``reasoning_budget`` counts tokens of thinking; None is no limit. ``closing_tokens`` are what is forced when it
    is spent: an optional message and the closing tag; they count as tags, so the thinking is never over its budget but
    by a tag that it only seemed to begin. With ``one_call`` the answer ends with its first tool call of that format.

    ``reasoning_format``: ``deepseek`` parts thinking from content; ``none`` gives the raw text as content, tags and
    ``prompt_side`` included; ``deepseek-legacy`` gives the thinking as reasoning and the raw text as content.
    """

    def __init__(
        self,
        *,
        thinking: Thinking,
        keep_blanks: bool = False,
        prompt_side: str = "",
        think_tags: tuple[str, str] = THINK_TAGS,
        think_ids: tuple[int, int] | None = None,
        end_ids: frozenset[int] = frozenset(),
        stop: tuple[str, ...] = (),
        reasoning_format: ReasoningFormat = "deepseek",
        unclosed: Unclosed = "reasoning",
        tool_openers: tuple[str, ...] = (),
        tool_opener_ids: Mapping[int, str] = NO_IDS,
        reasoning_budget: int | None = None,
        closing_tokens: tuple[int, ...] = (),
        one_call: ToolFormatName | None = None,
    ) -> None:
        assert reasoning_budget is None or closing_tokens, "a budget needs tokens that close the thinking"
        self._parser = ThinkingTokenParser(
            thinking == "open",
            closed=thinking == "closed",
            think_ids=think_ids,
            keep_blanks=keep_blanks,
            # The raw text is content anyway; holding it back would only delay it.
            unclosed=unclosed if reasoning_format == "deepseek" else "reasoning",
            think_tags=think_tags,
            tool_openers=tool_openers,
            tool_opener_ids=tool_opener_ids,
        )
        self._stops = StopStrings(stop)
        self._format = reasoning_format
        self._prompt_side = prompt_side if reasoning_format != "deepseek" else ""
        self._end_ids = end_ids
        self._budget = reasoning_budget
        self._closing_tokens = closing_tokens
        self._calls = None if one_call is None else ToolCallParser(one_call)
        self._shows_as_it_is = one_call is None and reasoning_format != "deepseek-legacy"
        self._n_settled = 0 if stop else None  # characters before which no stop string can begin; None: all
        self._unsettled_tokens = 0  # of what may become a tag
        self._forced_tokens = 0  # that are still to be fed
        #: Why the sequence ended by itself; None while it runs.
        self.stopped: Literal["eos", "stop", "call"] | None = None
        self.reasoning_tokens = 0
        self.content_tokens = 0
        #: Tokens of tags, of a forced closing, and the end token. The three counts add up to the tokens fed once
        #: `finish` was called.
        self.tag_tokens = 0

    @property
    def phase(self) -> Kind:
        """Whether the next token is thinking or answer. Grammars begin where this becomes ``content``.

        Thinking that is possible and has not begun is ``content``; see `undecided`.
        """
        return "reasoning" if self._parser.state == "reasoning" else "content"

    @property
    def undecided(self) -> bool:
        """Whether the next token may still open the thinking. A grammar must wait, or rule the thinking out."""
        return self._parser.state == "undecided"

    @property
    def stop_string(self) -> str | None:
        """The stop string that fired."""
        return self._stops.matched

    @property
    def n_characters(self) -> int:
        """Of the raw text so far, where there are stop strings: there the next token's text begins."""
        return self._parser.n_characters

    def is_settled(self, start: int) -> bool:
        """Whether the text that begins at a character of the raw text, if only its first one, is not a stop string's.

        What may become one is settled when it cannot any more. What did, and what is behind it, never is.
        """
        return self._n_settled is None or start < self._n_settled

    @property
    def completion_tokens(self) -> int:
        """All tokens fed."""
        return self.reasoning_tokens + self.content_tokens + self.tag_tokens + self._unsettled_tokens

    @property
    def budget_spent(self) -> bool:
        """Whether `forced_tokens` must be decoded next instead of sampling."""
        return (
            self._budget is not None
            and self.stopped is None
            and self._parser.state == "reasoning"
            and not self._parser.scanner.holds
            and self.reasoning_tokens >= self._budget
        )

    def forced_tokens(self) -> tuple[int, ...]:
        """The tokens that close the thinking now; feed each when it was decoded. The budget asks only once."""
        self._budget = None
        self._forced_tokens = len(self._closing_tokens)
        self._parser.drop_incomplete()  # a character that the budget cut in two
        return self._closing_tokens

    def feed(self, token: int, piece: bytes) -> list[Delta]:
        """What the token adds. ``piece`` is its bytes, which may be a part of a character."""
        assert self.stopped is None, "a token after the end"
        if token in self._end_ids:
            self.stopped = "eos"
            self.tag_tokens += 1
            return []
        if (delta := self._plain(token, piece)) is not None:
            return [delta]
        before = self._parser.state
        pieces = self._parser.pieces(token, piece)
        if self._forced_tokens:
            self._forced_tokens -= 1
            self.tag_tokens += 1
        else:
            self._count(before, pieces)
        deltas = self._shown(pieces)
        if self.stopped is None and self._has_called(pieces):
            self.stopped = "call"
        return deltas

    def _plain(self, token: int, piece: bytes) -> Delta | None:
        """The delta of a token that is text and nothing else, which is counted; None where more has to be looked at."""
        if not self._shows_as_it_is or self._unsettled_tokens or self._forced_tokens or self._prompt_side:
            return None
        delta = self._parser.plain(token, piece)
        if delta is None:
            return None
        if delta.kind == "reasoning":
            self.reasoning_tokens += 1
        elif self._stops.passes(delta.text):
            self.content_tokens += 1
        else:
            return None
        if self._n_settled is not None:
            self._parser.count(delta.text)
            self._n_settled += len(delta.text)
        return delta if self._format == "deepseek" else Delta("content", delta.text)

    def _has_called(self, pieces: list[Piece]) -> bool:
        """Whether the one tool call that is wanted is complete now."""
        if self._calls is None:
            return False
        texts = [text for kind, text in pieces if kind == "content"]
        return any(isinstance(event, CallClosed) for text in texts for event in self._calls.feed(text))

    def _count(self, before: str, pieces: list[Piece]) -> None:
        """Settle whose token this was; those that may be a part of a tag wait for the tag."""
        self._unsettled_tokens += 1
        if self._parser.scanner.holds or self._parser.state == "undecided":
            return
        tag = any(kind == "dropped" and text.strip() for kind, text in pieces)
        if tag:
            self.tag_tokens += self._unsettled_tokens
        elif before == "reasoning" and self._parser.state == "reasoning":
            self.reasoning_tokens += self._unsettled_tokens
        else:
            self.content_tokens += self._unsettled_tokens
        self._unsettled_tokens = 0

    def _shown(self, pieces: list[Piece]) -> list[Delta]:
        deltas = [Delta("content", self._prompt_side)]
        self._prompt_side = ""
        for kind, text in pieces:
            if kind == "content":
                shown = self._stops.feed(text)
                deltas.append(Delta("content", shown))
                self._settle(shown)
                if self._stops.matched is not None:
                    self.stopped = "stop"
                    break
                continue
            self._settle(text)
            if kind == "reasoning" and self._format != "none":
                deltas.append(Delta("reasoning", text))
            if self._format != "deepseek":
                deltas.append(Delta("content", text))
        return merged(deltas)

    def _settle(self, text: str) -> None:
        if self._n_settled is not None:
            self._n_settled += len(text)

    def finish(self, cut_off: bool) -> list[Delta]:
        """What was held back. ``cut_off``: by length, a disconnect or a guard, rather than by the model itself."""
        if self._stops.matched is not None:
            return []
        self._parser.drop_incomplete()
        before = self._parser.state
        deltas = self._shown(self._parser.scanner.finish(cut_off))
        if before == "reasoning":
            self.reasoning_tokens += self._unsettled_tokens
        else:
            self.content_tokens += self._unsettled_tokens
        self._unsettled_tokens = 0
        if self.stopped == "stop":
            return deltas
        self._n_settled = None
        return merged([*deltas, Delta("content", self._stops.flush())])
