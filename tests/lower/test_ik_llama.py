"""ik_llama.cpp's command lines, and its own layer arithmetic held against the plan."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.lower import ik_llama
from ktllama.lower.lowering import Lowering
from ktllama.lower.settings import LlamaSettings
from ktllama.model.model_file import ModelFile
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement
from ktllama.ruleset import loader
from ktllama.translation import Options, Translation, analyse
from tests.cli.runner import ktllama
from tests.models import deepseek, rule

NAMES = {"CPU": "cpu", "CUDA0": "cuda:0", "CUDA1": "cuda:1", "CUDA2": "cuda:2"}
EXPERTS = r"^blk\.[0-9]+\.ffn_(gate|up|down|gate_up)_exps\.weight$"
R1 = ("--preset", "deepseek-r1", "--target", "ik_llama.cpp")
STREAMED = rule(r"mlp\.experts$", "cpu", recursive=False).replace('fill_device: "cpu"', 'fill_device: "cuda:0"')
MLA = ["--mla-use", "3", "--attention-max-batch", "512"]


def translated(*rules: str, model: ModelFile | None = None) -> Translation:
    done = analyse(loader.loads("".join(rules)), model or deepseek(), options=Options(target="ik_llama.cpp"))
    assert not done.has_errors
    return done


def argv(done: Translation) -> list[str]:
    words = ik_llama.to_argv(done.settings, done.placement, "m.gguf")
    assert words[:3] == ["llama-server", "--model", "m.gguf"]
    return words[3:]


def base_by_ik_llama(said: LlamaSettings, n_layers: int) -> list[str]:
    """Layer → device as its llm_load_tensors computes it; the last is the output layer."""
    start = max(n_layers - said.n_gpu_layers, 0)
    act = min(said.n_gpu_layers, n_layers + 1)
    total = sum(said.tensor_split)
    splits = [share / total for share in accumulate(said.tensor_split)] if len(said.devices) > 1 and total else [1.0]
    layers = ["CPU"] * start
    layers += [said.devices[bisect_right(splits, (i - start) / act)] for i in range(start, n_layers)]
    offloaded = said.n_gpu_layers > n_layers
    return [*layers, said.devices[bisect_right(splits, (act - 1) / act)] if offloaded else "CPU"]


def check(placement: Placement, lowering: Lowering) -> None:
    """Tensors are where the plan wants them, and KV caches but for those that were told to be elsewhere."""
    said = lowering.settings
    base = base_by_ik_llama(said, placement.model.n_layers)
    assert [NAMES[device] for device in base] == list(lowering.base.layers)
    misplaced = {layer for layer, device in placement.kv.items() if NAMES[base[layer]] != device}
    assert misplaced == set(lowering.base.misplaced)
    assert bool(misplaced) == any(found.code == "kv-not-expressible" for found in lowering.diagnostics)
    for name, tensor in placement.tensors.items():
        block = block_of(name)
        default = base[-1 if block is None else block] if name != "token_embd.weight" else "CPU"
        overrides = (one.device for one in said.tensor_overrides if re.search(one.pattern, name))
        assert NAMES[next(overrides, default)] == tensor.device
    assert len(set(said.devices)) == len(said.devices)
    assert "CPU" not in said.devices


def test_experts_streamed_for_prefill_are_not_repacked() -> None:
    assert argv(translated(rule("embed", "cpu"), STREAMED, rule("", "cuda:0"))) == [
        *["--n-gpu-layers", "5", "--device", "CUDA0", "--override-tensor", f"{EXPERTS}=CPU"],
        *MLA,
    ]


def test_experts_that_stay_on_the_cpu_are_repacked() -> None:
    done = translated(rule("embed", "cpu"), rule(r"mlp\.experts$", "cpu", recursive=False), rule("", "cuda:0"))
    assert argv(done) == [
        *["--n-gpu-layers", "5", "--device", "CUDA0", "--override-tensor", f"{EXPERTS}=CPU"],
        *["--offload-policy", "-1,0", *MLA, "--run-time-repack"],
    ]


def test_everything_on_the_cpu() -> None:
    assert argv(translated(rule("", "cpu"))) == [
        *["--n-gpu-layers", "0", "--offload-policy", "-1,0", *MLA, "--run-time-repack"]
    ]


def test_everything_on_one_gpu() -> None:
    assert argv(translated(rule("embed", "cpu"), rule("", "cuda:0"))) == [
        *["--n-gpu-layers", "5", "--device", "CUDA0", *MLA]
    ]


def test_a_suffix_of_layers_leaves_the_output_behind_unless_it_is_overridden() -> None:
    done = translated(rule(r"layers\.[01]\.|embed", "cpu"), rule("", "cuda:0"))
    assert argv(done)[:6] == [
        *["--n-gpu-layers", "2", "--device", "CUDA0"],
        *["--override-tensor", r"^(output\.weight|output_norm\.weight)$=CUDA0"],
    ]
    check(done.placement, done.lowering)


def test_two_gpus() -> None:
    done = translated(rule("embed", "cpu"), rule(r"layers\.0\.", "cuda:0"), rule("", "cuda:1"))
    assert argv(done)[:8] == [
        *["--n-gpu-layers", "5", "--device", "CUDA0,CUDA1", "--split-mode", "layer", "--tensor-split", "1,4"]
    ]
    check(done.placement, done.lowering)


def test_cpu_layers_behind_gpu_layers_keep_their_weights_but_not_their_kv_cache() -> None:
    done = translated(rule("embed", "cpu"), rule(r"layers\.[01]\.|lm_head", "cuda:0"), rule("", "cpu"))
    assert [found.message for found in done.lowering.diagnostics] == [
        "the KV cache of layer 2-3 belongs on cpu, but ik_llama.cpp takes no CPU layers behind GPU layers: it goes to "
        "cuda:0, where it takes 384 B a token, 12 MiB at 32768 tokens (f16); --target python puts it in its place"
    ]
    check(done.placement, done.lowering)


def test_a_gpu_that_comes_back_is_told() -> None:
    done = translated(rule("embed", "cpu"), rule(r"layers\.1\.", "cuda:1"), rule("", "cuda:0"))
    assert done.settings.devices == ("CUDA0", "CUDA1")
    assert [found.code for found in done.lowering.diagnostics] == ["repeated-device", "kv-not-expressible"]
    check(done.placement, done.lowering)


def test_a_tied_output_that_cannot_be_offloaded_is_told() -> None:
    done = translated(rule(r"layers\.0\.|embed", "cpu"), rule("", "cuda:0"), model=deepseek(tied=True))
    assert [found.message for found in done.lowering.diagnostics] == [
        "the output belongs on cuda:0 and goes to cpu: the model ties it to token_embd.weight, whose copy cannot be "
        "overridden by itself, and ik_llama.cpp offloads the output only after all blocks"
    ]


DEVICES = st.sampled_from(["cpu", "cuda:0", "cuda:1", "cuda:2"])


@given(layers=st.lists(st.tuples(DEVICES, DEVICES), min_size=5, max_size=5), norm=DEVICES, head=DEVICES)
@settings(max_examples=100, deadline=None)
def test_any_placement_of_weights_is_met_exactly(layers: list[tuple[str, str]], norm: str, head: str) -> None:
    rules = [rule("embed", "cpu"), rule("^model.norm", norm), rule("lm_head", head)]
    for number, (attention, experts) in enumerate(layers):
        rules.append(rule(rf"layers\.{number}\.mlp\.experts", experts, recursive=False))
        rules.append(rule(rf"layers\.{number}\.", attention))
    done = translated(*rules, model=deepseek(5))
    check(done.placement, done.lowering)


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "rules.yaml"
    path.write_text(rule("embed", "cpu") + STREAMED + rule("", "cuda:0"))
    return str(path)


def test_load_modes_have_its_own_flags(rules: str) -> None:
    for mode, flag in (("none", "--no-mmap"), ("mlock", "--mlock")):
        ran = ktllama("translate", rules, *R1, "--load-mode", mode, "--format", "argv")
        assert ran.out.endswith(f"{flag}\n")


def test_the_command_prints_it(rules: str) -> None:
    argv_form, text = (ktllama("translate", rules, *R1, "--format", form).out for form in ("argv", "text"))
    assert argv_form == (
        "llama-server --model DeepSeek-R1-Q4_K_M.gguf --n-gpu-layers 62 --device CUDA0 --override-tensor "
        f"'{EXPERTS}=CPU' --mla-use 3 --attention-max-batch 512\n"
    )
    assert "  --mla-use 3 \\\n" in text


@pytest.mark.parametrize(("form", "target"), [("ini", "llama-server"), ("python", "python")])
def test_forms_that_are_not_for_it(form: str, target: str, rules: str) -> None:
    ran = ktllama("translate", rules, *R1, "--format", form)
    assert ran.status == 2
    assert ran.err.endswith(f"Error: --format {form} is for --target {target}.\n")
