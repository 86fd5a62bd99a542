"""A guard against a model that repeats itself without end."""

from __future__ import annotations

from collections import deque

#: Tokens that are compared before two places count as the same.
GRAM_TOKENS = 16

_MODULUS = (1 << 61) - 1
_BASE = 1_000_003
_BASE_TO_GRAM = pow(_BASE, GRAM_TOKENS, _MODULUS)


class RepetitionGuard:
    """Tells when the last tokens are one cycle, repeated exactly, for so long that no end is in sight.

    It fires when at least ``min_tokens`` tokens, and at least ``min_cycles`` whole cycles, each equal the token one
    cycle before. A cycle has at most ``max_cycle_tokens`` tokens. With the defaults a list of 500 zeros
    (two tokens each) passes, and so do tables, code and boilerplate, whose lines differ in some token; a paragraph
    of 200 tokens is stopped in its ninth copy. Repetition that counts ("step 1", "step 2") is not seen: a cycle
    must be exact.

    A token costs one comparison, a rolling hash and a dictionary entry; memory is ``max_cycle_tokens`` entries.
    """

    def __init__(self, *, min_tokens: int = 1024, min_cycles: int = 8, max_cycle_tokens: int = 2048) -> None:
        assert min_tokens > GRAM_TOKENS
        assert min_cycles > 1
        self._min_tokens = min_tokens
        self._min_cycles = min_cycles
        self._max_cycle_tokens = max_cycle_tokens
        self._tokens: deque[int] = deque(maxlen=max_cycle_tokens + GRAM_TOKENS + 1)
        self._hashes: deque[int] = deque()
        self._seen: dict[int, int] = {}  # hash of the last GRAM_TOKENS tokens -> how many tokens there were
        self._n_tokens = 0
        self._hash = 0
        #: Length of the cycle that runs now, 0 where there is none.
        self.cycle_tokens = 0
        #: How many tokens in a row equal the one a cycle before.
        self.repeated_tokens = 0

    def feed(self, token: int) -> bool:
        """Add a token; whether the repetition is endless by the thresholds."""
        tokens = self._tokens
        if self.cycle_tokens and tokens[-self.cycle_tokens] == token:
            self.repeated_tokens += 1
        else:
            self.cycle_tokens = self.repeated_tokens = 0
        leaving = tokens[-GRAM_TOKENS] if self._n_tokens >= GRAM_TOKENS else None
        tokens.append(token)
        self._n_tokens += 1
        self._remember(token, leaving)
        enough = max(self._min_tokens, self._min_cycles * self.cycle_tokens)
        return bool(self.cycle_tokens) and self.repeated_tokens >= enough

    def _remember(self, token: int, leaving: int | None) -> None:
        self._hash = (self._hash * _BASE + token + 1) % _MODULUS
        if leaving is not None:
            self._hash = (self._hash - (leaving + 1) * _BASE_TO_GRAM) % _MODULUS
        if self._n_tokens < GRAM_TOKENS:
            return
        if not self.cycle_tokens:
            self._look_for_cycle()
        self._seen[self._hash] = self._n_tokens
        self._hashes.append(self._hash)
        if len(self._hashes) > self._max_cycle_tokens:
            oldest = self._hashes.popleft()
            if self._seen.get(oldest, self._n_tokens) <= self._n_tokens - self._max_cycle_tokens:
                del self._seen[oldest]

    def _look_for_cycle(self) -> None:
        before = self._seen.get(self._hash)
        if before is None:
            return
        cycle = self._n_tokens - before
        tokens = self._tokens
        if all(tokens[-i] == tokens[-i - cycle] for i in range(1, GRAM_TOKENS + 1)):
            self.cycle_tokens, self.repeated_tokens = cycle, GRAM_TOKENS
