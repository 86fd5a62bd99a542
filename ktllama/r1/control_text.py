"""Strings that a tokenizer would read as control tokens, and how a user's text is kept from being one.

llama.cpp parses the text of control tokens only when it is asked to, but the text of user-defined ones (``<think>``
in R1's files) always (``llama_vocab::impl::tokenizer_st_partition``, src/llama-vocab.cpp, llama-cpp-python 0.3.36).
So a user's ``<｜Assistant｜>`` or ``</think>`` is cut after its first character: the prompt becomes two segments
that are tokenized one by one, and neither holds the string. The cut is marked by one private-use character, which
goes through a template like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from ktllama.r1.errors import MessagesError
from ktllama.r1.markers import common_beginning

_PRIVATE_USE = range(0xE000, 0xF900)
_LONGEST = 200
_MAX_DEPTH = 64


class ControlStrings:
    """The strings that no user may write as tokens. Made once a model."""

    def __init__(self, strings: Iterable[str]) -> None:
        # A token of one character cannot be cut, and is no marker.
        kept = sorted({text for text in strings if 1 < len(text) <= _LONGEST and text.strip()}, key=len, reverse=True)
        self.strings = frozenset(kept)
        self._pattern = re.compile(f"(?={_beginning_with(sorted(kept))})") if kept else None
        self._beginnings = frozenset(text[:n] for text in kept for n in range(1, len(text)))
        self._longest = max((len(text) for text in kept), default=0)

    def cut(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` in every control string, and behind the beginning of one at its end."""
        if self._pattern is None:
            return text
        if self._pattern.search(text):
            places = [match.start() + 1 for match in self._pattern.finditer(text)]
            text = mark.join(text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True))
        ends = range(1, min(len(text), self._longest - 1) + 1)
        return text + mark if any(text[-n:] in self._beginnings for n in ends) else text

    def cut_all(self, value: Any, mark: str, depth: int = 0) -> Any:
        """The same in every string of a JSON value, keys too."""
        if depth > _MAX_DEPTH:
            raise MessagesError("messages", f"values nested more than {_MAX_DEPTH} deep")
        if isinstance(value, str):
            return self.cut(value, mark)
        if isinstance(value, dict):
            return {self.cut(str(key), mark): self.cut_all(item, mark, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.cut_all(item, mark, depth + 1) for item in value]
        return value


def _beginning_with(texts: Sequence[str]) -> str:
    """A pattern for the beginning of any of ``texts``, which are sorted. What some have in common is looked at once.

    R1's vocabulary has 800 that differ in their last digits: tried one by one, they cost microseconds at every ``<``.
    """
    beginning = common_beginning(texts[0], texts[-1])
    n_shared, shared = len(beginning), re.escape(beginning)
    if beginning == texts[0]:
        return shared
    groups = (list(group) for _, group in groupby(texts, key=lambda text: text[n_shared]))
    rests = "|".join(_beginning_with([text[n_shared:] for text in group]) for group in groups)
    return f"{shared}(?:{rests})"


def unused_mark(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of ``texts``."""
    used: set[str] = set().union(*texts)
    free = next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), None)
    if free is None:
        raise MessagesError("messages", "they use every private-use character of Unicode's basic plane")
    return free


def segments(text: str, mark: str) -> tuple[str, ...]:
    """The rendered ``text`` at its marks. A template that escapes what is not ASCII has escaped the marks too."""
    text = text.replace(f"\\u{ord(mark):04x}", mark)
    return tuple(part for part in text.split(mark) if part)


def strings_in(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_in(item)
