"""A guard against a model that repeats itself without end."""

from __future__ import annotations

from array import array

#: Tokens that are compared before two places count as the same, and after which a cycle is looked for again.
GRAM_TOKENS = 16


class RepetitionGuard:
    """Tells when the last tokens are one cycle, repeated exactly, for so long that no end is in sight.

    It fires when at least ``min_tokens`` tokens, and at least ``min_cycles`` whole cycles, each equal the token one
    cycle before. A cycle has at most ``max_cycle_tokens`` tokens. With the defaults a list of 500 zeros
    (two tokens each) passes, and so do tables, code and boilerplate, whose lines differ in some token; a paragraph
    of 200 tokens is stopped in its ninth copy. Repetition that counts ("step 1", "step 2") is not seen: a cycle
    must be exact.

    A token costs a comparison while a cycle runs, and otherwise a sixteenth of a search through the last
    ``max_cycle_tokens`` tokens, which are kept.
    """

    def __init__(self, *, min_tokens: int = 1024, min_cycles: int = 8, max_cycle_tokens: int = 2048) -> None:
        assert min_tokens >= 2 * GRAM_TOKENS, "a cycle is seen after so many tokens of it"
        assert min_cycles > 1
        self._min_tokens = min_tokens
        self._min_cycles = min_cycles
        self._most_tokens = max_cycle_tokens + GRAM_TOKENS
        self._tokens = array("i")
        self._n_unseen = 0  # tokens since a cycle was looked for
        #: Length of the cycle that runs now, 0 where there is none.
        self.cycle_tokens = 0
        #: How many tokens in a row equal the one a cycle before.
        self.repeated_tokens = 0

    def feed(self, token: int) -> bool:
        """Add a token; whether the repetition is endless by the thresholds."""
        tokens = self._tokens
        if self.cycle_tokens:
            if tokens[-self.cycle_tokens] == token:
                self.repeated_tokens += 1
            else:
                self.cycle_tokens = self.repeated_tokens = 0
        tokens.append(token)
        self._n_unseen += 1
        if self._n_unseen >= GRAM_TOKENS:
            self._n_unseen = 0
            if len(tokens) >= 2 * self._most_tokens:
                del tokens[: -self._most_tokens]
            if not self.cycle_tokens:
                self._look_for_cycle()
        if not self.cycle_tokens:
            return False
        return self.repeated_tokens >= max(self._min_tokens, self._min_cycles * self.cycle_tokens)

    def _look_for_cycle(self) -> None:
        """Find the last place before the end where the last tokens stood already."""
        size = self._tokens.itemsize
        held = self._tokens[-self._most_tokens :].tobytes()
        gram = held[-GRAM_TOKENS * size :]
        place = held.rfind(gram, 0, len(held) - size)
        while place % size and place >= 0:  # bytes of two tokens
            place = held.rfind(gram, 0, place + len(gram) - 1)
        if place < 0:
            return
        self.cycle_tokens = (len(held) - len(gram) - place) // size
        self.repeated_tokens = self._repeated(self.cycle_tokens)

    def _repeated(self, cycle: int) -> int:
        """How many of the last tokens equal the one a cycle before."""
        tokens = self._tokens
        count = 0
        while count + cycle < len(tokens) and tokens[-1 - count] == tokens[-1 - count - cycle]:
            count += 1
        return count
