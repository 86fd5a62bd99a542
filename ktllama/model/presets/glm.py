"""GLM-4.5 and its relatives, with their MTP block."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama.model.presets.gqa import QKV_BIASES, GqaModel

_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def _glm4_moe(title: str, context: int) -> GqaModel:
    return GqaModel(
        title=title,
        n_vocab=151552,
        n_embd=5120,
        n_layers=92,
        n_mtp=1,
        n_dense=3,
        n_heads=96,
        n_kv_heads=8,
        head_dim=128,
        ffn=12288,
        expert_ffn=1536,
        n_experts=160,
        n_experts_used=8,
        shared_ffn=1536,
        router_bias=True,
        biases=QKV_BIASES,
        head_norms="head",
        second_norm="post_attention_norm",
        context=context,
        rope_base=1000000.0,
        rope_dim=64,
        rms_epsilon=1e-5,
        more=_routing(2.5),
    )


def _routing(weights_scale: float) -> dict[str, bool | int | float]:
    return {
        "expert_shared_count": 1,
        "expert_weights_scale": weights_scale,
        "expert_weights_norm": True,
        "expert_gating_func": _SIGMOID,
    }


GLM4_MOE: Mapping[str, GqaModel] = {
    "glm-4.5": _glm4_moe("GLM 4.5", 131072),
    "glm-4.6": _glm4_moe("GLM 4.6", 202752),
    "glm-4.5-air": GqaModel(
        title="GLM 4.5 Air",
        n_vocab=151552,
        n_embd=4096,
        n_layers=46,
        n_mtp=1,
        n_dense=1,
        n_heads=96,
        n_kv_heads=8,
        head_dim=128,
        ffn=10944,
        expert_ffn=1408,
        n_experts=128,
        n_experts_used=8,
        shared_ffn=1408,
        router_bias=True,
        biases=QKV_BIASES,
        second_norm="post_attention_norm",
        context=131072,
        rope_base=1000000.0,
        rope_dim=64,
        rms_epsilon=1e-5,
        more=_routing(1.0),
    ),
}
