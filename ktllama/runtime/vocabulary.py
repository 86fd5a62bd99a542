"""A model's vocabulary: text to token ids and back, safe to call while another thread decodes.

Special tokens are found here and not in ``llama_tokenize``, because a prompt is made of segments of which only some
may hold control tokens, and because text that is split between two segments must be tokenized as one: pieces of a
word merge across the border. The search is that of ``llama_vocab::impl::tokenizer_st_partition``
(``src/llama-vocab.cpp`` of llama-cpp-python 0.3.36), so one trusted segment gives exactly llama.cpp's tokens.
"""

from __future__ import annotations

import ctypes
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ktllama.errors import LlamaCppError

if TYPE_CHECKING:
    from ktllama.engine.messages import Segment

#: ``enum llama_token_attr``
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
_LSTRIP, _RSTRIP = 1 << 7, 1 << 8

_PIECE_BYTES = 64
_SPACES = " \t\n\v\f\r"  # C's isspace
_SPM_SPACE = "▁"  # U+2581, which is rendered as a space, whichever of the two the text had

#: A longer word (or gap) is cut. llama.cpp splits text with ``std::regex``, which recurses once a character of a match:
#: 200,000 times the letter a end the process under DeepSeek-V3's pattern.
_WORD_CHARACTERS = 4096
_LONG_STRETCH = re.compile(rf"\S{{{_WORD_CHARACTERS + 1},}}|\s{{{_WORD_CHARACTERS + 1},}}")
#: where every pattern begins a new match anyway: a word's last letter, then punctuation
_NATURAL_CUT = re.compile(r"\w(?=[^\w\s'’])")


@dataclass(frozen=True, slots=True, kw_only=True)
class _SpecialToken:
    token: int
    text: str
    forgeable: bool  # a control token, which counts in trusted segments only
    strips_left: bool
    strips_right: bool


