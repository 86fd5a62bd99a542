"""Settings for placements, checked against llama.cpp's own arithmetic."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktllama.devices import parse_device_map
from ktllama.lower.lowering import Lowering, lower
from ktllama.lower.settings import LlamaSettings, Target, TensorOverride
from ktllama.model.model_file import ModelFile
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement
from ktllama.ruleset import loader
from ktllama.translation import Options, analyse
from tests.models import deepseek, rule

NAMES = {"CPU": "cpu", "CUDA0": "cuda:0", "CUDA1": "cuda:1", "CUDA2": "cuda:2"}
STREAMED_EXPERTS = rule(r"mlp\.experts$", "cpu", recursive=False).replace(
    'prefill_device: "cpu"', 'prefill_device: "cuda:0"'
)
EXPERTS_PATTERN = r"^blk\.[0-9]+\.ffn_(gate|up|down|gate_up)_exps\.weight$"


def lowered(*rules: str, model: ModelFile | None = None, target: Target = "python") -> tuple[Placement, Lowering]:
    translation = analyse(loader.loads("".join(rules)), model or deepseek(), options=Options(target=target))
    assert not translation.has_errors
    return translation.placement, translation.lowering


def base_by_llama_cpp(said: LlamaSettings, n_layers: int) -> list[str]:
    """Layer → device as src/llama-model.cpp's load_tensors computes it; the last is the output layer."""
    start = max(n_layers + 1 - said.n_gpu_layers, 0)
    act = min(said.n_gpu_layers, n_layers + 1) if said.devices else 0
    total = sum(said.tensor_split)
    splits = [share / total for share in accumulate(said.tensor_split)] if total else []
    layers = []
    for layer in range(n_layers + 1):
        if layer < start or layer - start >= act:
            layers.append("CPU")
        else:
            layers.append(said.devices[bisect_right(splits, (layer - start) / act)])
    return layers


def tensor_by_llama_cpp(name: str, said: LlamaSettings, base: list[str]) -> str:
    for override in said.tensor_overrides:
        if re.search(override.pattern, name):
            return override.device
    block = block_of(name)
    if block is not None:
        return base[block]
    return "CPU" if name == "token_embd.weight" else base[-1]


def check_exact(placement: Placement, lowering: Lowering) -> None:
    """Everything that the plan says is what llama.cpp's rules make of the settings."""
    said = lowering.settings
    base = base_by_llama_cpp(said, placement.model.n_layers)
    assert {layer: NAMES[base[layer]] for layer in placement.kv} == dict(placement.kv)
    found = {name: NAMES[tensor_by_llama_cpp(name, said, base)] for name in placement.tensors}
    assert found == {name: tensor.device for name, tensor in placement.tensors.items()}
    used = {tensor.device for tensor in placement.tensors.values()} | set(placement.kv.values())
    assert used - {"cpu"} <= {NAMES[device] for device in said.devices}


def test_everything_on_one_gpu() -> None:
    _, lowering = lowered(rule("embed", "cpu"), rule("", "cuda:0"))
    assert lowering.settings == LlamaSettings(n_gpu_layers=5, devices=("CUDA0",), tensor_split=(5,))


def test_everything_on_the_cpu_uses_no_device_at_all() -> None:
    _, lowering = lowered(rule("", "cpu"))
    assert lowering.settings == LlamaSettings(n_gpu_layers=0, devices=(), tensor_split=())


def test_experts_on_the_cpu_and_streamed_for_prefill() -> None:
    _, lowering = lowered(rule("embed", "cpu"), STREAMED_EXPERTS, rule("", "cuda:0"))
    assert lowering.settings == LlamaSettings(
        n_gpu_layers=5,
        devices=("CUDA0",),
        tensor_split=(5,),
        tensor_overrides=(TensorOverride(pattern=EXPERTS_PATTERN, device="CPU"),),
        op_offload=True,
        no_host=False,
    )


def test_experts_on_the_cpu_for_prefill_too_are_repacked_and_not_streamed() -> None:
    _, lowering = lowered(rule("embed", "cpu"), rule(r"mlp\.experts$", "cpu", recursive=False), rule("", "cuda:0"))
    assert (lowering.settings.op_offload, lowering.settings.no_host) == (False, True)


def test_a_suffix_of_layers_on_the_gpu_needs_no_override() -> None:
    _, lowering = lowered(rule(r"layers\.[01]\.|embed", "cpu"), rule("", "cuda:0"))
    assert lowering.settings == LlamaSettings(n_gpu_layers=3, devices=("CUDA0",), tensor_split=(3,))


