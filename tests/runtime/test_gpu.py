"""The same proofs on a real GPU; skipped where llama.cpp has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ktllama.runtime.device_list import available
from tests.cli.runner import Ran, ktllama
from tests.models import rule
from tests.runtime import smollm2

pytestmark = pytest.mark.gpu

ALL_ON_THE_CPU = rule("", "cpu")
HALF_ON_THE_GPU = rule(r"^model\.layers\.(0|[1-9]|1[0-4])\.", "cuda:0") + rule("", "cpu")
ALL_ON_THE_GPU = rule("embed_tokens", "cpu") + rule("", "cuda:0")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not any(device.kind == "gpu" and device.backend != "RPC" for device in available()):
        pytest.skip("needs a GPU that this build of llama.cpp can use")


def run(rules: str, folder: Path) -> Ran:
    file = folder / "rules.yaml"
    file.write_text(rules)
    prompt = ("-p", "The capital of France is", "--raw", "-n", "16", "--ctx", "256", "--flash-attn", "off")
    return ktllama("run", str(file), "-m", str(smollm2.path()), *prompt)


@pytest.mark.parametrize("rules", [HALF_ON_THE_GPU, ALL_ON_THE_GPU], ids=["half", "all"])
def test_run_puts_every_tensor_on_the_gpu_that_the_rules_put_there(rules: str, tmp_path: Path) -> None:
    on_cpu, on_gpu = run(ALL_ON_THE_CPU, tmp_path), run(rules, tmp_path)
    assert (on_cpu.status, on_gpu.status) == (0, 0)
    assert "CUDA0: " in on_gpu.err
    assert "not as planned" not in on_gpu.err
    assert on_gpu.out.split()[0] == on_cpu.out.split()[0] == "Paris."


def test_verify_needs_no_stand_in() -> None:
    ran = ktllama("verify", "deepseek-r1/1x24gb", "--no-stand-ins", "--format", "json")
    assert ran.status == 0
    assert json.loads(ran.out)["stand_ins"] == []


def test_validate_rounds_as_the_cpu_does_only_where_it_computes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the reference needs torch")
    file = tmp_path / "rules.yaml"
    file.write_text(HALF_ON_THE_GPU)
    ran = ktllama("validate", "--rules", str(file), "-m", str(smollm2.path()), "--tokens", "64", "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["comparison"]["activations"] == "mixed"
    expected = [layer["expected"] for layer in found["layers"]]
    assert min(expected[:15]) > max(expected[15:])