class Vocabulary:
    """The tokens of one loaded model. ``vocab`` is llama.cpp's handle, which must outlive this object."""

    def __init__(self, api: Any, vocab: Any) -> None:
        if api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_NONE:
            raise LlamaCppError("the model file has no vocabulary, so it cannot be served")
        self._api = api
        self._vocab = vocab
        self.size: int = api.llama_vocab_n_tokens(vocab)
        self.bos: int = api.llama_vocab_bos(vocab)
        self.eos: int = api.llama_vocab_eos(vocab)
        self.add_bos: bool = bool(api.llama_vocab_get_add_bos(vocab))
        self.end_tokens = frozenset(token for token in range(self.size) if api.llama_vocab_is_eog(vocab, token))
        self.suppressed = _suppressed(api, vocab)
        self._special = self._special_tokens()
        self._ids = {special.text: special.token for special in reversed(self._special)}
        self._rendered: list[bytes | None] = [None] * self.size
        kind = api.llama_vocab_type(vocab)
        self._splits_words = kind == api.LLAMA_VOCAB_TYPE_BPE
        self._keeps_text = kind in (api.LLAMA_VOCAB_TYPE_BPE, api.LLAMA_VOCAB_TYPE_SPM)  # BERT's drops accents

    def tokenize(self, segments: Sequence[Segment], *, add_bos: bool) -> list[int]:
        """The ids of the segments' joined text; control tokens only within runs of ``special`` segments.

        ``add_bos`` puts the begin-of-sequence token first, unless the text begins with it already. Lone surrogates,
        which no model has seen, become question marks.
        """
        text = "".join(segment.text for segment in segments)
        tokens: list[int] = []
        for fragment in self._fragments(text, _trusted(segments)):
            if isinstance(fragment, int):
                tokens.append(fragment)
            else:
                tokens += self._tokenize_text(fragment)
        if add_bos and self.bos >= 0 and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)
        return tokens

    def least_tokens(self, text: str) -> int:
        """Tokens that ``text`` becomes at least, told by its length alone; 0 where the tokenizer normalizes texts.

        A text of megabytes that is too long for a context need not be tokenized to see it.
        """
        if not self._keeps_text:
            return 0
        longest, vanishing = self._pieces
        n_bytes = len(text.encode(errors="replace").translate(None, vanishing))
        n_bytes -= (len(_SPM_SPACE.encode()) - 1) * text.count(_SPM_SPACE)
        return max(0, -(-n_bytes // longest))

    @cached_property
    def _pieces(self) -> tuple[int, bytes]:
        """Bytes of text that a token stands for at most, and the bytes that may be left out of a text.

        BPE drops a byte that is not in the vocabulary, and some special tokens the blanks beside them.
        """
        pieces = {self._render(token, special=True) for token in range(self.size)}
        vanishing = b"".join({bytes([byte]) for byte in range(256)} - pieces)
        if any(special.strips_left or special.strips_right for special in self._special):
            vanishing += _SPACES.encode()
        return max(1, *map(len, (*pieces, *(special.text.encode() for special in self._special)))), vanishing

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The text of one token as bytes, which may end within a character.

        Raises:
            ValueError: for an id that is not in the vocabulary.
        """
        if not 0 <= token < self.size:
            raise ValueError(f"token {token} is not in the vocabulary of {self.size} tokens")
        if not special:
            return self._render(token, special=False)
        known = self._rendered[token]
        if known is None:
            known = self._rendered[token] = self._render(token, special=True)
        return known

    def text(self, token: int) -> str:
        """The text of a token, or nothing where there is no such token."""
        return self.piece(token).decode(errors="replace") if token >= 0 else ""

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The texts of all control, added and unknown tokens."""
        return tuple(special.text for special in self._special)

    @property
    def added_texts(self) -> tuple[str, ...]:
        """Those of them that are no control tokens: `</think>` in R1's vocabulary, runs of blanks in others."""
        return tuple(special.text for special in self._special if not special.forgeable)

    def token_id(self, text: str) -> int | None:
        """The control or added token whose whole text is ``text``."""
        return self._ids.get(text)

    def _special_tokens(self) -> tuple[_SpecialToken, ...]:
        """Longest first, as llama.cpp looks for them; its sort leaves the order of equal lengths open."""
        found = []
        for token in range(self.size):
            attributes = self._api.llama_vocab_get_attr(self._vocab, token)
            if not attributes & (_CONTROL | _USER_DEFINED | _UNKNOWN):
                continue
            text = (self._api.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")
            if text:
                found.append(
                    _SpecialToken(
                        token=token,
                        text=text,
                        forgeable=bool(attributes & (_CONTROL | _UNKNOWN)),
                        strips_left=bool(attributes & _LSTRIP),
                        strips_right=bool(attributes & _RSTRIP),
                    )
                )
        return tuple(sorted(found, key=lambda special: -len(special.text.encode())))

    def _fragments(self, text: str, trusted: Sequence[int]) -> Iterable[str | int]:
        """``text`` as special tokens and the runs of plain text between them."""
        fragments: list[tuple[int, int] | int] = [(0, len(text))] if text else []
        for special in self._special:
            if special.text in text:
                fragments = [part for fragment in fragments for part in _split(text, fragment, special, trusted)]
        return [fragment if isinstance(fragment, int) else text[slice(*fragment)] for fragment in fragments]

    def _tokenize_text(self, text: str) -> list[int]:
        if not self._splits_words or len(text) <= _WORD_CHARACTERS:
            return self._tokenize_run(text)
        return [token for run in _without_long_words(text) for token in self._tokenize_run(run)]

    def _tokenize_run(self, text: str) -> list[int]:
        data = text.encode(errors="replace")
        size = len(data) + 16
        buffer = (ctypes.c_int32 * size)()
        n_tokens = self._api.llama_tokenize(self._vocab, data, len(data), buffer, size, False, False)
        if n_tokens < 0:
            buffer = (ctypes.c_int32 * -n_tokens)()
            n_tokens = self._api.llama_tokenize(self._vocab, data, len(data), buffer, -n_tokens, False, False)
        return buffer[:n_tokens]

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        n_bytes = self._api.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, special)
        if n_bytes < 0:
            buffer = ctypes.create_string_buffer(-n_bytes)
            n_bytes = self._api.llama_token_to_piece(self._vocab, token, buffer, -n_bytes, 0, special)
        return buffer.raw[:n_bytes]


def _suppressed(api: Any, vocab: Any) -> tuple[int, ...]:
    """Tokens that the model file says must never be generated."""
    n_tokens = ctypes.c_int32(0)
    listed = api.llama_vocab_get_suppress_tokens(vocab, ctypes.byref(n_tokens))
    return tuple(listed[: n_tokens.value]) if listed else ()


def _trusted(segments: Sequence[Segment]) -> list[int]:
    """Where trust begins, ends, begins again and so on: character positions, in order. Control tokens count there."""
    borders: list[int] = []
    start = 0
    for segment in segments:
        end = start + len(segment.text)
        if segment.special and end > start:
            if borders[-1:] == [start]:
                borders[-1] = end
            else:
                borders += start, end
        start = end
    return borders


def _counts(start: int, end: int, special: _SpecialToken, trusted: Sequence[int]) -> bool:
    """Whether a match is that token.

    It is none of any kind where trust begins or ends within it: then it was cut on purpose.
    """
    n_before = bisect_right(trusted, start)
    if n_before < len(trusted) and trusted[n_before] < end:
        return False
    return not special.forgeable or n_before % 2 == 1


def _split(
    text: str, fragment: tuple[int, int] | int, special: _SpecialToken, trusted: Sequence[int]
) -> Iterator[tuple[int, int] | int]:
    """One fragment, cut at every occurrence of a special token."""
    if isinstance(fragment, int):
        yield fragment
        return
    start, end = fragment
    search = start
    while (match := text.find(special.text, search, end)) >= 0:
        after = match + len(special.text)
        if not _counts(match, after, special, trusted):
            search = match + 1
            continue
        left_end = match
        while special.strips_left and left_end > start and text[left_end - 1] in _SPACES:
            left_end -= 1
        if left_end > start:
            yield start, left_end
        yield special.token
        start = after
        while special.strips_right and start < end and text[start] in _SPACES:
            start += 1
        search = start
    if start < end:
        yield start, end


def _without_long_words(text: str) -> Iterator[str]:
    """``text`` cut within words of more than ``_WORD_CHARACTERS``, where punctuation begins if it can be."""
    start = 0
    for stretch in _LONG_STRETCH.finditer(text):
        end = stretch.end()
        position = stretch.start()
        while end - position > _WORD_CHARACTERS:
            limit = position + _WORD_CHARACTERS
            natural = [cut.end() for cut in _NATURAL_CUT.finditer(text, position + 1, limit)]
            position = natural[-1] if natural else limit
            yield text[start:position]
            start = position
    if start < len(text):
        yield text[start:]
