"""Charts: axes in round steps, and dots where their values are."""

from __future__ import annotations

import re

import pytest

from ktllama.pages.chart import Dot, Line, Tick, chart, linear_ticks, shares


def test_axes_go_from_nothing_to_the_first_round_step_above() -> None:
    assert linear_ticks(8.78) == (0.0, 2.5, 5.0, 7.5, 10.0)
    assert linear_ticks(387) == (0.0, 100.0, 200.0, 300.0, 400.0)
    assert linear_ticks(0.8) == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8))


def test_a_logarithmic_axis_gives_doublings_the_same_room() -> None:
    found = shares([4096, 8192, 16384])
    assert found == pytest.approx([0.04, 0.5, 0.96])
    assert shares([7, 7]) == [0.5, 0.5]


def test_lines_leave_out_what_was_refused_and_dashed_ones_have_no_dots() -> None:
    dots = (
        Dot(x=0.1, y=0.0, title="a", pairs=(("", "why"),), kind="refused"),
        Dot(x=0.5, y=0.25, title="b<", pairs=(("n", "1"),)),
        Dot(x=0.9, y=0.5, title="c", pairs=(), kind="here"),
    )
    text = chart("T", [Line(name="one", dots=dots), Line(name="two", dots=dots, dashed=True)],
                 x=[Tick(at=0.1, label="8")], y=[Tick(at=1.0, label="10")], x_title="x", y_title="y")  # fmt: skip
    assert re.findall(r'<path class="curve ([^"]*)" d="(M[0-9][^"]*)"/>', text)[2:] == [
        ("line-0", "M50.00 75.00L90.00 50.00"),
        ("line-1 dashed", "M50.00 75.00L90.00 50.00"),
    ]
    assert re.findall(r'<i class="dot (\w+) line-(\d)" style="([^"]*)"', text) == [
        ("refused", "0", "left:10.00%;bottom:0.00%"),
        ("plain", "0", "left:50.00%;bottom:25.00%"),
        ("here", "0", "left:90.00%;bottom:50.00%"),
    ]
    assert 'aria-label="b&lt;; n 1" data-tip="b&lt;\nn\t1"' in text
