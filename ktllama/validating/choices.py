"""How near a router was to another choice: whether rounding explains that other experts were chosen.

The rule is ``route`` of ``ktllama/reference/experts.py``: the best groups first, then the best experts in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktllama.validating.positions import Floats

if TYPE_CHECKING:
    from ktllama.reference.arrays import Ratings

#: What float32 loses of a rating.
_LAST_BITS = 1e-6


def nudges(ratings: Ratings, led: npt.NDArray[np.integer], llama: npt.NDArray[np.integer]) -> Floats:
    """How far a router's input must be off, relative to its length, for it to choose ``llama`` and not ``led`` (T).

    Both choices are (T, experts used). 0 where they are the same set, infinite where no input could lead to the other.
    """
    found = np.zeros(len(led))
    for token in np.flatnonzero((np.sort(led, axis=1) != np.sort(llama, axis=1)).any(axis=1)):
        row = _Row(ratings.rated[token].astype(np.float64), ratings.moves[token].astype(np.float64))
        found[token] = _nudge(row, llama[token].astype(np.int64), ratings)
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    """Experts, or groups of them: what they are rated, and how far a rating moves."""

    rated: Floats
    moves: Floats

    def apart(self, above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]) -> float:
        """The move that lets all of ``below`` overtake all of ``above``; 0 where they are in front already."""
        if not len(above) or not len(below):
            return 0.0
        gaps = self.rated[above][:, None] - self.rated[below] - _LAST_BITS
        steps = self.moves[above][:, None] + self.moves[below]
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(gaps > 0, gaps / steps, 0.0).max())


def _nudge(row: _Row, chosen: npt.NDArray[np.int64], ratings: Ratings) -> float:
    n_experts = len(row.rated)
    size = n_experts // ratings.n_groups
    others = np.setdiff1d(np.arange(n_experts), chosen)
    if ratings.n_groups == 1:
        return row.apart(others, chosen)
    groups = _groups(row, size, ratings.n_rating)
    used = np.unique(chosen // size)
    n_more = ratings.n_groups_used - len(used)
    if n_more < 0:
        return float("inf")
    unused = np.setdiff1d(np.argsort(-groups.rated), used, assume_unique=True)  # best first
    empty, left_out = unused[:n_more], unused[n_more:]
    found = max(groups.apart(left_out, used), row.apart(others[np.isin(others // size, used)], chosen))
    for group in empty:  # chosen though no expert of it is: none was good enough, or another group took its place
        beaten = row.apart(others[others // size == group], chosen)
        replaced = min((groups.apart(np.array([group]), np.array([one])) for one in left_out), default=float("inf"))
        found = max(found, min(beaten, replaced))
    return found


def _groups(row: _Row, size: int, n_rating: int) -> _Row:
    """The groups by the sum of their best."""
    by_group = row.rated.reshape(-1, size)
    best = np.argsort(-by_group, axis=1)[:, :n_rating]
    rated, moves = (
        np.take_along_axis(each.reshape(-1, size), best, axis=1).sum(axis=1) for each in (row.rated, row.moves)
    )
    return _Row(rated, moves)
