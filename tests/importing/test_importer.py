"""Command lines people use, imported: the rules place what the flags place."""

from __future__ import annotations

import re

import pytest

from ktllama.devices import parse_device_map
from ktllama.importing.assignment import assign
from ktllama.importing.command_line import parse
from ktllama.importing.importer import Imported, import_command
from ktllama.lower import emit
from ktllama.model import presets
from ktllama.model.model_file import ModelFile
from ktllama.ruleset import loader
from ktllama.translation import Options, analyse
from tests.corpus import PRESET_OF_TREE, golden_pairs, needs_corpus, rule_file
from tests.lower.test_lowering import base_by_llama_cpp, tensor_by_llama_cpp
from tests.models import deepseek

RECIPES = [
    "llama-server -ngl 99 -ot exps=CPU",
    r'llama-server -ngl 99 -ot "blk\.(3|4|5)\.ffn_.*=CUDA0" -ot exps=CPU',
    'llama-server -ngl 99 -ot ".ffn_(up|down)_exps.=CPU"',
    'llama-server -ngl 99 -ot ".ffn_.*_exps.=CPU"',
    r'llama-server -ngl 99 -ot "\.(6|7|8|9|[0-9][0-9]|[0-9][0-9][0-9])\.ffn_(gate|up|down)_exps.=CPU"',
    "llama-server -ngl 40 -ts 3,1",
    "llama-server -ngl 99 -ncmoe 20",
    "llama-server -ngl 99 -cmoe",
    "llama-server -ngl 99 -ncffn 2",
    "llama-server -ngl all -ts 1,1 "
    r'-ot "blk\.(3|4)\.ffn_.*_exps=CUDA0,blk\.(31|32)\.ffn_.*_exps=CUDA1" -ot "ffn_.*_exps=CPU"',
    "llama-server -ngl 0",
    "llama-server -ngl 1",
    "llama-server -ngl 30 -dev none",
    "llama-server -ngl 99 -sm none -mg 1 -dev CUDA0,CUDA1",
    "llama-server -ngl 99 -ts 5,3,2 -ot attn=CUDA2 -ot shexp=CPU,ffn_gate_inp=CUDA1,exp_probs_b=CUDA1",
    "llama-server -ngl 20 -ot output=CPU",
    "llama-server -ngl 99 -ot token_embd=CUDA0 -ot .*=CPU",
]


def imported(command: str, model: ModelFile | None = None, gpus: int | None = None) -> Imported:
    return import_command([command], model or presets.load("deepseek-r1"), gpus=gpus)


def names(text: str) -> list[tuple[str | None, str | None, bool]]:
    return [(rule.name, rule.generate_device, rule.recursive) for rule in loader.loads(text).rules]


@pytest.mark.parametrize("preset", ["deepseek-r1", "deepseek-v2-lite"])
@pytest.mark.parametrize("command", RECIPES)
def test_the_rules_translate_back_to_the_same_placement(command: str, preset: str) -> None:
    """Checked with another implementation of llama.cpp's arithmetic, that of the lowering's tests."""
    model = presets.load(preset)
    done = import_command([command], model)
    settings = analyse(loader.loads(done.text), model, options=Options()).settings
    back = {"CPU": "cpu", "CUDA0": "cuda:0", "CUDA1": "cuda:1", "CUDA2": "cuda:2"}
    base = base_by_llama_cpp(settings, model.n_layers)
    kept = {name: device for name, device in done.assignment.tensors.items() if name != "token_embd.weight"}
    assert {name: back[tensor_by_llama_cpp(name, settings, base)] for name in kept} == kept
    assert {layer: back[base[layer]] for layer in done.assignment.kv} == dict(done.assignment.kv)


@pytest.mark.parametrize("command", RECIPES)
@pytest.mark.parametrize("shape", ["fused", "legacy", "mtp", "tied", "dense"])
def test_any_shape_of_file_can_be_imported(command: str, shape: str) -> None:
    model = {
        "fused": deepseek(8, fused=True),
        "legacy": deepseek(8, legacy_kv_b=True),
        "mtp": deepseek(8, n_mtp=1),
        "tied": deepseek(8, tied=True),
        "dense": deepseek(8, n_dense=8),
    }[shape]
    assert import_command([command], model).text


def test_experts_on_the_cpu_are_three_rules() -> None:
    assert names(imported("llama-server -ngl 99 -ot exps=CPU").text) == [
        (r"^model\.embed_tokens$", "cpu", True),
        (r"^model\.layers\.[0-9]+\.mlp\.experts$", "cpu", False),
        ("^(model|lm_head)", "cuda:0", True),
    ]


