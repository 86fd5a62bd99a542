"""Parameters and GGUF tensors, one to one."""

from __future__ import annotations

import pytest

from ktllama.reference.names import gguf_name, kept_in_float32, parameter_name
from tests.reference.files import deepseek_config, dense_config, random_module

NAMES = {
    "token_embd.weight": "token_embd.weight",
    "output_norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
    "blk.12.attn_norm.weight": "blk.12.attn_norm.weight",
    "blk.12.ffn_norm.weight": "blk.12.ffn_norm.weight",
    "blk.12.attn.q_a_norm.weight": "blk.12.attn_q_a_norm.weight",
    "blk.12.attn.k_b.weight": "blk.12.attn_k_b.weight",
    "blk.12.attn.output.weight": "blk.12.attn_output.weight",
    "blk.0.ffn.gate.weight": "blk.0.ffn_gate.weight",
    "blk.12.ffn.gate_inp.weight": "blk.12.ffn_gate_inp.weight",
    "blk.12.ffn.down_exps.weight": "blk.12.ffn_down_exps.weight",
    "blk.12.ffn.up_shexp.weight": "blk.12.ffn_up_shexp.weight",
    "blk.12.ffn.exp_probs_b.bias": "blk.12.exp_probs_b.bias",
    "blk.61.nextn.eh_proj.weight": "blk.61.nextn.eh_proj.weight",
    "blk.1.attn.q.bias": "blk.1.attn_q.bias",
}


@pytest.mark.parametrize("parameter", NAMES)
def test_names(parameter: str) -> None:
    assert gguf_name(parameter) == NAMES[parameter]
    assert parameter_name(NAMES[parameter]) == parameter


@pytest.mark.parametrize("config", [deepseek_config(n_mtp=1), dense_config("qwen2"), dense_config(rope_factors=True)])
def test_every_parameter_has_a_tensor_and_every_tensor_its_parameter(config: object) -> None:
    parameters = [name for name, _ in random_module(config).named_parameters()]  # type: ignore[arg-type]
    tensors = [gguf_name(name) for name in parameters]
    assert len(set(tensors)) == len(parameters)
    assert [parameter_name(name) for name in tensors] == parameters


def test_norms_biases_and_the_router_stay_in_float32() -> None:
    module = random_module(deepseek_config(n_layers=2))
    kept = {name.removeprefix("blk.1.") for name, _ in module.named_parameters() if kept_in_float32(name)}
    assert kept == {
        "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn.q_a_norm.weight", "blk.0.attn.kv_a_norm.weight",
        "blk.0.ffn_norm.weight", "attn_norm.weight", "attn.q_a_norm.weight", "attn.kv_a_norm.weight", "ffn_norm.weight",
        "ffn.gate_inp.weight", "ffn.exp_probs_b.bias",
    }  # fmt: skip
