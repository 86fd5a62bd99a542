"""``ktllama verify``, ``run`` and ``devices`` as a user sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ktllama.model import presets, sparse
from tests.cli.runner import ktllama
from tests.models import rule
from tests.runtime import smollm2

RULES = Path(__file__).parents[2] / "rules"
FIRST_HALF_ON_A_GPU = rule(r"^model\.layers\.(0|[1-9]|1[0-4])\.", "cuda:0") + rule("", "cpu")


def test_verify_of_r1_on_one_card() -> None:
    ran = ktllama("verify", str(RULES / "deepseek-r1" / "1x24gb.yaml"), "--ctx", "32768")
    assert ran.status == 0
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert lines[:6] == [
        "DeepSeek R1 Q4_K_M  1086 tensors",
        "           checked  as planned",
        "layers          62          62",
        "KV caches       61          61",
        "tensors       1086        1086",
        "overrides      171         171",
    ]
    assert lines[-1] == "as planned: 100%"
    card = next(line for line in lines if line.startswith("CUDA0  "))
    assert card.split()[1:5] == ["16.1", "GiB", "2.14", "GiB"]


def test_verify_of_gpu_first_has_the_kv_cache_where_the_rules_say() -> None:
    ran = ktllama("verify", str(RULES / "deepseek-v2-lite" / "gpu-first-10.yaml"), "--format", "json")
    document = json.loads(ran.out)
    assert ran.status == 0
    assert document["ok"] is True
    assert document["kv"] == {"checked": 27, "matched": 27}
    # 27 layers of 576 f16 values a token, 4096 tokens: 10 layers on the card, 17 on the CPU
    assert document["kv_bytes"] == {"CPU": 17 * 576 * 2 * 4096, "CUDA0": 10 * 576 * 2 * 4096}
    assert document["stand_ins"] == ["CUDA0"]


def test_verify_takes_a_header_without_its_data(tmp_path: Path) -> None:
    whole, header = tmp_path / "whole.gguf", tmp_path / "header.gguf"
    sparse.write(presets.load("deepseek-v2-lite"), whole)
    with whole.open("rb") as stream:
        header.write_bytes(stream.read(64 * 1024))
    ran = ktllama("verify", str(RULES / "deepseek-v2-lite" / "gpu-first-10.yaml"), "--model", str(header))
    assert (ran.status, ran.out.rstrip().splitlines()[-1]) == (0, "as planned: 100%")


def test_verify_refuses_rules_with_errors(tmp_path: Path) -> None:
    rules = tmp_path / "r.yaml"
    rules.write_text(rule("lm_head", "CUDA0"))
    ran = ktllama("verify", str(rules), "--preset", "deepseek-r1")
    assert ran.status == 1
    assert "bad-device" in ran.err


def test_verify_of_a_device_that_the_user_chose_and_that_is_not_here() -> None:
    ran = ktllama(
        "verify", str(RULES / "deepseek-r1" / "1x24gb.yaml"), "--device-map", "cuda:0=Vulkan7", "--no-stand-ins"
    )
    assert ran.status == 2
    assert ran.err.startswith("ktllama: llama.cpp has no device Vulkan7 here; it has CPU")


@pytest.mark.parametrize("rules", ["cpu", "half"])
def test_run_generates_the_same_text_under_every_placement(rules: str, tmp_path: Path) -> None:
    model = str(smollm2.path())
    half = tmp_path / "half.yaml"
    half.write_text(FIRST_HALF_ON_A_GPU)
    file = str(RULES / "llama" / "cpu.yaml") if rules == "cpu" else str(half)
    ran = ktllama("run", file, "-m", model, "-p", "The capital of France is", "--raw", "-n", "6", "--stand-ins",
                  "--ctx", "256", "--threads", "1")  # fmt: skip
    assert ran.status == 0
    assert ran.out == " Paris.\n\nThe United\n"
    assert "CPU: " in ran.err
    assert "of weights, as planned" in ran.err
    assert "decode 5 tokens" in ran.err


def test_what_there_is_one_of_is_singular() -> None:
    ran = ktllama("run", "-p", "a", "--raw", "-n", "2", "--ctx", "64", "--threads", "1")
    last = re.sub(r"[0-9.]+ tokens/s", "… tokens/s", ran.err.splitlines()[-1])
    assert (ran.status, last) == (0, "prefill 2 tokens, … tokens/s; decode 1 token, … tokens/s")


def test_run_needs_devices_that_exist(tmp_path: Path) -> None:
    rules = tmp_path / "r.yaml"
    rules.write_text(FIRST_HALF_ON_A_GPU)
    ran = ktllama("run", str(rules), "-m", str(smollm2.path()), "-p", "Hi")
    assert ran.status == 2
    assert ran.err.startswith("ktllama: llama.cpp has no device CUDA0 here; it has CPU")


def test_run_refuses_a_prompt_longer_than_the_context() -> None:
    ran = ktllama(
        "run", str(RULES / "llama" / "cpu.yaml"), "-m", str(smollm2.path()), "-p", "-", "--ctx", "256",
        stdin="word " * 1000,
    )  # fmt: skip
    assert ran.status == 2
    assert ran.err.endswith("tokens and the context holds 256: shorten it or enlarge the context\n")


def test_devices_lists_the_cpu() -> None:
    ran = ktllama("devices")
    assert ran.status == 0
    assert any(line.split()[:2] == ["CPU", "cpu"] for line in ran.out.splitlines())


def test_verify_holds_the_whole_against_a_budget() -> None:
    words = ("verify", "deepseek-r1/1x24gb", "--ctx", "32768", "--budget")
    fits, over = ktllama(*words, "cuda:0=24G"), ktllama(*words, "cuda:0=17G")
    assert (fits.status, over.status) == (0, 1)
    assert "error: weights, KV cache and compute buffer on cuda:0 take 18.7 GiB, 1." in over.err
    assert "[over-budget]" in over.err


def test_verify_of_the_llama_server_settings_shows_what_they_cannot_say() -> None:
    ran = ktllama("verify", "deepseek-v2-lite/gpu-first-10", "--target", "llama-server", "--format", "json")
    document = json.loads(ran.out)
    assert ran.status == 1
    assert document["kv"] == {"checked": 27, "matched": 10}
    assert document["mismatches"][0] == {"what": "KV cache of layer 10", "expected": "CPU", "found": "CUDA0"}
