"""Which tokens can be sampled at all: a proof by numpy, so that llama.cpp's samplers see tens of tokens, not all.

llama.cpp's chain walks the whole vocabulary several times a token. What it keeps is nearly always a handful, and one
vectorised pass over the logits finds a set that holds that handful. The samplers' own decisions are kept, down to the
float32 rounding of the sums that top-p compares. Where equal logits (``std::sort`` leaves their order open) or a great
many candidates are in question, the functions here return None and the caller takes the long way.

Sampler sources: ``src/llama-sampler.cpp`` of llama-cpp-python 0.3.36. All logits are float32 of shape (n_vocab,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Logits: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.intp]

#: The relative error of one float32 operation, rounded to nearest.
_UNIT = 2.0**-24
#: Roundings of the exponentials, of numpy's pairwise sum and of the divisions, generously.
_OTHER_ROUNDINGS = 128
#: ``logf`` and one addition may differ from ours by a few units; far more is kept.
_MIN_P_MARGIN = 1e-3
#: More candidates than this are not worth sorting here.
_MAX_CANDIDATES = 4096
_MANY_CANDIDATES = 256
#: how far below the highest logit candidates are looked for
_LEAST_GAP, _FIRST_GAP, _GAP_STEP, _LAST_GAP = 2.0, 6.0, 3.0, 40.0
#: The float32 whose bits are the integer ``_SCALE * x + _ONE`` is exp(x), at most ``_EXCESS`` times too large: between
#: powers of two it is the chord of the curve (Schraudolph 1999). ``_ROUGH`` is the relative error of computing it.
_SCALE, _ONE, _EXCESS, _ROUGH = 2**23 / math.log(2), 127.0 * 2**23, 1.0615, 1e-4
#: Candidates whose weights are computed exactly; the rest together is bounded. So far below the highest they go.
_FEW_EXACT, _FIRST_EXACT_GAP, _LAST_EXACT_GAP = 512, 10.0, 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """Token ids with their logits; ``descending`` says that they are sorted, otherwise they are in the ids' order."""

    ids: Ids
    logits: Logits
    descending: bool


class Scratch:
    """Arrays of one vocabulary's size, used again for every token."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.weights = np.empty(n_vocab, np.float32)
        self.mask = np.empty(n_vocab, np.bool_)
        self.bits = np.empty(n_vocab, np.int32)
        self.rough = self.bits.view(np.float32)
        self.bounds = np.empty(n_vocab, np.float32)
        self.top_k_gap = 8.0
        self.top_p_gap = _FIRST_GAP
        self.exact_gap = _FIRST_EXACT_GAP

    def above(self, logits: Logits, floor: float) -> Ids:
        """The ids whose logit is at least ``floor`` (as float32), ascending."""
        np.greater_equal(logits, np.float32(floor), out=self.mask)
        return np.flatnonzero(self.mask)

    def total_weight(self, logits: Logits, highest: float) -> float:
        """The sum of exp(logit - highest); the terms stay in ``weights``."""
        np.subtract(logits, np.float32(highest), out=self.weights)
        np.exp(self.weights, out=self.weights)
        return float(self.weights.sum())

    def roughen(self, logits: Logits, highest: float) -> None:
        """Put what is nearly exp(logit - highest) into ``rough``: never too small, at most ``_EXCESS`` times too large.

        A fifth of the time that ``np.exp`` takes. The maximum is with an array because numpy is slow with a number.
        """
        np.subtract(logits, np.float32(highest), out=self.weights)
        np.multiply(self.weights, np.float32(_SCALE), out=self.weights)
        np.add(self.weights, np.float32(_ONE), out=self.weights)
        self.bounds.fill(2**23)  # the bits of the smallest normal float
        np.maximum(self.weights, self.bounds, out=self.weights)
        np.copyto(self.bits, self.weights, casting="unsafe")

    def tiny_weight(self, most: float) -> float:
        """The sum of all rough weights, none of them counted as more than ``most``."""
        self.bounds.fill(most)
        np.minimum(self.rough, self.bounds, out=self.weights)
        return float(self.weights.sum())


def top_k(scratch: Scratch, logits: Logits, k: int, highest: float) -> Shortlist | None:
    """The ``k`` highest logits, sorted; None where equal logits leave their order open."""
    ids = highest_ids(scratch, logits, k + 1, highest)
    if ids is None:
        return None
    values = logits[ids]
    if np.any(values[1:] == values[:-1]):
        return None
    return Shortlist(ids=ids[:k], logits=values[:k], descending=True)


def highest_ids(scratch: Scratch, logits: Logits, count: int, highest: float) -> Ids | None:
    """The ids of the ``count`` highest logits, the highest first, equal ones by id; None where that takes too many."""
    count = min(count, scratch.n_vocab)
    gap = scratch.top_k_gap
    while True:
        found = scratch.above(logits, highest - gap)
        if len(found) >= count:
            break
        if gap > 1e6:
            return None  # minus infinities
        gap *= 1.5
    if len(found) > max(_MAX_CANDIDATES, 8 * count):
        return None
    scratch.top_k_gap = gap * 0.8 if len(found) > 4 * count + 64 else gap
    return found[np.argsort(-logits[found], kind="stable")][:count]


def min_p(scratch: Scratch, logits: Logits, p: float, highest: float) -> Shortlist:
    """A little more than what min-p keeps, in the ids' order, which the sampler keeps too."""
    ids = scratch.above(logits, highest + math.log(p) - _MIN_P_MARGIN)
    return Shortlist(ids=ids, logits=logits[ids], descending=False)


