"""First match wins, cuts cut, classes are isinstance."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from ktllama.model import modules
from ktllama.model.modules import Module
from ktllama.placing.resolve import Resolution, is_instance, resolve
from ktllama.ruleset import loader
from tests.models import deepseek, rule

V3 = "ktransformers.models.modeling_deepseek_v3"


def resolved(*rules: str, n_experts: int = 4, default_device: str = "cuda:0") -> Resolution:
    ruleset = loader.loads("".join(rules) or "[]")
    assert [found for found in ruleset.diagnostics if found.severity == "error"] == []
    return resolve(ruleset, modules.build(deepseek(n_experts=n_experts)), default_device)


def device(resolution: Resolution, name: str) -> str:
    index = next(i for i, module in enumerate(resolution.tree.modules) if module.name == name)
    return resolution.decisions[index].generate_device


def test_a_module_without_a_rule_goes_to_the_default_device_and_not_to_its_parents() -> None:
    found = resolved(rule("^model.layers.1.mlp$", "cpu"))
    assert device(found, "model.layers.1.mlp") == "cpu"
    assert device(found, "model.layers.1.mlp.gate") == "cuda:0"


def test_the_first_rule_that_matches_wins() -> None:
    found = resolved(rule("lm_head", "cpu"), rule("lm_head", "cuda:1"))
    assert device(found, "lm_head") == "cpu"
    assert found.matches[0] == found.matches[1]


def test_recursive_false_makes_everything_below_follow() -> None:
    found = resolved(
        rule(r"^model\.layers\.1\.self_attn$", "cuda:2", recursive=False), rule(r"self_attn\.o_proj", "cpu")
    )
    assert device(found, "model.layers.1.self_attn.o_proj") == "cuda:2"
    assert device(found, "model.layers.0.self_attn.o_proj") == "cpu"


def test_a_cut_by_a_rule_that_did_not_win_has_no_effect() -> None:
    found = resolved(rule(r"^model\.layers$", "cpu"), rule(r"^model\.layers$", "cpu", recursive=False))
    assert device(found, "model.layers.0.self_attn") == "cuda:0"


def test_name_and_class_must_both_hold() -> None:
    found = resolved(rule("layers.0", "cpu", cls="torch.nn.Linear"))
    assert device(found, "model.layers.0.self_attn.o_proj") == "cpu"
    assert device(found, "model.layers.0.input_layernorm") == "cuda:0"
    assert device(found, "lm_head") == "cuda:0"


@pytest.mark.parametrize(
    ("class_path", "expected"),
    [
        ("torch.nn.Linear", True),
        ("torch.nn.modules.linear.Linear", True),
        ("torch.nn.Module", True),
        ("Linear", True),
        ("torch.nn.Embedding", False),
        ("other.Linear", False),
    ],
)
def test_class_matching(class_path: str, expected: bool) -> None:
    linear = Module("x", "torch.nn.modules.linear.Linear", ("torch.nn.modules.module.Module",), (), -1)
    assert is_instance(linear, class_path) is expected


def test_a_bare_class_name_is_found_by_its_last_part() -> None:
    bare, full = (resolved(rule(cls=name, device="cpu")) for name in ("MoEGate", f"{V3}.MoEGate"))
    assert bare.matches == full.matches != {0: frozenset()}


def test_an_experts_operator_takes_its_experts_even_without_a_cut() -> None:
    found = resolved(rule(r"mlp\.experts$", "cpu", replace="ktransformers.operators.experts.KTransformersExperts"))
    assert found.experts == {}
    assert device(found, "model.layers.1.mlp.experts") == "cpu"


def test_an_experts_operator_that_names_no_device_has_its_constructors_default() -> None:
    text = (
        "- match: {name: 'mlp.experts$'}\n"
        "  replace: {class: ktransformers.operators.experts.KTransformersExperts}\n"
        "- match: {name: 'lm_head'}\n  replace: {class: default}\n"
    )
    found = resolved(text)
    assert device(found, "model.layers.1.mlp.experts") == "cpu"
    assert device(found, "lm_head") == "cuda:0"


def test_experts_left_in_pieces_are_counted_over_all_of_them() -> None:
    found = resolved(rule(r"experts\.(1|2|7)\.", "cpu"), n_experts=8)
    pieces = next(iter(found.experts.values()))
    assert pieces == {part: Counter({"cuda:0": 5, "cpu": 3}) for part in ("gate_proj", "up_proj", "down_proj")}


def test_a_single_expert_may_be_cut_as_a_whole() -> None:
    found = resolved(rule(r"experts\.3$", "cpu", recursive=False), rule(r"experts\.3\.up_proj", "cuda:1"))
    pieces = next(iter(found.experts.values()))
    assert pieces["up_proj"] == Counter({"cuda:0": 3, "cpu": 1})


@pytest.mark.parametrize("pattern", ["(a+)+$", "(l|l|l)*x$", r"(\w+\.?)*#", ".*.*.*.*.*.*#"])
def test_a_pattern_that_runs_away_is_stopped_and_named(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktllama.placing.searching.TIME_LIMIT", 0.3)
    long_name = "model." + "a" * 60 + "l" * 40
    tree = modules.build(deepseek())
    grown = (*tree.modules, Module(long_name, "torch.nn.Module", (), (), 0))
    ruleset = loader.loads(rule(pattern, "cpu"))
    found = resolve(ruleset, dataclasses.replace(tree, modules=grown))
    assert [(one.code, one.severity) for one in found.diagnostics] == [("regex-runaway", "error")]
    assert found.diagnostics[0].position is not None
    assert found.matches == {0: frozenset()}


def test_nested_repeats_that_end_in_time_still_match() -> None:
    found = resolved(rule(r"^(model\.|layers\.|[0-9]+\.)+self_attn$", "cpu"))
    assert device(found, "model.layers.2.self_attn") == "cpu"
    assert found.diagnostics == ()
