"""Searching with a limit, and what a pattern's shape tells."""

from __future__ import annotations

import re

import pytest

from ktllama.placing.searching import (
    is_met,
    literal_prefix,
    may_run_away,
    need_of,
    search_all,
    without_numbers,
)


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
    ("pattern", "name", "met"),
    [
        (r"^model\.layers\.17\.mlp", "model.layers.17.mlp.gate", True),
        (r"^model\.layers\.17\.mlp", "model.layers.1.mlp.gate", False),
        (r"layers\.(0|1[0-5])\.", "layers.7", False),
        ("mlp$|zz[0-9]", "attn", False),
        ("mlp$|zz[0-9]", "zz", True),
        ("(attn)?mlp+", "mlp", True),
        ("(?:attn)+mlp", "mlp", False),
        ("(?!attn)m", "m", True),
        ("(?>attn)m", "m", False),
        ("(?i)MODEL", "model", True),
        ("(?i:MODEL)", "model", True),
        ("(?-i:MODEL)", "model", False),
        ("", "", True),
        ("(" * 400 + "a" + ")" * 400, "b", True),
    ],
)
def test_what_a_name_must_hold(pattern: str, name: str, met: bool) -> None:
    assert is_met(need_of(pattern), name) is met


def test_numbers_can_be_left_out_of_what_must_be_held() -> None:
    need = without_numbers(need_of(r"^model\.layers\.5\.mlp\.experts\.200\.|x7"))
    assert is_met(need, "model.layers.0.mlp.experts.0.gate_proj")
    assert not is_met(need, "model.layers.0.self_attn")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a*b?)*",
        "(?:xa|yb)+",
        r"(\w+)\1*(\1)+",
        ".*.*.*.*",
        "(" * 400 + "a" + ")" * 400,
        "((?:a{2,}){2,})",
        "(?=(a+)+)",
        "(ab|c)*d",
    ],
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
