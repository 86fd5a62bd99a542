"""DeepSeek's models, and those built alike: Moonlight and Kimi-K2."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama.model.presets.mla import MlaModel


def _v3(title: str) -> MlaModel:
    return MlaModel(
        title=title,
        n_vocab=129280,
        n_embd=7168,
        n_layers=61,
        n_dense=3,
        n_heads=128,
        q_lora_rank=1536,
        ffn=18432,
        expert_ffn=2048,
        n_experts=256,
        n_experts_used=8,
        n_shared_experts=1,
        sigmoid=True,
        n_groups=8,
        n_groups_used=4,
        weights_scale=2.5,
        weights_norm=True,
        yarn=(40.0, 4096),
    )


def _kimi(title: str, context: int, yarn_factor: float, rms_epsilon: float) -> MlaModel:
    return MlaModel(
        title=title,
        n_vocab=163840,
        n_embd=7168,
        n_layers=61,
        n_dense=1,
        n_heads=64,
        q_lora_rank=1536,
        ffn=18432,
        expert_ffn=2048,
        n_experts=384,
        n_experts_used=8,
        n_shared_experts=1,
        sigmoid=True,
        weights_scale=2.827,
        weights_norm=True,
        context=context,
        rope_base=50000.0,
        yarn=(yarn_factor, 4096),
        rms_epsilon=rms_epsilon,
    )


PRESETS: Mapping[str, MlaModel] = {
    "deepseek-r1": _v3("DeepSeek R1"),
    "deepseek-v3": _v3("DeepSeek V3"),
    "moonlight-16b-a3b": MlaModel(
        title="Moonlight 16B A3B Instruct",
        n_vocab=163840,
        n_embd=2048,
        n_layers=27,
        n_dense=1,
        n_heads=16,
        q_lora_rank=0,
        ffn=11264,
        expert_ffn=1408,
        n_experts=64,
        n_experts_used=6,
        n_shared_experts=2,
        sigmoid=True,
        weights_scale=2.446,
        weights_norm=True,
        context=8192,
        rope_base=50000.0,
    ),
    "deepseek-v2": MlaModel(
        title="DeepSeek V2 Chat",
        n_vocab=102400,
        n_embd=5120,
        n_layers=60,
        n_dense=1,
        n_heads=128,
        q_lora_rank=1536,
        ffn=12288,
        expert_ffn=1536,
        n_experts=160,
        n_experts_used=6,
        n_shared_experts=2,
        sigmoid=False,
        n_groups=8,
        n_groups_used=3,
        weights_scale=16.0,
        yarn=(40.0, 4096),
        yarn_log_multiplier=0.0707,
    ),
    "deepseek-v2-lite": MlaModel(
        title="DeepSeek V2 Lite Chat",
        n_vocab=102400,
        n_embd=2048,
        n_layers=27,
        n_dense=1,
        n_heads=16,
        q_lora_rank=0,
        ffn=10944,
        expert_ffn=1408,
        n_experts=64,
        n_experts_used=6,
        n_shared_experts=2,
        sigmoid=False,
        yarn=(40.0, 4096),
        yarn_log_multiplier=0.0707,
    ),
    "kimi-k2": _kimi("Kimi K2 Instruct", 131072, 32.0, 1e-6),
    "kimi-k2-thinking": _kimi("Kimi K2 Thinking", 262144, 64.0, 1e-5),
}
