"""``ktllama plan`` as a user sees it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.cli.runner import ktllama
from tests.models import rule
from tests.runtime.tiny_models import TinyDeepSeek

LITE = ("plan", "--preset", "deepseek-v2-lite", "--ctx", "4096", "--ubatch", "512")


def test_a_plan_is_shown_written_and_translates(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    ran = ktllama(*LITE, "--vram", "8G", "--ram", "32G", "-o", str(rules))
    assert (ran.status, ran.err) == (0, f"wrote {rules}\n")
    lines = [line.strip() for line in ran.out.splitlines()]
    assert lines[0].startswith("DeepSeek V2 Lite Chat Q4_K_M  deepseek2, 27 layers, ")
    assert [line for line in lines if line in ("Memory", "Settings", "Predicted", "Notes", "Next")] == [
        "Memory", "Settings", "Predicted", "Notes", "Next",
    ]  # fmt: skip
    assert lines[lines.index("Memory") + 1].split() == ["cuda:0", "cpu"]
    cells = [re.split(" {2,}", line) for line in lines[lines.index("Memory") + 2 : lines.index("Settings") - 1]]
    assert [row[0] for row in cells] == [
        "routed experts", "shared experts", "attention", "dense FFN", "norms and router", "embedding", "output",
        "KV cache", "compute buffer", "used", "margin", "free", "budget",
    ]  # fmt: skip
    assert cells[-3] == ["margin", "512 MiB", "512 MiB"]
    assert cells[-1] == ["budget", "8 GiB", "32 GiB"]
    assert lines[-1] == f"ktllama run {rules} --model DeepSeek-V2-Lite-Chat-Q4_K_M.gguf --ctx 4096 --prompt Hello"
    assert rules.read_text().startswith("# Placement rules for DeepSeek V2 Lite Chat Q4_K_M, planned by ktllama.\n")
    again = ktllama("translate", str(rules), "--preset", "deepseek-v2-lite", "--format", "json")
    planned = ktllama(*LITE, "--vram", "8G", "--ram", "32G", "--json")
    assert again.status == planned.status == 0
    assert json.loads(again.out)["settings"] == json.loads(planned.out)["settings"]
    refused = ktllama(*LITE, "--vram", "8G", "-o", str(rules))
    assert (refused.status, refused.err) == (2, f"ktllama: {rules}: already exists; --force overwrites it\n")


def test_a_page_is_written_beside_the_text(tmp_path: Path) -> None:
    page, rules = tmp_path / "plan.html", tmp_path / "rules.yaml"
    words = (*LITE, "--vram", "8G", "--html", str(page))
    with mock.patch("ktllama.planner.survey.CARD_BYTES", (16 << 30,)):
        ran = ktllama(*words, "-o", str(rules))
    assert (ran.status, ran.err) == (0, f"wrote {rules}\nwrote {page}\n")
    assert ran.out.startswith("DeepSeek V2 Lite Chat Q4_K_M  deepseek2, 27 layers, ")
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "A card of 16 GiB in place of cuda:0: " in text
    assert f"ktllama run {rules} --model DeepSeek-V2-Lite-Chat-Q4_K_M.gguf --ctx 4096 --prompt Hello" in text
    again = ktllama(*words)
    assert (again.status, again.err) == (2, f"ktllama: {page}: already exists; --force overwrites it\n")
    both = ktllama(*words, "--force", "-o", str(page))
    assert both.err.splitlines()[-1] == "Error: --output and --html name the same file."
    alone = ktllama(*LITE, "--vram", "8G", "--force")
    assert (alone.status, alone.err.splitlines()[-1]) == (2, "Error: --force is for --output and --html.")


def test_the_document_adds_up() -> None:
    document = json.loads(ktllama(*LITE, "--vram", "6G,4G", "--margin", "256M", "--json").out)
    for one in document["memory"]:
        parts = (*one["weights"].values(), one["kv"], one["compute"], one["streaming"])
        assert one["used"] == sum(parts)
        assert one["free"] == (None if one["budget"] is None else one["budget"] - one["margin"] - one["used"])
        assert one["free"] is None or one["free"] >= 0
    assert [one["device"] for one in document["memory"]] == ["cuda:0", "cuda:1", "cpu"]
    assert document["stand_ins"] == ["CUDA0", "CUDA1"]


def test_llama_server_gets_the_context_too() -> None:
    ran = ktllama(*LITE, "--vram", "8G", "--parallel", "2", "--kv-type", "q8_0", "--format", "argv")
    assert ran.status == 0
    assert ran.out.startswith("llama-server --model DeepSeek-V2-Lite-Chat-Q4_K_M.gguf --n-gpu-layers ")
    assert "--fit off --ctx-size 4096 --batch-size 2048 --ubatch-size 512 --parallel 2 --kv-unified" in ran.out
    assert "--cache-type-k q8_0 --cache-type-v q8_0 --flash-attn auto" in ran.out


def test_a_preset_file_and_python_have_the_context_too() -> None:
    words = (*LITE, "--vram", "8G", "--kv-type", "q8_0", "--threads", "3", "--format")
    preset = ktllama(*words, "ini").out.splitlines()
    assert preset[preset.index("fit = off") + 1 :] == [
        "ctx-size = 4096", "batch-size = 2048", "ubatch-size = 512", "parallel = 1", "kv-unified = true",
        "cache-type-k = q8_0", "cache-type-v = q8_0", "flash-attn = auto", "threads = 3",
    ]  # fmt: skip
    assert ktllama(*words, "python").out.splitlines()[-1] == (
        "    llm = llama_cpp.Llama(model_path, n_ctx=4096, n_batch=2048, n_ubatch=512, flash_attn=True, "
        "type_k=llama_cpp.GGML_TYPE_Q8_0, type_v=llama_cpp.GGML_TYPE_Q8_0, n_threads=3)"
    )
    several = ktllama(*words, "python", "--parallel", "2")
    assert (several.status, several.err.splitlines()[-1]) == (
        2,
        "Error: --format python is for one sequence, as llama_cpp.Llama is; ktllama serve runs more.",
    )


def test_the_python_of_a_plan_runs(tmp_path: Path) -> None:
    model = TinyDeepSeek().write(tmp_path / "tiny.gguf")
    ran = ktllama("plan", "--model", str(model), "--vram", "none", "--ctx", "512", "--ubatch", "256", "--threads", "1",
                  "--format", "python")  # fmt: skip
    names: dict[str, Any] = {}
    exec(ran.out.replace("model_path, n_ctx", "model_path, verbose=False, n_ctx"), names)
    llm = names["llm"]
    try:
        assert llm.n_ctx() == 512
        assert (llm.context_params.n_ubatch, llm.context_params.flash_attn_type != 0) == (256, True)
    finally:
        llm.close()


def test_mapped_devices_are_stood_in_for_unless_the_plan_is_for_this_machine() -> None:
    ran = ktllama(*LITE, "--vram", "6G", "--device-map", "cuda:0=Vulkan7", "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["stand_ins"] == ["Vulkan7"]
    here = ktllama(*LITE, "--vram", "6G", "--ram", "detected", "--device-map", "cuda:0=Vulkan7")
    assert (here.status, here.out) == (2, "")
    assert "llama.cpp has no device Vulkan7 here" in here.err


def test_rules_with_auto_are_an_error_elsewhere_that_says_how_to_plan(tmp_path: Path) -> None:
    rules = tmp_path / "auto.yaml"
    rules.write_text(rule(r"\.mlp\.experts$", "auto", recursive=False) + rule("", "cuda:0"))
    for command in ("translate", "verify", "lint"):
        ran = ktllama(command, str(rules), "--preset", "deepseek-v2-lite")
        assert ran.status == 1
        command = (
            f"ktllama plan --rules {rules} --preset deepseek-v2-lite --vram detected --ram detected -o planned.yaml"
        )
        assert f"`{command}`" in ran.out + ran.err
    budgets = ("--budget", "cuda:0=6G", "--budget", "cpu=32G")
    ran = ktllama("translate", str(rules), "--preset", "deepseek-v2-lite", *budgets)
    proposed = re.search("`ktllama (plan [^`]*) -o planned.yaml`", ran.out)
    assert proposed is not None
    assert ktllama(*proposed.group(1).split(), "--ctx", "4096", "--ubatch", "512", "--format", "rules").status == 0
    planned = ktllama(*LITE, "--rules", str(rules), "--vram", "6G", "--format", "rules")
    assert planned.status == 0
    assert "auto" not in planned.out.partition("\n\n")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "ktllama: --vram is missing: the memory of each GPU, such as --vram 24G or --vram 24G,12G; detected for "
             "what is free here, none for no GPU"),
        (("--vram", "-8G"), "ktllama: --vram '-8G': expected a size above 0, such as 24G or 512M, detected or none"),
        (("--vram", "8GB/s"), "ktllama: --vram '8GB/s': expected a size above 0, such as 24G or 512M, detected or none"),
        (("--vram", "24"), "ktllama: --vram '24': that is 24 bytes; expected a size with its unit, such as 24G"),
        (("--vram", "8G,"), "ktllama: --vram '8G,': a size is missing; expected one for each GPU, as in 24G or 24G,12G"),
        (("--vram", "9000T"), "ktllama: --vram '9000T': no machine has that much; expected a size such as 24G or 512M"),
        (("--vram", "cuda:0=8G,cuda:0=8G"), "ktllama: --vram 'cuda:0=8G,cuda:0=8G': cuda:0 is named twice"),
        (("--vram", "cuda:0=8G,cuda=8G"), "ktllama: --vram 'cuda:0=8G,cuda=8G': cuda:0 is named twice"),
        (("--vram", "8G", "--ram", "much"), "ktllama: --ram 'much': expected a size above 0, such as 24G or 512M, or detected"),
        (("--vram", "8G", "--ram", "0"), "ktllama: --ram '0': expected a size above 0, such as 24G or 512M, or detected"),
        (("--vram", "8G", "--margin", "-1"), "ktllama: --margin '-1': expected a size above 0, such as 24G or 512M"),
        (("--vram", "8G", "--margin", "512"), "ktllama: --margin '512': that is 512 bytes; expected a size with its unit, "
                                              "such as 24G"),
        (("--vram", "8G", "--device-map", "cuda:1=Vulkan0"), "ktllama: --device-map cuda:1: there is no budget for it; "
                                                             "--vram gives cuda:0"),
        (("--vram", "8G", "--bandwidth", "cuda:1=1T"), "ktllama: --bandwidth cuda:1: no such device here; there are "
                                                       "cpu, cuda:0"),
        (("--vram", "8G", "--link-bandwidth", "0"), "ktllama: --link-bandwidth '0': expected bytes a second, such as "
                                                    "936G"),
        (("--vram", "8G", "--ctx", "1000000"), "ktllama: --ctx 1000000: DeepSeek V2 Lite Chat Q4_K_M was trained with a "
                                               "context of 163840 tokens"),
        (("--vram", "8G", "--ubatch", "0"), "Error: --ubatch '0': expected a number of tokens from 1 to 65536, or "
                                            "auto."),
        (("--vram", "8G", "--flash-attn", "off", "--kv-type", "q8_0"), "ktllama: --kv-type q8_0: llama.cpp quantizes "
                                                                       "the V cache with flash attention only"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words: tuple[str, ...], message: str) -> None:
    ran = ktllama("plan", "--preset", "deepseek-v2-lite", *words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines()[-1] == message
    assert "Traceback" not in ran.err


def test_more_ram_than_this_machine_has_is_refused_where_the_plan_is_for_it() -> None:
    ran = ktllama("plan", "--preset", "deepseek-v2-lite", "--vram", "detected", "--ram", "900T")
    assert (ran.status, ran.out) == (2, "")
    assert re.fullmatch(
        r"ktllama: --ram 900 TiB: this machine has [0-9.]+ [GT]iB; to plan for another, say its --vram too\n", ran.err
    )


def test_rules_that_are_over_budget_by_themselves_are_named_with_what_they_take(tmp_path: Path) -> None:
    rules = tmp_path / "r.yaml"
    rules.write_text(
        rule(r"\.mlp\.experts$", "auto", recursive=False) + rule(r"\.layers\.", "cuda:0") + rule("", "cpu")
    )
    words = ("plan", "--preset", "deepseek-r1", "--rules", str(rules), "--ubatch", "512")
    without = ktllama(*words)
    assert (without.status, without.err.partition(":")[2].split(":")[0]) == (2, " --vram is missing")
    ran = ktllama(*words, "--vram", "8G")
    assert (ran.status, ran.out) == (1, "")
    assert re.fullmatch(
        r"ktllama: what the rules fix on cuda:0 takes 1[01][.0-9]* GiB with compute buffer and margin, [23][.0-9]* GiB more "
        r"than its budget of 8 GiB; the rules that take most: rule 1 \(line 4\), \\.layers\\.: 1[01][.0-9]* GiB\n",
        ran.err,
    )


def test_a_model_must_be_named() -> None:
    ran = ktllama("plan", "--vram", "8G")
    assert ran.status == 2
    assert "Which model? Give --model FILE.gguf, --preset NAME or --config CONFIG." in ran.err


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    ran = ktllama("plan", "--preset", "r1-distill-qwen-7b", "--vram", "none", "--ram", "3G", "--ctx", "512",
                  "--ubatch", "512")  # fmt: skip
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("ktllama: DeepSeek R1 Distill Qwen 7B Q4_K_M does not fit: 3 GiB of RAM are ")
    assert "what would fit: a quantization of at most " in ran.err


@pytest.mark.parametrize("option", ["-o", "--html"])
def test_the_config_that_is_read_is_never_overwritten(option: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}", encoding="utf-8")
    for given in (config, tmp_path):
        ran = ktllama("plan", "--config", str(given), "--vram", "8G", option, str(config), "--force")
        assert (ran.status, ran.err) == (2, f"ktllama: {config}: is one of the files to read; give another name\n")
    assert config.read_text(encoding="utf-8") == "{}"