def test_two_gpus_split_at_an_exact_layer() -> None:
    placement, lowering = lowered(rule("embed", "cpu"), rule(r"layers\.0\.", "cuda:0"), rule("", "cuda:1"))
    assert (lowering.settings.devices, lowering.settings.tensor_split) == (("CUDA0", "CUDA1"), (1, 4))
    check_exact(placement, lowering)


def test_gpu_first_puts_the_cpu_among_the_devices() -> None:
    rules = (rule("embed", "cpu"), rule(r"layers\.[01]\.|lm_head", "cuda:0"), rule("", "cpu"))
    placement, lowering = lowered(*rules)
    assert lowering.settings == LlamaSettings(
        n_gpu_layers=5,
        devices=("CUDA0", "CPU"),
        tensor_split=(2, 3),
        tensor_overrides=(
            TensorOverride(pattern=r"^output\.weight$", device="CUDA0"),
            TensorOverride(pattern=r"^blk\.[23]\.", device="CPU"),
            TensorOverride(pattern=r"^output_norm\.weight$", device="CPU"),
        ),
    )
    check_exact(placement, lowering)


def test_llama_server_cannot_have_the_cpu_among_its_devices_and_says_what_it_costs() -> None:
    rules = (rule("embed", "cpu"), rule(r"layers\.[01]\.|lm_head", "cuda:0"), rule("", "cpu"))
    _, lowering = lowered(*rules, target="llama-server")
    assert lowering.settings.devices == ("CUDA0",)
    assert lowering.settings.n_gpu_layers == 5
    assert [found.message for found in lowering.diagnostics] == [
        "the KV cache of layer 2-3 belongs on cpu, but llama-server takes no CPU layers behind GPU layers: it goes to "
        "cuda:0, where it takes 384 B a token, 12 MiB at 32768 tokens (f16); --target python puts it in its place"
    ]


def test_llama_server_is_exact_where_the_cpu_comes_first() -> None:
    _, lowering = lowered(rule(r"layers\.[01]\.|embed", "cpu"), rule("", "cuda:0"), target="llama-server")
    assert lowering.diagnostics == ()


def test_only_the_output_on_the_gpu() -> None:
    placement, lowering = lowered(rule("^model", "cpu"), rule("lm_head", "cuda:0"))
    assert lowering.settings.n_gpu_layers == 1
    check_exact(placement, lowering)


def test_a_gpu_that_holds_only_overridden_tensors_is_still_a_device() -> None:
    rules = (rule("embed", "cpu"), rule(r"layers\.1\.mlp\.experts$", "cuda:1", recursive=False), rule("", "cuda:0"))
    placement, lowering = lowered(*rules)
    assert (lowering.settings.devices, lowering.settings.tensor_split) == (("CUDA0", "CUDA1"), (5, 0))
    check_exact(placement, lowering)


def test_a_gpu_that_only_prefills_is_still_a_device() -> None:
    _, lowering = lowered(STREAMED_EXPERTS, rule("", "cpu"))
    assert (lowering.settings.devices, lowering.settings.n_gpu_layers) == (("CUDA0",), 0)
    assert lowering.settings.op_offload


def test_a_tied_output_goes_where_lm_head_goes() -> None:
    placement, lowering = lowered(rule("^model", "cpu"), rule("lm_head", "cuda:0"), model=deepseek(tied=True))
    assert base_by_llama_cpp(lowering.settings, 4)[-1] == "CUDA0"
    assert placement.tensors["token_embd.weight"].device == "cpu"


def test_mtp_blocks_cost_no_run_of_their_own() -> None:
    rules = (rule("embed", "cpu"), rule(r"layers\.[0-2]\.", "cuda:0"), rule(r"layers\.3\.", "cpu"), rule("", "cuda:0"))
    _, lowering = lowered(*rules, model=deepseek(4, n_mtp=1))
    assert lowering.settings.devices == ("CUDA0",)
    assert lowering.settings.tensor_overrides == (TensorOverride(pattern=r"^blk\.3\.", device="CPU"),)


def test_device_map_names_the_devices() -> None:
    options = Options(device_map=parse_device_map(["cuda:0=Vulkan1"]))
    translation = analyse(loader.loads(rule("embed", "cpu") + rule("", "cuda")), deepseek(), options=options)
    assert translation.settings.devices == ("Vulkan1",)


