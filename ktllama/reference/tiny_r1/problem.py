"""A problem with its worked solution, and which problems training never sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

#: One problem in so many is kept for evaluation.
HELD_OUT_ONE_IN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a user asks, how it is worked out, and the answer.

    ``key`` names the problem whatever its wording, so that a held-out one is held out in every wording.
    """

    task: str
    key: str
    question: str
    thought: str
    answer: str

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept for evaluation; decided by its key alone."""
        digest = hashlib.sha256(f"{self.task} {self.key}".encode()).digest()
        return int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0


#: Makes a problem. ``ease`` goes from 1, when training begins, to 0: how much more often easy ones come.
#: At the end it is −1: hard ones come more often.
Maker: TypeAlias = Callable[[Random, float], Problem]


def draw(maker: Maker, random: Random, ease: float, *, held_out: bool) -> Problem:
    """A problem for training, or one that training never sees."""
    while True:
        problem = maker(random, ease)
        if problem.held_out == held_out:
            return problem