def top_p(scratch: Scratch, logits: Logits, p: float, highest: float, least: float) -> Shortlist | None:
    """What top-p keeps of the whole vocabulary, sorted.

    ``least`` is a min-p that follows (0: none): tokens that it will drop are not looked at.
    """
    target = float(np.float32(p))
    if least <= 0 and (short := _bounded_top_p(scratch, logits, target, highest)) is not None:
        return short
    total = scratch.total_weight(logits, highest)
    last_gap = _MIN_P_MARGIN - math.log(least) if least > 0 else math.inf
    gap = min(scratch.top_p_gap, last_gap)
    while True:
        ids = scratch.above(logits, highest - gap)
        if len(ids) > _MAX_CANDIDATES:
            scratch.top_p_gap = max(_LEAST_GAP, gap - _GAP_STEP)
            return None
        mass = float(scratch.weights[ids].sum(dtype=np.float64)) / total
        if gap >= last_gap or mass >= target + 2 * _largest_error(scratch.n_vocab, len(ids)):
            break
        if gap > _LAST_GAP:
            return None
        gap = min(gap + _GAP_STEP, last_gap)
    # a pass over all logits costs more than sorting some candidates too many
    scratch.top_p_gap = max(_LEAST_GAP, gap - _GAP_STEP) if len(ids) > _MANY_CANDIDATES else gap
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    values = logits[ids]
    n_kept = _n_kept(scratch, ids, total, target)
    if np.any(values[1 : n_kept + 1] == values[: min(n_kept, len(values) - 1)]):
        return None
    return Shortlist(ids=ids[:n_kept], logits=values[:n_kept], descending=True)


