"""What stands behind a call's arguments: a fence, and the end of the call, both with blanks around; either may be
missing."""

from __future__ import annotations

from ktllama.r1.delta import BLANKS


class CallTail:
    """Reads up to the end of one call, character by character; ``fence`` is empty where the format has none."""

    def __init__(self, fence: str, end: str) -> None:
        self._fence = fence
        self._end = end
        self._fenced = False
        self._before: list[str] = []  # blanks; a fence and those around it are dropped in any case
        self._word = ""  # the beginning of the fence or of the end
        self._behind: list[str] = []  # blanks that followed the word before it was whole

    def feed(self, text: str) -> str | None:
        """What of ``text`` is no longer tail, with what came before it and was none either; None while it goes on."""
        for at, character in enumerate(text):
            if character in BLANKS:
                if self._word:
                    self._behind.append(character)
                elif not self._fenced:
                    self._before.append(character)
                continue
            word = self._word + character
            if self._behind or not (self._end.startswith(word) or self._fence.startswith(word)):
                return "".join([*self._before, self._word, *self._behind, text[at:]])
            self._word = word
            if word == self._end:
                return text[at + 1 :]
            if word == self._fence:
                self._fence, self._word, self._fenced = "", "", True
                self._before.clear()
        return None
