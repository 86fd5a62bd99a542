"""Patterns select exactly what was planned, and read well."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.lower.patterns import patterns_for, prove
from tests.models import deepseek

NAMES = [tensor.name for tensor in deepseek(14).tensors]
FUSED = [tensor.name for tensor in deepseek(14, fused=True).tensors]


def chosen(pattern: str, names: list[str] = NAMES) -> frozenset[str]:
    return frozenset(name for name in names if re.search(pattern, name))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (r"_exps", (r"^blk\.[0-9]+\.ffn_(gate|up|down|gate_up)_exps\.weight$",)),
        (r"blk\.([3-9]|10)\..*_exps", (r"^blk\.([3-9]|10)\.ffn_(gate|up|down|gate_up)_exps\.weight$",)),
        (r"^blk\.3\.", (r"^blk\.3\.",)),
        (r"^blk\.", (r"^blk\.[0-9]+\.",)),
        (r"^output\.", (r"^output\.weight$",)),
        (r"^output", (r"^(output\.weight|output_norm\.weight)$",)),
        (r"up_exps", (r"^blk\.[0-9]+\.ffn_up_exps\.weight$",)),
        (r"exp_probs_b|gate_inp", (r"^blk\.[0-9]+\.(exp_probs_b\.bias|ffn_gate_inp\.weight)$",)),
        (
            r"^blk\.1[0-3]\.|blk\.2\.ffn_norm",
            (r"^blk\.1[0-3]\.", r"^blk\.2\.ffn_norm\.weight$"),
        ),
        (r"_shexp", (r"^blk\.[0-9]+\.ffn_(gate|up|down)_shexp\.weight$",)),
    ],
)
def test_patterns_are_few_and_readable(selection: str, expected: tuple[str, ...]) -> None:
    assert patterns_for(chosen(selection), NAMES) == expected


def test_patterns_for_split_experts_also_fit_the_fused_file() -> None:
    (pattern,) = patterns_for(chosen("_exps"), NAMES)
    assert chosen(pattern, FUSED) == chosen("_exps", FUSED)


def test_patterns_of_a_fused_file() -> None:
    assert patterns_for(chosen("_exps", FUSED), FUSED) == (r"^blk\.[0-9]+\.ffn_(down|gate_up)_exps\.weight$",)


def test_nothing_needs_no_pattern() -> None:
    assert patterns_for(frozenset(), NAMES) == ()


@given(st.sets(st.sampled_from(NAMES)))
@settings(max_examples=200, deadline=None)
def test_any_selection_is_met_exactly_by_patterns_fit_for_a_command_line(selection: set[str]) -> None:
    patterns = patterns_for(frozenset(selection), NAMES)
    found = [name for name in NAMES if any(re.search(pattern, name) for pattern in patterns)]
    assert found == [name for name in NAMES if name in selection]
    assert not set("".join(patterns)) & set(",={} '\"?*")


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["CPU", "CUDA0", "CUDA1"])))
@settings(max_examples=100, deadline=None)
def test_patterns_of_several_devices_do_not_overlap(placed: dict[str, str]) -> None:
    pairs = [
        (pattern, device)
        for device in ("CPU", "CUDA0", "CUDA1")
        for pattern in patterns_for(frozenset(n for n, d in placed.items() if d == device), NAMES)
    ]
    wanted = {name: placed.get(name) for name in NAMES}
    prove(pairs, wanted)
    prove(pairs[::-1], wanted)


def test_the_proof_fails_on_a_wrong_pattern() -> None:
    with pytest.raises(AssertionError, match=r"override patterns send blk.1.x to CPU, not None"):
        prove([("blk", "CPU")], {"blk.1.x": None})
