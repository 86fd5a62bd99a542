"""Plans for the tests of explanations: one small model, and rules for it."""

from __future__ import annotations

from pathlib import Path

from ktllama.model.model_file import ModelFile
from ktllama.translation import Options, Translation, analyse
from tests.models import deepseek, rule

EXPERTS = "ktransformers.operators.experts.KTransformersExperts"

#: Experts of layers 1 and up on the CPU, layer 2 but for its experts on the second GPU, all else on the first.
RULES = (
    rule(r"\.mlp\.experts$", "cpu", replace=EXPERTS, recursive=False, prefill_device="cuda:0"),
    rule(r"^model\.layers\.2\.", "cuda:1"),
    rule("", "cuda:0"),
)

#: The same, with the experts of layer 3 on the second GPU too and without a rule for layer 2.
OTHER_RULES = (
    rule(r"^model\.layers\.3\.mlp\.experts$", "cuda:1", replace=EXPERTS, recursive=False),
    RULES[0],
    RULES[2],
)


def write(path: Path, *rules: str) -> str:
    path.write_text("".join(rules or RULES), encoding="utf-8")
    return str(path)


def plan(
    folder: Path, *rules: str, model: ModelFile | None = None, options: Options | None = None, name: str = "rules.yaml"
) -> Translation:
    return analyse(write(folder / name, *rules), model or deepseek(), options=options)
