"""The reference against Hugging Face's own models with the same weights, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ktllama.reference.config import DeepSeekConfig, DenseConfig
from ktllama.reference.deepseek import DeepSeek
from ktllama.reference.dense import Dense
from tests.reference.files import deepseek_config, dense_config, random_module, random_tokens, yarn

transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5

#: Our names for the parts of a layer, and theirs.
_ATTENTION = {
    "q": "q_proj", "q_a": "q_a_proj", "q_a_norm": "q_a_layernorm", "q_b": "q_b_proj", "kv_a_mqa": "kv_a_proj_with_mqa",
    "kv_a_norm": "kv_a_layernorm", "k": "k_proj", "v": "v_proj", "output": "o_proj",
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        deepseek_config(),
        deepseek_config(rope=yarn()),
        deepseek_config(n_groups=1, n_groups_used=1, n_shared=2, rope=yarn(log_multiplier=0.0707)),
        deepseek_config(n_groups=2, n_groups_used=1, q_lora_rank=None),
    ],
)
def test_deepseek_v3_gives_the_same_logits(config: DeepSeekConfig) -> None:
    module = random_module(config)
    assert isinstance(module, DeepSeek)
    theirs = transformers.DeepseekV3ForCausalLM(_v3_config(config))
    _compare(module, theirs, _deepseek_state(module))


@pytest.mark.parametrize("groups", [{"n_groups": 1, "n_groups_used": 1}, {"n_groups": 4, "n_groups_used": 2}])
@pytest.mark.parametrize("q_lora_rank", [None, 48])
def test_deepseek_v2_gives_the_same_logits(groups: dict[str, int], q_lora_rank: int | None) -> None:
    config = deepseek_config(
        **groups,
        q_lora_rank=q_lora_rank,
        gating="softmax",
        selection_bias=False,
        normalize=False,
        group_score="max",  # the paper's; llama.cpp takes V3's for every model
        scale=4.0,
    )
    module = random_module(config)
    assert isinstance(module, DeepSeek)
    theirs = transformers.DeepseekV2ForCausalLM(_v2_config(config))
    _compare(module, theirs, _deepseek_state(module))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_dense_models_give_the_same_logits(architecture: str) -> None:
    config = dense_config(architecture)
    module = random_module(config)
    assert isinstance(module, Dense)
    name = "LlamaForCausalLM" if architecture == "llama" else "Qwen2ForCausalLM"
    _compare(module, getattr(transformers, name)(_dense_config(config)), _dense_state(module, config))


def _compare(ours: DeepSeek | Dense, theirs: Any, state: dict[str, Tensor]) -> None:
    left_out = theirs.load_state_dict(state, strict=False)
    assert [name for name in left_out.missing_keys if "rotary" not in name] == []
    assert left_out.unexpected_keys == []
    tokens = torch.tensor([random_tokens(150)])
    with torch.no_grad():
        expected = theirs.float().eval()(tokens).logits
        found = ours(tokens)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() / expected.std() <= TOLERANCE


# --- Weights under their names ----------------------------------------------------------------------------------------


def _deepseek_state(module: DeepSeek) -> dict[str, Tensor]:
    state = _outer_state(module)
    for index, block in enumerate(module.blk):
        parts = {name: parameter.detach() for name, parameter in block.named_parameters()}
        layer = f"model.layers.{index}."
        k_b, v_b = parts.pop("attn.k_b.weight"), parts.pop("attn.v_b.weight")
        state[layer + "self_attn.kv_b_proj.weight"] = torch.cat((k_b.transpose(1, 2), v_b), 1).flatten(0, 1)
        gate = parts.pop("ffn.gate_exps.weight", None)
        if gate is not None:
            state[layer + "mlp.experts.gate_up_proj"] = torch.cat((gate, parts.pop("ffn.up_exps.weight")), 1)
            state[layer + "mlp.experts.down_proj"] = parts.pop("ffn.down_exps.weight")
        for name, value in parts.items():
            state[layer + _their_name(name)] = value
    return state


def _dense_state(module: Dense, config: DenseConfig) -> dict[str, Tensor]:
    state = _outer_state(module)
    for index, block in enumerate(module.blk):
        for name, parameter in block.named_parameters():
            value = parameter.detach()
            if config.pairing == "neighbours" and name.startswith(("attn.q.", "attn.k.")):
                value = _unpermuted(value, config.head)
            state[f"model.layers.{index}.{_their_name(name)}"] = value
    return state


def _unpermuted(weight: Tensor, head: int) -> Tensor:
    """Undo the converter's permutation: pairs of neighbours to pairs half a head apart."""
    return weight.view(-1, head // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _outer_state(module: DeepSeek | Dense) -> dict[str, Tensor]:
    assert module.output is not None
    return {
        "model.embed_tokens.weight": module.token_embd.weight.detach(),
        "model.norm.weight": module.output_norm.weight.detach(),
        "lm_head.weight": module.output.weight.detach(),
    }


def _their_name(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "attn":
        inner, _, kind = rest.rpartition(".")
        return f"self_attn.{_ATTENTION[inner]}.{kind}"
    if part == "ffn":
        inner, _, kind = rest.rpartition(".")
        if inner == "exp_probs_b":
            return "mlp.gate.e_score_correction_bias"
        if inner == "gate_inp":
            return "mlp.gate.weight"
        if inner.endswith("_shexp"):
            return f"mlp.shared_experts.{inner.removesuffix('_shexp')}_proj.{kind}"
        return f"mlp.{inner}_proj.{kind}"
    return {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight"}[name]


# --- Configs ----------------------------------------------------------------------------------------------------------


def _v3_config(config: DeepSeekConfig) -> Any:
    return transformers.DeepseekV3Config(
        **_shared_config(config),
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=config.moe.normalize,
    )


def _v2_config(config: DeepSeekConfig) -> Any:
    return transformers.DeepseekV2Config(
        **_shared_config(config),
        topk_method="greedy" if config.moe.n_groups == 1 else "group_limited_greedy",
        scoring_func="softmax",
    )


def _shared_config(config: DeepSeekConfig) -> dict[str, Any]:
    moe = config.moe
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "moe_intermediate_size": moe.expert_ffn,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "n_shared_experts": moe.n_shared,
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_used,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.n_groups,
        "topk_group": moe.n_groups_used,
        "kv_lora_rank": config.kv_lora_rank,
        "q_lora_rank": config.q_lora_rank,
        "qk_rope_head_dim": config.rope.n_dims,
        "qk_nope_head_dim": config.nope,
        "v_head_dim": config.v_head,
        "first_k_dense_replace": config.n_dense,
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.context,
        "attn_implementation": "eager",
        **_rope_parameters(config),
    }


def _rope_parameters(config: DeepSeekConfig) -> dict[str, Any]:
    rope = config.rope
    if rope.yarn is None:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": rope.base}}
    multiplier = 10 * (rope.yarn.log_multiplier or 0.0)
    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": rope.base,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.yarn.original_context,
            "beta_fast": rope.yarn.beta_fast,
            "beta_slow": rope.yarn.beta_slow,
            "mscale": multiplier,
            "mscale_all_dim": multiplier,
        }
    }


def _dense_config(config: DenseConfig) -> Any:
    cls = transformers.LlamaConfig if config.architecture == "llama" else transformers.Qwen2Config
    return cls(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.ffn,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        rms_norm_eps=config.norm_epsilon,
        max_position_embeddings=config.context,
        tie_word_embeddings=False,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.base},
    )