def test_more_runs_than_llama_cpp_has_devices_is_told() -> None:
    odd = rule(r"layers\.[0-9]*[13579]\.", "cpu")
    _, lowering = lowered(rule("embed", "cpu"), odd, rule("", "cuda:0"), model=deepseek(40))
    assert [found.message for found in lowering.diagnostics] == [
        "the KV cache of layer 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39 belongs on cpu, "
        "but the layers change device more than 16 times: it goes to cuda:0, where it takes 3.75 KiB a token, 120 MiB "
        "at 32768 tokens (f16); give neighbouring layers the same device"
    ]
    assert lowering.settings.devices == ("CUDA0",)


def test_gpus_that_alternate_too_often_are_an_error() -> None:
    rules = rule("embed", "cpu") + rule(r"layers\.[0-9]*[13579]\.", "cuda:1") + rule("", "cuda:0")
    translation = analyse(loader.loads(rules), deepseek(40))
    assert [(found.severity, found.message) for found in translation.lowering.diagnostics] == [
        (
            "error",
            "the layers change device so often that llama.cpp would need 40 entries in its list of devices, and it "
            "takes at most 16; give neighbouring layers the same device",
        )
    ]


def test_llama_server_overrides_the_copy_of_a_tied_output() -> None:
    rules = (rule("embed|lm_head|norm$", "cpu"), rule(r"layers\.[01]\.", "cuda:0"), rule("", "cpu"))
    _, lowering = lowered(*rules, model=deepseek(tied=True), target="llama-server")
    base = base_by_llama_cpp(lowering.settings, 4)
    assert base[-1] == "CUDA0"
    assert tensor_by_llama_cpp("token_embd.weight", lowering.settings, base) == "CPU"
    assert any(re.search(over.pattern, "token_embd.weight") for over in lowering.settings.tensor_overrides)


DEVICES = st.sampled_from(["cpu", "cuda:0", "cuda:1", "cuda:2"])


@given(
    layers=st.lists(st.tuples(DEVICES, DEVICES, DEVICES), min_size=6, max_size=6),
    norm=DEVICES,
    head=DEVICES,
    n_mtp=st.integers(0, 1),
    tied=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_placement_of_layers_experts_and_norms_is_met_exactly(
    layers: list[tuple[str, str, str]], norm: str, head: str, n_mtp: int, tied: bool
) -> None:
    rules = [rule("embed", "cpu"), rule("^model.norm", norm), rule("lm_head", head)]
    for number, (attention, experts, norms) in enumerate(layers):
        rules.append(rule(rf"layers\.{number}\.mlp\.experts", experts, recursive=False))
        rules.append(rule(rf"layers\.{number}\..*layernorm", norms))
        rules.append(rule(rf"layers\.{number}\.", attention))
    placement, lowering = lowered(*rules, model=deepseek(6, n_mtp=n_mtp, tied=tied))
    check_exact(placement, lowering)
    assert lower(placement).settings == lowering.settings
    if tied:
        assert NAMES[base_by_llama_cpp(lowering.settings, 6)[-1]] == head


@pytest.mark.parametrize("n_layers", [1, 61, 100, 512])
def test_layer_counts_as_tensor_split_give_exact_boundaries(n_layers: int) -> None:
    import numpy as np

    for first in range(1, n_layers + 1):
        splits = np.cumsum(np.array([first, n_layers + 1 - first], dtype=np.float32))
        splits /= splits[-1]
        position = np.arange(n_layers + 1, dtype=np.float32) / np.float32(n_layers + 1)
        assert (np.searchsorted(splits, position, side="right") == (np.arange(n_layers + 1) >= first)).all()


@pytest.mark.parametrize("target", ["python", "llama-server", "ik_llama.cpp"])
def test_two_devices_of_the_rules_on_one_of_llama_cpp_are_an_error(target: Target) -> None:
    rules = rule("embed", "cpu") + rule(r"layers\.0\.", "cuda:0") + rule("", "cuda:1")
    options = Options(target=target, device_map=parse_device_map(["cuda:0=CUDA1"]))
    translation = analyse(loader.loads(rules), deepseek(), options=options)
    assert [(found.code, found.message) for found in translation.lowering.diagnostics] == [
        ("device-collision", "cuda:0 and cuda:1 are both CUDA1 in llama.cpp; give each its own with --device-map")
    ]
