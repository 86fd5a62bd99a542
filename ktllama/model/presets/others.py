"""Families with a model or two: MiniMax-M2, ERNIE 4.5, SmallThinker and gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ktllama.model.presets.gqa import QKV_BIASES, GqaModel

_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID

MINIMAX_M2: Mapping[str, GqaModel] = {
    "minimax-m2": GqaModel(
        title="MiniMax M2",
        n_vocab=200064,
        n_embd=3072,
        n_layers=62,
        n_heads=48,
        n_kv_heads=8,
        head_dim=128,
        ffn=1536,
        expert_ffn=1536,
        n_experts=256,
        n_experts_used=8,
        router_bias=True,
        head_norms="all",
        context=196608,
        rope_base=5000000.0,
        rope_dim=64,
        more={"expert_gating_func": _SIGMOID},
    ),
}


_ERNIE_DENSE = GqaModel(
    title="ERNIE 4.5 0.3B",
    n_vocab=103424,
    n_embd=1024,
    n_layers=18,
    n_heads=16,
    n_kv_heads=2,
    head_dim=128,
    ffn=3072,
    context=131072,
    rope_base=500000.0,
    rms_epsilon=1e-5,
    tied=True,
)

ERNIE4_5: Mapping[str, GqaModel] = {"ernie-4.5-0.3b": _ERNIE_DENSE}

ERNIE4_5_MOE: Mapping[str, GqaModel] = {
    "ernie-4.5-21b-a3b": replace(
        _ERNIE_DENSE,
        title="ERNIE 4.5 21B A3B",
        n_embd=2560,
        n_layers=28,
        n_dense=1,
        n_heads=20,
        n_kv_heads=4,
        ffn=12288,
        expert_ffn=1536,
        n_experts=64,
        n_experts_used=6,
        shared_ffn=3072,
        router_bias=True,
        more={"expert_shared_feed_forward_length": 3072, "interleave_moe_layer_step": 1, "expert_shared_count": 2},
    ),
    "ernie-4.5-300b-a47b": replace(
        _ERNIE_DENSE,
        title="ERNIE 4.5 300B A47B",
        n_embd=8192,
        n_layers=54,
        n_dense=3,
        n_heads=64,
        n_kv_heads=8,
        ffn=28672,
        expert_ffn=3584,
        n_experts=64,
        n_experts_used=8,
        router_bias=True,
        tied=False,
        more={"interleave_moe_layer_step": 1},
    ),
}

SMALLTHINKER: Mapping[str, GqaModel] = {
    "smallthinker-21b-a3b": GqaModel(
        title="SmallThinker 21B A3B",
        n_vocab=151936,
        n_embd=2560,
        n_layers=52,
        n_heads=28,
        n_kv_heads=4,
        head_dim=128,
        ffn=768,
        expert_ffn=768,
        n_experts=64,
        n_experts_used=6,
        context=16384,
        rope_base=1500000.0,
        more={"expert_gating_func": _SIGMOID, "attention.sliding_window": 4096},
    ),
}


def _gpt_oss(title: str, n_layers: int, n_experts: int) -> GqaModel:
    return GqaModel(
        title=title,
        n_vocab=201088,
        n_embd=2880,
        n_layers=n_layers,
        n_heads=64,
        n_kv_heads=8,
        head_dim=64,
        ffn=2880,
        expert_ffn=2880,
        n_experts=n_experts,
        n_experts_used=4,
        sinks=True,
        biases=QKV_BIASES | {"attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"},
        second_norm="post_attention_norm",
        context=131072,
        rope_base=150000.0,
        rms_epsilon=1e-5,
        yarn=(32.0, 4096),
        more={"attention.sliding_window": 128},
        quantization="MXFP4",
    )


GPT_OSS: Mapping[str, GqaModel] = {
    "gpt-oss-120b": _gpt_oss("gpt-oss 120B", 36, 128),
    "gpt-oss-20b": _gpt_oss("gpt-oss 20B", 24, 32),
}
