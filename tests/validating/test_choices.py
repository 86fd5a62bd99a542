"""How far a router's input must be off to explain another choice, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch")

from ktllama.reference.arrays import Ratings
from ktllama.validating.choices import nudges


def nudge(rated: list[float], led: list[int], llama: list[int], **groups: Any) -> float:
    """Ratings that move by twice the error of the input, each."""
    row = np.array([rated], np.float32)
    found = nudges(Ratings(rated=row, moves=np.full_like(row, 2.0), **groups), np.array([led]), np.array([llama]))
    return float(found[0])


def test_the_same_set_needs_nothing() -> None:
    assert nudge([0.1, 0.5, 0.4], [1, 2], [2, 1]) == 0.0


def test_each_of_two_experts_moves_half_the_way() -> None:
    assert nudge([0.1, 0.5, 0.4, 0.36], [1, 2], [1, 3]) == pytest.approx(0.01, abs=1e-5)
    assert nudge([0.1, 0.5, 0.4, 0.36], [1, 2], [0, 3]) == pytest.approx(0.1, abs=1e-5)
    assert nudge([0.4, 0.4, 0.4, 0.3], [0, 1], [1, 2]) == 0.0  # a tie


GROUPS: dict[str, Any] = {"n_groups": 3, "n_groups_used": 2, "n_rating": 2}


def test_a_group_must_overtake_a_group() -> None:
    rated = [0.9, 0.8, 0.6, 0.5, 0.7, 0.3]  # groups of 1.7, 1.1 and 1.0: experts 0 and 1
    assert nudge(rated, [0, 1], [0, 2], **GROUPS) == pytest.approx(0.05, abs=1e-5)
    # expert 4 is better than 2, but its group must first come before that of 2: 0.1 by moves of 4 each
    assert nudge([0.9, 0.2, 0.6, 0.5, 0.7, 0.3], [0, 2], [0, 4], **GROUPS) == pytest.approx(0.1 / 8, abs=1e-5)
    assert nudge(rated, [0, 1], [2, 4], **GROUPS) == pytest.approx(0.7 / 8, abs=1e-5)
    assert math.isinf(nudge(rated, [0, 1, 2], [0, 2, 4], **GROUPS))  # three groups


def test_a_group_without_a_chosen_expert_may_be_beaten_or_replaced() -> None:
    # 0 and 1 of the first group; the second has a better expert, but need not be chosen: the third is as good
    rated = [0.9, 0.5, 0.7, 0.1, 0.4, 0.39]
    assert nudge(rated, [0, 2], [0, 1], **GROUPS) == pytest.approx(0.01 / 8, abs=1e-5)
