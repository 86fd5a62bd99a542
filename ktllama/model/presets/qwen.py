"""Qwen's models, the R1 distills on them, and MiniCPM-V's text models."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama.model.presets.delta_net import DeltaNetModel
from ktllama.model.presets.gqa import QKV_BIASES, GqaModel


def _qwen2(
    title: str,
    sizes: tuple[int, int, int, int, int],
    *,
    n_vocab: int = 152064,
    context: int = 131072,
    rope_base: float = 1000000.0,
    rms_epsilon: float = 1e-6,
) -> GqaModel:
    """``sizes``: embedding, layers, heads, KV heads, feed-forward."""
    n_embd, n_layers, n_heads, n_kv_heads, ffn = sizes
    return GqaModel(
        title=title,
        n_vocab=n_vocab,
        n_embd=n_embd,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=128,
        ffn=ffn,
        context=context,
        rope_base=rope_base,
        rms_epsilon=rms_epsilon,
        biases=QKV_BIASES,
    )


QWEN2: Mapping[str, GqaModel] = {
    "r1-distill-qwen-32b": _qwen2("DeepSeek R1 Distill Qwen 32B", (5120, 64, 40, 8, 27648), rms_epsilon=1e-5),
    "r1-distill-qwen-14b": _qwen2("DeepSeek R1 Distill Qwen 14B", (5120, 48, 40, 8, 13824), rms_epsilon=1e-5),
    "r1-distill-qwen-7b": _qwen2("DeepSeek R1 Distill Qwen 7B", (3584, 28, 28, 4, 18944), rope_base=10000.0),
    "r1-distill-qwen-1.5b": _qwen2(
        "DeepSeek R1 Distill Qwen 1.5B", (1536, 28, 12, 2, 8960), n_vocab=151936, rope_base=10000.0
    ),
    "minicpm-v-2.6": _qwen2("MiniCPM-V 2.6 (text)", (3584, 28, 28, 4, 18944), n_vocab=151666, context=32768),
}

QWEN2_MOE: Mapping[str, GqaModel] = {
    "qwen2-57b-a14b": GqaModel(
        title="Qwen2 57B A14B Instruct",
        n_vocab=151936,
        n_embd=3584,
        n_layers=28,
        n_heads=28,
        n_kv_heads=4,
        head_dim=128,
        ffn=18944,
        expert_ffn=2560,
        n_experts=64,
        n_experts_used=8,
        shared_ffn=20480,
        shared_gate=True,
        biases=QKV_BIASES,
        context=32768,
        rope_base=1000000.0,
        more={"expert_shared_feed_forward_length": 20480},
    ),
}


def _qwen3(
    title: str, sizes: tuple[int, int, int, int], *, n_vocab: int = 151936, yarn: tuple[float, int] | None = None
) -> GqaModel:
    """``sizes``: embedding, layers, heads, feed-forward."""
    n_embd, n_layers, n_heads, ffn = sizes
    return GqaModel(
        title=title,
        n_vocab=n_vocab,
        n_embd=n_embd,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=128,
        ffn=ffn,
        head_norms="head",
        context=131072 if yarn else 40960,
        rope_base=1000000.0,
        yarn=yarn,
    )


QWEN3: Mapping[str, GqaModel] = {
    "qwen3-32b": _qwen3("Qwen3 32B", (5120, 64, 64, 25600)),
    "qwen3-8b": _qwen3("Qwen3 8B", (4096, 36, 32, 12288)),
    "r1-0528-qwen3-8b": _qwen3("DeepSeek R1 0528 Qwen3 8B", (4096, 36, 32, 12288), yarn=(4.0, 32768)),
    "minicpm-v-4.5": _qwen3("MiniCPM-V 4.5 (text)", (4096, 36, 32, 12288), n_vocab=151748),
}


def _qwen3_moe(title: str, sizes: tuple[int, int, int, int, int]) -> GqaModel:
    """``sizes``: embedding, layers, heads, feed-forward, feed-forward of an expert."""
    n_embd, n_layers, n_heads, ffn, expert_ffn = sizes
    return GqaModel(
        title=title,
        n_vocab=151936,
        n_embd=n_embd,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=4,
        head_dim=128,
        ffn=ffn,
        expert_ffn=expert_ffn,
        n_experts=128,
        n_experts_used=8,
        head_norms="head",
        context=40960,
        rope_base=1000000.0,
    )


QWEN3_MOE: Mapping[str, GqaModel] = {
    "qwen3-235b-a22b": _qwen3_moe("Qwen3 235B A22B", (4096, 94, 64, 12288, 1536)),
    "qwen3-30b-a3b": _qwen3_moe("Qwen3 30B A3B", (2048, 48, 32, 6144, 768)),
}

QWEN3_NEXT: Mapping[str, DeltaNetModel] = {
    "qwen3-next-80b-a3b": DeltaNetModel(
        title="Qwen3 Next 80B A3B",
        n_vocab=151936,
        n_embd=2048,
        n_layers=48,
        n_heads=16,
        n_kv_heads=2,
        head_dim=256,
        ffn=5120,
        expert_ffn=512,
        n_experts=512,
        n_experts_used=10,
        shared_ffn=512,
        shared_gate=True,
        head_norms="head",
        second_norm="post_attention_norm",
        context=262144,
        rope_base=10000000.0,
        rope_dim=64,
    ),
}
