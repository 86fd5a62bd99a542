"""Prompts whose cells were copied out of the context, into main memory.

On a CPU a cell costs every row of every step something, whoever holds it: the attention kernels walk all cells up to
the last used one, and look at the mask of each. So where that is so, sequences that nobody runs are not left in the
context: their contents are parked here and copied back into fresh cells when a prompt begins with their tokens.
Copying a token's cells takes a few microseconds, computing it milliseconds.

The lot knows tokens and contents, nothing of sequences. Who parks and who takes back is the prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktllama.engine.executor import SavedCells

#: A prompt that another one has but for less than this share of it (or this many tokens) is not worth its memory.
_LEAST_NEW_SHARE = 8
_LEAST_NEW_TOKENS = 32
_LEAST_GAIN = 8
_COPIED_FOR_ONE_COMPUTED = 64
_COMPARED_AT_ONCE = 256
#: Prompts that are kept at most: every new one is compared with all of them, at 3 µs each.
MOST_PROMPTS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """The contents of the cells that held `tokens`."""

    tokens: list[int]
    cells: SavedCells

    @property
    def least_gain(self) -> int:
        """Tokens that it must spare to be brought back: all of it has to be copied, however little is used."""
        return max(_LEAST_GAIN, len(self.tokens) // _COPIED_FOR_ONE_COMPUTED)


class ParkingLot:
    """Parked prompts, at most `MOST_PROMPTS` and `max_bytes` of them; the least recently used ones make room."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.evictions = 0
        self._parked: dict[Parked, None] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._parked)

    def find(self, tokens: list[int], limit: int) -> tuple[Parked | None, int]:
        """The parked prompt that has most of the beginning of `tokens`, and how many of at most `limit` tokens.

        The shortest of those that have as much.
        """
        best, best_length = None, 0
        for parked in self._parked:
            common = common_length(parked.tokens, tokens, 0, min(len(parked.tokens), len(tokens), limit))
            shorter = best is not None and common == best_length and len(parked.tokens) < len(best.tokens)
            if common > best_length or shorter:
                best, best_length = parked, common
        return best, best_length

    def use(self, parked: Parked) -> None:
        """Note that it was of use."""
        del self._parked[parked]
        self._parked[parked] = None

    def wants(self, tokens: list[int]) -> bool:
        """Whether parking a prompt of these tokens would add enough to what is here.

        One that goes on from a parked one always does: it takes that one's place.
        """
        known, length = self.find(tokens, len(tokens))
        if known is None or length == len(known.tokens) < len(tokens):
            return bool(tokens)
        return len(tokens) - length >= max(_LEAST_NEW_TOKENS, len(tokens) // _LEAST_NEW_SHARE)

    def make_room(self, tokens: list[int], n_bytes: int) -> bool:
        """Drop what a prompt of these tokens goes on from, and what else must go; False where it is too large for all.

        Called before it is copied, so that the copies never take more than `max_bytes`.
        """
        if n_bytes > self.max_bytes:
            return False
        for other in [other for other in self._parked if other.tokens == tokens[: len(other.tokens)]]:
            self._drop(other)
        while self.n_bytes + n_bytes > self.max_bytes or len(self._parked) >= MOST_PROMPTS:
            self.evictions += 1
            self._drop(next(iter(self._parked)))
        return True

    def park(self, parked: Parked) -> None:
        """Keep a prompt, for which there is room."""
        assert self.n_bytes + parked.cells.n_bytes <= self.max_bytes, "there is no room for a parked prompt"
        self._parked[parked] = None
        self.n_bytes += parked.cells.n_bytes

    def _drop(self, parked: Parked) -> None:
        del self._parked[parked]
        self.n_bytes -= parked.cells.n_bytes


def common_length(left: list[int], right: list[int], start: int, end: int) -> int:
    """Up to where two lists agree, from `start`; both are at least `end` long."""
    while start < end:
        stop = min(start + _COMPARED_AT_ONCE, end)
        if left[start:stop] != right[start:stop]:
            while left[start] == right[start]:
                start += 1
            return start
        start = stop
    return end
