from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ktllama.codes import CATALOGUE, RULESET_CODES
from ktllama.ruleset import catalogue

RULE_FILES = sorted((Path(__file__).parents[3] / "shared/ktransformers/rules").glob("*.yaml"))


@pytest.mark.parametrize(
    ("operator", "kinds"),
    [
        ("KLinearMarlin", {"cuda"}),
        ("VLinearMarlin", {"cuda"}),
        ("KLinearFP8", {"cuda"}),
        ("KLinearQ8", {"cuda"}),
        ("KLinearTorch", {"cpu", "cuda", "xpu", "npu"}),
        ("KLinearCPUInfer", {"cpu"}),
        ("KLinearIPEXLLM", {"xpu"}),
        ("KLinearTorchW8A8A2", {"npu"}),
        ("KExpertsCPU", {"cpu"}),
        ("KExpertsMarlin", {"cuda"}),
        ("KExpertsTorch", {"cpu", "cuda", "xpu", "npu"}),
    ],
)
def test_an_operator_runs_on_its_devices(operator: str, kinds: set[str]) -> None:
    assert catalogue.runs_on(operator) == frozenset(kinds)


def test_an_unknown_operator_runs_on_nothing_known() -> None:
    assert catalogue.runs_on("KLinearMagic") is None


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("MLPCPUExperts", "KExpertsCPU"),
        ("MLPCUDAExperts", "KExpertsMarlin"),
        ("MLPExpertsTorch", "KExpertsTorch"),
        ("ktransformers.operators.experts.KTransformersMLPExpert", "KTransformersExperts"),
        ("KExpertsCPU", None),
    ],
)
def test_old_names_have_todays(old: str, today: str | None) -> None:
    assert catalogue.todays_name(old) == today


def test_todays_names_are_known() -> None:
    known = {*catalogue.OPERATORS, *catalogue.REPLACE_CLASS_NAMES}
    assert [name for name in catalogue.OLD_NAMES.values() if name not in known] == []
    assert [name for name in catalogue.OLD_KWARGS.values() if name not in catalogue.KNOWN_KWARGS] == []


def test_a_class_is_known_by_path_and_by_bare_name() -> None:
    assert catalogue.REPLACE_CLASSES["ktransformers.operators.linear.KTransformersLinear"] == catalogue.ReplaceClass(
        path="ktransformers.operators.linear.KTransformersLinear",
        replaces="linear layer",
        runs_on=frozenset({"cpu", "cuda", "xpu", "npu"}),
    )
    assert catalogue.is_replace_class("ktransformers.operators.linear.KTransformersLinear")
    assert catalogue.is_replace_class("KDeepseekV2Attention")
    assert not catalogue.is_replace_class("ktransformers.operators.gate.KTransformersLinear")


@pytest.mark.skipif(not RULE_FILES, reason="the real rule files are not here")
def test_everything_that_real_files_name_is_known() -> None:
    rules = [rule for path in RULE_FILES for rule in yaml.safe_load(path.read_text("utf-8"))]
    classes = {rule["replace"]["class"] for rule in rules} - {"default"}
    kwargs = [rule["replace"].get("kwargs") or {} for rule in rules]
    operators = {made[key] for made in kwargs for key in catalogue.OPERATOR_KWARGS if key in made} - {"None"}
    assert len(classes) == 43
    assert classes <= set(catalogue.REPLACE_CLASSES)
    assert operators <= set(catalogue.OPERATORS)
    assert {key for made in kwargs for key in made} <= catalogue.KNOWN_KWARGS


def test_every_code_has_its_text_and_kebab_case() -> None:
    assert RULESET_CODES.items() <= CATALOGUE.items()
    for code, info in CATALOGUE.items():
        assert code == code.lower().replace("_", "-")
        assert info.meaning.endswith(".")
        assert info.remedy.endswith(".")