def _bounded_top_p(scratch: Scratch, logits: Logits, target: float, highest: float) -> Shortlist | None:
    """What top-p keeps, decided by bounds of the sum of all weights; None where they are too far apart to decide."""
    ids = scratch.above(logits, highest - scratch.exact_gap)
    if len(ids) > _MAX_CANDIDATES:
        scratch.exact_gap = max(_LEAST_GAP, scratch.exact_gap - 1)
        return None
    if len(ids) < _FEW_EXACT:
        scratch.exact_gap = min(_LAST_EXACT_GAP, scratch.exact_gap + 0.5)
    values = logits[ids]
    weights = np.exp(values - np.float32(highest))
    low, high = _total_bounds(scratch, logits, highest, ids, float(weights.sum(dtype=np.float64)))
    near = np.flatnonzero(values >= np.float32(highest - scratch.top_p_gap))
    order = near[np.argsort(-values[near], kind="stable")]
    mass = np.cumsum(weights[order], dtype=np.float64)
    n_kept = _bounded_crossing(mass, low, high, target, _largest_error(scratch.n_vocab, len(order)))
    if n_kept is None:
        lost = (1 + _ROUGH) * scratch.tiny_weight(2 * high * _UNIT) / low
        n_kept = _bounded_crossing(mass, low, high, target, lost + (len(order) + _OTHER_ROUNDINGS) * _UNIT)
    if n_kept is None:
        if mass[-1] < (target + _largest_error(scratch.n_vocab, len(order))) * high:
            scratch.top_p_gap += _GAP_STEP
        return None
    if len(near) > _MANY_CANDIDATES:
        scratch.top_p_gap = max(_LEAST_GAP, scratch.top_p_gap - 1)
    sorted_values = values[order[: n_kept + 1]]
    if np.any(sorted_values[1:] == sorted_values[:-1]):
        return None
    return Shortlist(ids=ids[order[:n_kept]], logits=sorted_values[:n_kept], descending=True)


def _total_bounds(scratch: Scratch, logits: Logits, highest: float, ids: Ids, exact: float) -> tuple[float, float]:
    """Bounds of the sum of exp(logit - highest), of which ``exact`` is that of ``ids``."""
    scratch.roughen(logits, highest)
    rough = float(scratch.rough.sum())
    slack = _ROUGH * rough
    rest = rough - float(scratch.rough[ids].sum(dtype=np.float64))
    return exact + max(0.0, rest / _EXCESS - slack), exact + max(0.0, rest) + slack


def _bounded_crossing(
    mass: npt.NDArray[np.float64], low: float, high: float, target: float, error: float
) -> int | None:
    """Where the share of the growing ``mass`` reaches ``target``, counted from 1; None where that cannot be said."""
    surely = int(np.searchsorted(mass, (target + error) * high))
    possibly = int(np.searchsorted(mass, (target - error) * low))
    return surely + 1 if surely == possibly and surely < len(mass) else None


def _n_kept(scratch: Scratch, ids: Ids, total: float, target: float) -> int:
    """How many of the sorted ``ids`` llama.cpp keeps: all up to where the cumulated share reaches ``target``.

    Decided by a bound of its rounding errors, then by a closer one, then by adding up as it does, one by one in
    float32. There the last bits of the terms are all that may differ (its ``expf`` is not numpy's).
    """
    weights = scratch.weights[ids]
    shares = np.cumsum(weights, dtype=np.float64) / total
    kept = _crossing(shares, target, _largest_error(scratch.n_vocab, len(ids)))
    if kept is None:
        kept = _crossing(shares, target, _closer_error(scratch.weights, total, len(ids)))
    if kept is not None:
        return kept
    np.cumsum(scratch.weights, out=scratch.weights)
    reached = np.searchsorted(np.cumsum(weights / scratch.weights[-1]), np.float32(target))
    return min(int(reached) + 1, len(ids))


def _crossing(shares: npt.NDArray[np.float64], target: float, error: float) -> int | None:
    """The first place where ``shares`` reaches ``target``, counted from 1; None where ``error`` could move it."""
    surely, possibly = np.searchsorted(shares, (target + error, target - error))
    return min(int(surely) + 1, len(shares)) if surely == possibly else None


def _largest_error(n_vocab: int, n_summed: int) -> float:
    """A bound of the relative error of llama.cpp's sums: one unit an addition."""
    return (n_vocab + n_summed + _OTHER_ROUNDINGS) * _UNIT


def _closer_error(weights: npt.NDArray[np.float32], total: float, n_summed: int) -> float:
    """The same, knowing that an addition is never off by more than what it adds, and most weights are tiny."""
    lost = float(np.minimum(weights, np.float32(2 * total * _UNIT)).sum())
    return lost / total + (n_summed + _OTHER_ROUNDINGS) * _UNIT