def test_a_file_as_it_is_written() -> None:
    done = imported("llama-server -m r1.gguf -fa -c 8192 -ngl 99 -ncmoe 20 --no-op-offload --no-host --api-key s3cret")
    assert done.diagnostics == ()
    assert done.text == (
        "# Placement rules for DeepSeek R1 Q4_K_M, imported from a llama.cpp command line.\n"
        "# They name no model class: give --model FILE.gguf or --preset NAME with them.\n"
        "#\n"
        "#   llama-server -m r1.gguf -fa -c 8192 -ngl 99 -ncmoe 20 --no-op-offload --no-host --api-key ***\n"
        "#\n"
        "# These flags place nothing and are not in the rules:\n"
        "#   -fa -c 8192 --api-key ***\n"
        "\n"
        "# token embeddings\n"
        "- match:\n"
        "    name: '^model\\.embed_tokens$'\n"
        "  replace:\n"
        "    class: default\n"
        "    kwargs:\n"
        '      generate_device: "cpu"\n'
        '      prefill_device: "cpu"\n'
        "\n"
        "# routed experts of layer 3-19\n"
        "- match:\n"
        "    name: '^model\\.layers\\.([3-9]|1[0-9])\\.mlp\\.experts$'\n"
        "  replace:\n"
        "    class: ktransformers.operators.experts.KTransformersExperts\n"
        "    kwargs:\n"
        '      generate_device: "cpu"\n'
        '      prefill_device: "cpu"\n'
        '      generate_op: "KExpertsCPU"\n'
        '      prefill_op: "KExpertsTorch"\n'
        '      out_device: "cuda:0"\n'
        "  recursive: False\n"
        "\n"
        "# everything else\n"
        "- match:\n"
        "    name: '^(model|lm_head)'\n"
        "  replace:\n"
        "    class: default\n"
        "    kwargs:\n"
        '      generate_device: "cuda:0"\n'
        '      prefill_device: "cuda:0"\n'
    )


def test_op_offload_comes_back() -> None:
    for flag, streams in (("", True), (" --no-op-offload --no-host", False)):
        assert imported(f"llama-server -ngl 99 -cmoe{flag}").placement.stream_experts is streams


def test_experts_split_by_part_stay_in_pieces() -> None:
    done = imported('llama-server -ngl 99 -ot ".ffn_(up|down)_exps.=CPU"')
    assert names(done.text)[1] == (
        r"^model\.layers\.[0-9]+\.mlp\.experts\.[0-9]+\.(down_proj|up_proj)$",
        "cpu",
        True,
    )
    assert done.placement.tensors["blk.3.ffn_gate_exps.weight"].device == "cuda:0"
    assert done.placement.tensors["blk.3.ffn_down_exps.weight"].device == "cpu"


def test_a_module_that_cannot_be_split_is_named_with_the_choice() -> None:
    done = import_command([r"llama-server -ngl 99 -ot blk\\.[01]\\.attn_k_b=CPU"], deepseek())
    assert [str(found) for found in done.diagnostics] == [
        "warning: the command puts tensors of one module, self_attn.kv_b_proj of layer 0-1, on several devices, and a "
        "rule gives a module one: attn_k_b.weight put with the rest on cuda:0 [import-split-module]"
    ]
    assert done.placement.tensors["blk.0.attn_k_b.weight"].device == "cuda:0"


def test_the_embedding_stays_on_the_cpu() -> None:
    done = import_command(["llama-server -ngl 99 -ot token_embd=CUDA0"], deepseek())
    assert [found.message for found in done.diagnostics] == [
        "the command puts token_embd.weight on cuda:0; rules keep it on the CPU"
    ]


def test_nkvo_puts_self_attn_on_the_cpu_and_says_what_that_means() -> None:
    done = import_command(["llama-server -ngl 99 -nkvo"], deepseek())
    assert set(done.placement.kv.values()) == {"cpu"}
    assert done.placement.tensors["blk.0.attn_q_a.weight"].device == "cuda:0"
    assert [found.code for found in done.diagnostics] == ["import-kv-on-cpu"]


def test_tensors_away_from_their_kv_cache() -> None:
    done = import_command(["llama-server -ngl 99 -ot attn=CPU"], deepseek())
    assert set(done.placement.kv.values()) == {"cuda:0"}
    assert done.placement.tensors["blk.0.attn_q_a.weight"].device == "cpu"


