"""Searching with a limit, and what a pattern's shape tells."""

from __future__ import annotations

import re

import pytest

from ktllama.placement.searching import literal_prefix, may_run_away, search_all


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        (r"^model\.layers\.17\.mlp", "model.layers.17.mlp"),
        (r"^model\.layers\.(0|1)\.", "model.layers."),
        ("^", ""),
        ("model", ""),
        ("(^model)", ""),
        ("^a?b", ""),
        ("(?i)^model", ""),
        ("(?m)^model", ""),
        ("(?i:^model)", ""),
    ],
)
def test_literal_prefix(pattern: str, prefix: str) -> None:
    assert literal_prefix(pattern) == prefix


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a*b?)*", "(?:xa|yb)+", r"(\w+)\1*(\1)+", ".*.*.*.*", "((?:a{2,}){2,})", "(?=(a+)+)", "(ab|c)*d"],
)
def test_shapes_that_can_backtrack_without_bound(pattern: str) -> None:
    assert may_run_away(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^model\.layers\.(0|[1-9]|[12][0-9])\.(?!self_attn\.kv_b_proj).*$",
        r"^model\.layers\.(?!.*self_attn\.kv_b_proj).*$",
        r"(^model\.layers\.([3456][0-9])\.)|(model.norm)|(lm_head)",
        r"blk\.\d+\..*",
        "(ab)?c{1,3}",
    ],
)
def test_the_patterns_of_real_files_are_searched_here(pattern: str) -> None:
    assert not may_run_away(pattern)


def test_both_ways_of_searching_agree() -> None:
    names = [f"model.layers.{number}.mlp" for number in range(200)]
    plain, nested = re.compile(r"\.[0-9]*7\.mlp$"), re.compile(r"(\.[0-9]*7)+\.mlp$")
    assert search_all(plain, names) == search_all(nested, names) == [name.endswith("7.mlp") for name in names]
