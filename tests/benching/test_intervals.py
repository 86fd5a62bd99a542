"""Medians and their intervals against numbers worked out by hand."""

from __future__ import annotations

from ktllama.benching.intervals import Interval, of_median, of_ratio


def test_six_values_are_the_fewest_whose_range_has_95_percent() -> None:
    # the median is outside the range of n values if all lie on one side of it: 2 × 2⁻ⁿ
    assert of_median([5, 1, 6, 2, 4, 3]) == Interval(median=3.5, low=1, high=6, confidence=1 - 2 / 64, n=6)
    assert of_median([5, 1, 2, 4, 3]) == Interval(median=3, low=1, high=5, confidence=1 - 2 / 32, n=5)


def test_more_values_leave_the_outermost_out() -> None:
    # of 9 values one on each side may go: 1 − 2 × (1 + 9) / 512 = 0.961; two would leave 0.82
    found = of_median([float(value) for value in range(1, 10)])
    assert found == Interval(median=5, low=2, high=8, confidence=1 - 20 / 512, n=9)


def test_one_value_is_no_interval() -> None:
    assert of_median([7.0]) == Interval(median=7, low=7, high=7, confidence=0, n=1)


def test_ratios_are_of_what_was_measured_together() -> None:
    # each is twice its neighbour in time, whatever disturbed both: the ratio has no spread
    assert of_ratio([2, 4, 20, 6, 8, 10], [1, 2, 10, 3, 4, 5]) == Interval(
        median=2, low=2, high=2, confidence=1 - 2 / 64, n=6
    )
