"""Logits against logits, with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ktllama.validating import positions
from ktllama.validating.positions import compare_positions, output_errors

LN2 = math.log(2)


def logits(*rows: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array(rows, np.float32)


def test_equal_logits_differ_in_nothing() -> None:
    same = logits([0.0, 1.0, 2.0], [3.0, -1.0, 0.5])
    found = compare_positions(same, same.copy(), (0, 1))
    assert found.max_abs.tolist() == found.mean_abs.tolist() == found.kl.tolist() == [0.0, 0.0]
    assert found.relative.tolist() == [0.0, 0.0]
    assert found.top1.tolist() == [True, True]
    assert found.top5.tolist() == [1.0, 1.0]


def test_the_divergence_of_two_coins() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = ln(2)/2 + ln(2/3)/2 = ln(4/3)/2
    found = compare_positions(logits([0.0, 0.0]), logits([0.0, math.log(3)]), (0,))
    assert found.kl[0] == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert found.max_abs[0] == pytest.approx(math.log(3), rel=1e-6)
    assert found.mean_abs[0] == pytest.approx(math.log(3) / 2, rel=1e-6)


def test_what_softmax_does_not_see_is_no_divergence() -> None:
    ours = logits([1.0, 2.0, 4.0])
    found = compare_positions(ours, ours + np.float32(8), (0,))
    assert (found.kl[0], found.relative[0], found.max_abs[0]) == (0.0, 0.0, 8.0)


def test_agreement_on_the_best_and_on_the_five_best() -> None:
    ours = logits([9, 8, 7, 6, 5, 0, 0, 0])
    theirs = logits([8, 9, 7, 0, 0, 6, 5, 0])  # the best two change places; two of the five are others
    found = compare_positions(ours, theirs, (0,))
    assert found.top1.tolist() == [False]
    assert found.top5.tolist() == [0.6]


def test_a_vocabulary_of_three_has_no_five_best() -> None:
    found = compare_positions(logits([3.0, 2.0, 1.0]), logits([1.0, 2.0, 3.0]), (0,))
    assert found.top5.tolist() == [1.0]


def test_perplexity_is_of_the_tokens_that_follow() -> None:
    # the reference gives token 1 after token 0 one half, llama.cpp one quarter
    ours, theirs = logits([0.0, 0.0], [5.0, 0.0]), logits([math.log(3), 0.0], [5.0, 0.0])
    found = compare_positions(ours, theirs, (0, 1))
    assert found.reference_nll[0] == pytest.approx(LN2)
    assert found.llama_nll[0] == pytest.approx(2 * LN2)
    assert np.isnan(found.reference_nll[1])
    assert found.perplexities() == pytest.approx((2.0, 4.0))


def test_one_token_has_no_perplexity() -> None:
    assert compare_positions(logits([0.0, 1.0]), logits([0.0, 1.0]), (0,)).perplexities() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_agrees_with_nothing(bad: float) -> None:
    ours = logits([1.0, 2.0], [1.0, 2.0])
    found = compare_positions(ours, logits([1.0, bad], [1.0, 2.0]), (0, 0))
    assert found.kl.tolist() == [math.inf, 0.0]
    assert found.max_abs.tolist() == [math.inf, 0.0]
    assert found.top1.tolist() == [False, True]
    assert found.top5.tolist() == [0.0, 1.0]
    assert found.perplexities() == pytest.approx((1 + math.e, math.inf))


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    ours, theirs = (random.standard_normal((7, 11)).astype(np.float32) for _ in range(2))
    tokens = tuple(range(7))
    whole = compare_positions(ours, theirs, tokens)
    monkeypatch.setattr(positions, "_CHUNK_VALUES", 22)
    pieces = compare_positions(ours, theirs, tokens)
    for name in ("max_abs", "mean_abs", "kl", "top1", "top5", "relative", "reference_nll", "llama_nll"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def test_the_outputs_own_errors_are_at_the_given_positions() -> None:
    llama = logits([0.0, 2.0], [1.0, -1.0], [math.nan, 0.0])
    led = {1: np.array([1.0, -1.0], np.float32), 0: np.array([0.0, 4.0], np.float32), 2: np.zeros(2, np.float32)}
    # (0, 2) against (0, 4), without their means: (-1, 1) against (-2, 2)
    assert output_errors(led, llama).tolist() == [0.0, 0.5, math.inf]