@pytest.mark.parametrize(
    ("command", "gpus", "expected"),
    [
        ("llama-server -ngl 99", None, ("cuda:0",)),
        ("llama-server -ngl 99", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("CUDA_VISIBLE_DEVICES=0,1 llama-server -ngl 99 -ts 1,1", None, ("cuda:0", "cuda:1")),
        ("llama-server -ngl 99 -ts 1,1 -dev CUDA1,CUDA0", None, ("cuda:1", "cuda:0")),
        ("llama-server -ngl 99 -dev none", None, ()),
        ("llama-server -ngl 99 -sm none -mg 1", None, ("cuda:1",)),
        ("llama-server -ngl 99 -ts 1,1 -ot exps=SYCL1", None, ("xpu:0", "xpu:1")),
        ("llama-server -ngl 99 -ts 1,1 --rpc a:1 -ot exps=RPC0[a:1]", None, ("cuda:0", "cuda:1")),
    ],
)
def test_devices(command: str, gpus: int | None, expected: tuple[str, ...]) -> None:
    assert imported(command, deepseek(), gpus).assignment.gpus == expected


def test_other_backends_say_which_device_map_brings_them_back() -> None:
    done = imported("llama-server -ngl 99 -ot exps=Vulkan0", deepseek())
    assert [found.message for found in done.diagnostics] == ["translate the rules with --device-map cuda:0=Vulkan0"]
    mapped = import_command(
        ["llama-server -ngl 99 -ot exps=Vulkan0"], deepseek(), device_map=parse_device_map(["cuda:3=Vulkan0"])
    )
    assert mapped.assignment.gpus == ("cuda:3",)
    assert mapped.diagnostics[0].message == "translate the rules with --device-map cuda:3=Vulkan0"


def test_a_split_that_llama_cpp_decides_by_memory_is_told() -> None:
    done = imported("llama-server -ngl auto -dev CUDA0,CUDA1 -ot nothing=CPU", deepseek())
    assert [found.code for found in done.diagnostics] == [
        "import-auto-layers",
        "import-split-by-memory",
        "import-override-unused",
    ]


def test_an_override_to_a_device_that_is_not_used_is_told() -> None:
    done = imported("llama-server -ngl 99 -dev CUDA0 -ot exps=CUDA1", deepseek())
    assert [found.message for found in done.diagnostics] == [
        "-ot names CUDA1, which is not among the devices that llama.cpp uses (CUDA0); add it to -dev"
    ]


def test_what_stands_in_the_file_cannot_break_out_of_its_comment() -> None:
    done = import_command(["llama-server", "-ngl", "99", "-a", "x\n- match: {name: .}\n"], deepseek())
    assert [rule.name for rule in loader.loads(done.text).rules] == [r"^model\.embed_tokens$", "^(model|lm_head)"]


def test_secrets_are_not_written() -> None:
    text = imported("HF_TOKEN=hf_abc llama-server -ngl 99 --api-key k3y -hft hf_def", deepseek()).text
    assert not [secret for secret in ("hf_abc", "k3y", "hf_def") if secret in text]


@needs_corpus
@pytest.mark.parametrize(("rules", "tree"), golden_pairs())
def test_corpus_rules_survive_the_way_out_and_back(rules: str, tree: str) -> None:
    model = presets.load(PRESET_OF_TREE[tree])
    translation = analyse(str(rule_file(rules)), model, options=Options(target="llama-server"))
    if translation.has_errors or any(found.code == "kv-not-expressible" for found in translation.diagnostics):
        pytest.skip("llama-server cannot express this plan")
    done = import_command(
        emit.to_argv(translation.settings, "m.gguf"), model, device_map=translation.options.device_map
    )
    there, back = translation.placement, done.assignment
    assert back.names.items() <= {"cpu": "CPU", **{f"cuda:{n}": f"CUDA{n}" for n in range(8)}, **npu_names()}.items()
    assert dict(done.placement.kv) == dict(there.kv)
    assert {name: tensor.device for name, tensor in done.placement.tensors.items()} == {
        name: tensor.device for name, tensor in there.tensors.items()
    }
    assert done.placement.stream_experts == there.stream_experts


def npu_names() -> dict[str, str]:
    return {**{f"npu:{n}": f"CANN{n}" for n in range(8)}, **{f"xpu:{n}": f"SYCL{n}" for n in range(8)}}


@pytest.mark.parametrize("layers", ["[67]", "[12]", "1"])
def test_experts_in_pieces_in_some_layers_only(layers: str) -> None:
    command = rf"llama-server -ngl 99 -ot 'blk\.{layers}\.ffn_down_exps=CPU' -ot 'blk\.[345]\..*exps=CUDA1' -ts 1,0"
    placement = import_command([command], deepseek(8)).placement
    found = {name: tensor.device for name, tensor in placement.tensors.items() if "_exps" in name}
    for name, device in found.items():
        assert (device == "cpu") is bool(re.search(rf"blk\.{layers}\.ffn_down", name))
        assert (device == "cuda:1") is bool(re.search(r"blk\.[345]\.", name))


def test_layer_arithmetic_is_that_of_llama_cpp() -> None:
    """Computed by hand: 5 layers with the output; -ngl 4 -ts 3,1 offloads layers 1 to 4 and gives the last to CUDA1."""
    done = assign(parse(["llama-server -ngl 4 -ts 3,1"]), deepseek())
    assert (done.kv, done.output) == ({0: "cpu", 1: "cuda:0", 2: "cuda:0", 3: "cuda:0"}, "cuda:1")


@pytest.mark.parametrize(
    ("preset", "command", "module"),
    [
        ("gpt-oss-20b", r"llama-server -ngl 99 -ot 'blk\.1\.=CPU'", "self_attn of layer 1"),
        ("qwen3-next-80b-a3b", "llama-server -ngl 20 -nkvo", "linear_attn of layer 29-30"),
    ],
)
def test_tensors_that_attention_owns_itself_stay_with_its_cache(preset: str, command: str, module: str) -> None:
    done = imported(command, presets.load(preset))
    messages = [found.message for found in done.diagnostics if found.code == "import-split-module"]
    assert len(messages) == 1
    assert f"the command puts tensors of one module, {module}" in messages[0]
    assert "put with the layer's cache on" in messages[0]
