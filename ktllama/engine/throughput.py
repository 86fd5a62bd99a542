"""How fast requests end."""

from __future__ import annotations

import math


class Throughput:
    """How fast requests end, for those who are told to come back later."""

    _WEIGHT = 0.1
    _UNKNOWN_SECONDS = 1.0
    _LONGEST_SECONDS = 600

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds = self._UNKNOWN_SECONDS  # between two ends, a moving average

    def ended(self, now: float) -> None:
        """A request has ended, at a time in seconds."""
        if self._last is not None:
            self._seconds += self._WEIGHT * (now - self._last - self._seconds)
        self._last = now

    def retry_after(self, n_queued: int) -> int:
        """Whole seconds until a tenth of the queue has gone: sooner, those who come back would be refused again."""
        return max(1, min(self._LONGEST_SECONDS, math.ceil(self._seconds * n_queued / 10)))
