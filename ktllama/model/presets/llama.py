"""Llama's family: the R1 distills on it, InternLM2.5, Mixtral, and MiniCPM-V 4's text model."""

from __future__ import annotations

from collections.abc import Mapping

from ktllama.model.presets.gqa import GqaModel


def _llama_3(title: str, sizes: tuple[int, int, int, int]) -> GqaModel:
    """``sizes``: embedding, layers, heads, feed-forward."""
    n_embd, n_layers, n_heads, ffn = sizes
    return GqaModel(
        title=title,
        n_vocab=128256,
        n_embd=n_embd,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=128,
        ffn=ffn,
        context=131072,
        rope_base=500000.0,
        rms_epsilon=1e-5,
    )


LLAMA: Mapping[str, GqaModel] = {
    "r1-distill-llama-70b": _llama_3("DeepSeek R1 Distill Llama 70B", (8192, 80, 64, 28672)),
    "r1-distill-llama-8b": _llama_3("DeepSeek R1 Distill Llama 8B", (4096, 32, 32, 14336)),
    "mixtral-8x7b": GqaModel(
        title="Mixtral 8x7B Instruct",
        n_vocab=32000,
        n_embd=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        ffn=14336,
        expert_ffn=14336,
        n_experts=8,
        n_experts_used=2,
        context=32768,
        rope_base=1000000.0,
        rms_epsilon=1e-5,
    ),
    "minicpm-v-4": GqaModel(
        title="MiniCPM-V 4 (text)",
        n_vocab=73448,
        n_embd=2560,
        n_layers=32,
        n_heads=32,
        n_kv_heads=2,
        head_dim=128,
        ffn=10240,
        context=32768,
        rope_base=10000.0,
        rms_epsilon=1e-6,
    ),
}

INTERNLM2: Mapping[str, GqaModel] = {
    "internlm2.5-7b-1m": GqaModel(
        title="InternLM2.5 7B Chat 1M",
        n_vocab=92544,
        n_embd=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        ffn=14336,
        context=262144,
        rope_base=50000000.0,
        rms_epsilon=1e-5,
    ),
}
