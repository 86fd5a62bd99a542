"""Medians of a few measurements, and how sure they are.

The interval of a median lies between two of the sorted measurements: of ``n`` independent ones, the median of what they
are drawn from is below the k-th smallest with the probability that a fair coin shows fewer than k heads in n throws.
So nothing is assumed about how times are spread (they are skewed: disturbances only ever add), and six measurements
are the fewest whose smallest and largest hold the median with 95%.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median and the interval that holds the true one with probability ``confidence``, at least 0.95 from six on."""

    median: float
    low: float
    high: float
    confidence: float
    n: int

    def overlaps(self, value: float) -> bool:
        """Whether ``value`` is within the interval."""
        return self.low <= value <= self.high


def of_median(values: Sequence[float]) -> Interval:
    """The median of ``values``, at least one, with the narrowest interval of at least :data:`CONFIDENCE`.

    Where there are too few values for that it is the whole range, with the confidence that it has.
    """
    ordered = sorted(values)
    n = len(ordered)
    depth = 1
    while depth < (n + 1) // 2 and _confidence(n, depth + 1) >= CONFIDENCE:
        depth += 1
    return Interval(
        median=statistics.median(ordered),
        low=ordered[depth - 1],
        high=ordered[n - depth],
        confidence=_confidence(n, depth),
        n=n,
    )


def of_ratio(values: Sequence[float], to: Sequence[float]) -> Interval:
    """The median of the ratios of measurements made one after the other, ``values`` over ``to``."""
    return of_median([a / b for a, b in zip(values, to, strict=True)])


def _confidence(n: int, depth: int) -> float:
    """Probability that the median lies between the ``depth``-th smallest and the ``depth``-th largest of ``n``."""
    outside = sum(math.comb(n, heads) for heads in range(depth)) / float(2**n)
    return max(0.0, 1 - 2 * outside)
